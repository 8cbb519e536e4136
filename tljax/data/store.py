"""Arrays of any shapes in one memory-mapped file: what is decoded or tokenised once, and read ever after."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax.data import cache
from tljax.errors import InputError
from tljax.weights.sources import made_once


class Store(Sequence[np.ndarray]):
    """One array per example, all of one dtype; reading one copies nothing."""

    def __init__(self, folder: Path):
        self._used = cache.using(folder)
        facts = json.loads((folder / "facts.json").read_text())
        self.facts: dict[str, Any] = facts["facts"]
        self.shapes = np.load(folder / "shapes.npy")
        self._ends = np.cumsum(self.shapes.prod(axis=1, dtype=np.int64))
        count = int(self._ends[-1]) if len(self._ends) else 0
        self._values = np.memmap(folder / "values", facts["dtype"], "r", shape=(count,)) if count else np.empty(0)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, place: int) -> np.ndarray:
        end = self._ends[place]
        shape = self.shapes[place]
        return self._values[end - shape.prod() : end].reshape(shape)


def stored(folder: Path, arrays: Iterable[np.ndarray], facts: dict[str, Any]) -> Store:
    """The store in `folder`; if it is not there, `arrays` are written to it, whole or not at all.

    Raises:
        InputError: the disk is full.
    """
    with made_once(folder) as making:
        if making:
            try:
                _write(making, arrays, facts)
            except OSError as error:
                raise InputError(
                    f"{folder}: cannot be written ({error.strerror}): free some disk, name another TLJAX_CACHE,"
                    f" or set input.cache_gb=0"
                ) from error
    return Store(folder)


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
