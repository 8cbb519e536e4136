"""Folders of `TLJAX_CACHE` with what can be made again: their names, who uses them, and which go for want of room."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tljax.io import checksums
from tljax.io.download.fetch import cache_dir

KINDS = ("decoded", "tokens", "features")  # what `make_room` counts and evicts


def name(kind: str, *parts: object) -> Path:
    """Returns where what is made of `parts` is kept; the same for every run that makes it."""
    key = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
    return cache_dir() / kind / key[:24]


def using(folder: Path) -> IO[bytes]:
    """Makes a folder where there is none, notes that it is used now, and holds it: it stays until this is closed."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            held = (folder / "used").open("ab")
            fcntl.flock(held, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(held.fileno()), (folder / "used").stat()):
                os.utime(folder / "used")
                return held
            held.close()  # evicted in between


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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yields a file to write, which becomes `path` when the block ends well, sealed, and is on the disk by then."""
    making = path.with_name(f"{path.name}.making")  # the same each time: what a killed process left is taken up
    with making.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    checksums.seal(seal_of(path), {path.name: making})
    making.replace(path)


def seal_of(path: Path) -> Path:
    """Returns where the checksums are of what `replacing` wrote."""
    return path.with_name(f"{path.name}.{checksums.NAME}")


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
