"""Arrays of any shapes in one memory-mapped file: what is decoded or tokenized once, and read ever after."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax import console
from tljax.data import decoded_cache
from tljax.errors import InputError
from tljax.io import checksums
from tljax.io.download.fetch import create_once


class ArrayCache(Sequence[np.ndarray]):
    """Arrays of one dtype, one for each example; reading one copies nothing.

    Each block of the file is checked when it is first read; an array in a damaged one is made again.

    Args:
        folder: that `get_or_create` filled.
        again: makes the array of a place as it was made at first.
    """

    def __init__(self, folder: Path, again: Callable[[int], np.ndarray]):
        self._used = decoded_cache.using(folder)
        self._folder, self._again, self._is_damaged = folder, again, False
        facts = json.loads((folder / "facts.json").read_text())
        self.facts: dict[str, Any] = facts["facts"]
        self.shapes = np.load(folder / "shapes.npy")
        self._ends = np.cumsum(self.shapes.prod(axis=1, dtype=np.int64))
        content = np.asarray(np.memmap(folder / "values", np.uint8, "r") if self._ends.any() else np.empty(0, np.uint8))
        self._values = content.view(facts["dtype"])
        self._blocks = checksums.Blocks(content, checksums.checksums(folder / checksums.NAME)["values"][1])

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, place: int) -> np.ndarray:
        end, shape = int(self._ends[place]), self.shapes[place]
        start = end - int(shape.prod())
        if not self._blocks.whole(start * self._values.itemsize, end * self._values.itemsize):
            if not self._is_damaged:
                self._is_damaged = True
                (self._folder / checksums.NAME).unlink(missing_ok=True)  # so that the next start makes all of it again
                console.console.print(f"{self._folder} is damaged: what is lost of it is made again")
            return self._again(place)
        return self._values[start:end].reshape(shape)


def get_or_create(
    folder: Path, arrays: Iterable[np.ndarray], facts: dict[str, Any], again: Callable[[int], np.ndarray]
) -> ArrayCache:
    """Returns the arrays in `folder`; if they are not there, writes them, whole or not at all.

    Args:
        folder: of the cache.
        arrays: in order, all of one dtype.
        facts: what is to be known of them; read after the last array.
        again: as in `ArrayCache`.

    Raises:
        InputError: the disk is full.
    """
    with create_once(folder, wrong=_wrong) as making:
        if making:
            try:
                _write(making, arrays, facts)
            except OSError as error:
                raise InputError(
                    f"{folder}: cannot be written ({error.strerror}): free some disk, name another TLJAX_CACHE,"
                    f" or set input.cache_gb=0"
                ) from error
    return ArrayCache(folder, again)


def _wrong(folder: Path) -> str:
    """Returns what is wrong beside the values, which are looked at as they are read; empty if nothing is."""
    try:
        sizes = checksums.checksums(folder / checksums.NAME)
        if (folder / "values").stat().st_size != sizes["values"][0]:
            return "values are cut"
    except (OSError, KeyError, checksums.Damaged) as error:
        return str(error)
    return checksums.wrong(folder / checksums.NAME, only=("facts.json", "shapes.npy"))


def _write(folder: Path, arrays: Iterable[np.ndarray], facts: dict[str, Any]) -> None:
    shapes, dtype = [], "uint8"
    with (folder / "values").open("wb") as file:
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)
            shapes.append(array.shape)
            dtype = array.dtype.name
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / "shapes.npy", np.array(shapes, np.int64))
    (folder / "facts.json").write_text(json.dumps({"dtype": dtype, "facts": facts}))
    checksums.seal_folder(folder)
