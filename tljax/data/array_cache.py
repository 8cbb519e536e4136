"""Folders of `TLJAX_CACHE` with what can be made again, and arrays of any shapes in one memory-mapped file there.

What is decoded, tokenized or computed once is read ever after; where room is wanting, what was used least goes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from tljax import console
from tljax.errors import InputError
from tljax.io import checksums
from tljax.io.download.fetch import cache_dir, create_once

KINDS = ("decoded", "tokens", "features")  # what `make_room` counts and evicts


def folder_of(kind: str, *parts: object) -> Path:
    """Returns where what is made of `parts` is kept; the same for every run that makes it."""
    key = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
    return cache_dir() / kind / key[:24]


def using(folder: Path) -> IO[bytes]:
    """Makes a folder where there is none, notes that it is used now, and holds it: it stays until this is closed."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            file = (folder / "used").open("ab")
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(file.fileno()), (folder / "used").stat()):
                os.utime(folder / "used")
                return file
            file.close()  # evicted in between


def make_room(folder: Path, needed: float, budget: float) -> bool:
    """Tells whether `folder` may grow, all of `KINDS` together staying within `budget`, and on the disk.

    Where that needs room, what was not used for the longest time goes first, and nothing that a process holds.

    Args:
        folder: of the cache.
        needed: bytes by which it grows.
        budget: bytes that all may have.
    """
    folders = [path for kind in KINDS for path in (cache_dir() / kind).glob("*") if path.is_dir() and path != folder]
    sizes = {path: size(path) for path in folders}
    cache_dir().mkdir(parents=True, exist_ok=True)
    over = needed + size(folder) + sum(sizes.values()) - budget
    short = needed / 0.9 - shutil.disk_usage(cache_dir()).free
    for path in sorted(folders, key=_last_used):
        if max(over, short) <= 0:
            break
        if _evict(path):
            over, short = over - sizes[path], short - sizes[path]
    return max(over, short) <= 0


def size(folder: Path) -> int:
    """Returns the bytes of a folder's files; 0 if it is not there."""
    total = 0
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@contextlib.contextmanager
def claimed(path: Path, patient: bool) -> Iterator[bool]:
    """Yields whether what is to be made at `path` is this process's to make; it ends with the process.

    Args:
        patient: whether to wait for another one that is at it.
    """
    claim = path.with_name(f"{path.name}.claim")
    with claim.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not patient:
                yield False
                return
            print(f"waiting for another process, which makes {path}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield True
        finally:
            claim.unlink(missing_ok=True)


def seal_of(path: Path) -> Path:
    """Returns where the checksums are of a file of a cache's folder."""
    return path.with_name(f"{path.name}.{checksums.NAME}")


class ArrayCache(Sequence[np.ndarray]):
    """Arrays of one dtype, one for each example; reading one copies nothing.

    Each block of the file is checked when it is first read; an array in a damaged one is made again.

    Args:
        folder: that `get_or_create` filled.
        again: makes the array of a place as it was made at first.
    """

    def __init__(self, folder: Path, again: Callable[[int], np.ndarray]):
        self._used = using(folder)
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


def _last_used(folder: Path) -> float:
    for path in (folder / "used", folder):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime
    return 0.0


def _evict(folder: Path) -> bool:
    """Removes a folder that no process holds."""
    try:
        with (folder / "used").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Renamed first: nobody finds half of it.
            gone = folder.rename(folder.with_name(f"{folder.name}.making-evicted"))
            shutil.rmtree(gone)
    except OSError:
        return False
    return True
