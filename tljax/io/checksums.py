"""Checksums of files that are kept to be used again: damage on a disk is seen before a number is computed from it."""

import json
import os
import zlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tljax.errors import InputError
from tljax.io import storage

NAME = "sealed.json"
BLOCK = 2**20  # bytes of each checksum
_LARGE = 16 * BLOCK  # bytes from which threads share the work
_THREADS = min(8, os.cpu_count() or 1)
_WHOLE: set[tuple[str, int, int, int]] = set()  # files that this process found whole, as `stat` describes them

Checksums = dict[str, list[Any]]  # file -> bytes, and the CRC-32 of each block; none where only size counts


class Damaged(InputError):
    """A file that is kept is not as it was written."""


def seal(path: Path, files: Mapping[str, Path], by_size: Collection[str] = ()) -> None:
    """Writes the sizes and checksums of files to `path`, whole or not at all.

    Args:
        path: of the seal, in the folder that the files' names are relative to.
        files: name -> where its content is now.
        by_size: names of which only the size is noted, as their format has checksums of its own.
    """
    content = {name: [file.stat().st_size, [] if name in by_size else _crcs(file)] for name, file in files.items()}
    storage.write_whole(path, json.dumps({"files": content, "crc": _crc_of(content)}).encode())


def seal_folder(folder: Path, by_size: str = "") -> None:
    """Seals all files below a folder; of those with `by_size` in their names only the size."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    files = {str(path.relative_to(folder)): path for path in paths}
    seal(folder / NAME, files, [name for name in files if by_size and by_size in name])


def checksums(path: Path) -> Checksums:
    """Reads a seal.

    Raises:
        Damaged: it is missing, or not as it was written.
    """
    try:
        written = json.loads(path.read_bytes())
        if _crc_of(written["files"]) == written["crc"]:
            return written["files"]
        reason = "has other content than was written"
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        reason = "is not as it was written"
    raise Damaged(f"{path.name}: {reason}")


def wrong(path: Path, only: Collection[str] = ()) -> str:
    """Returns what is not as it was sealed, in words; empty if all is. A process reads each file once.

    Args:
        path: of the seal.
        only: names of the files to look at; all by default.
    """
    try:
        sizes_and_crcs = checksums(path)
        for name in only or sizes_and_crcs:
            size, crcs = sizes_and_crcs[name]
            file = path.parent / name
            state = (str(file), *stamp(file))
            if state[1] != size:
                return f"{name} has {state[1]} bytes, not {size}"
            if crcs and state not in _WHOLE:
                if _crcs(file) != crcs:
                    return f"{name} has other bytes than were written"
                _WHOLE.add(state)
    except KeyError as error:
        return f"{error.args[0]} is not sealed"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except Damaged as error:
        return str(error)
    return ""


def wrong_folder(folder: Path) -> str:
    """Returns what is wrong with a folder that `seal_folder` sealed, in words; empty if nothing is."""
    return wrong(folder / NAME)


def stamp(path: Path) -> tuple[int, int, int]:
    """Returns what stands for a file's content, as in make: size, time of the content, and time of any change.

    The last cannot be set, so that it tells of a file that was replaced by one of the same size and time.

    Raises:
        OSError: there is no such file.
    """
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class Blocks:
    """The checksums of one file's bytes, each block compared when it is first asked for.

    Args:
        content: uint8 [bytes], a memory map.
        crcs: of its blocks, as in `Checksums`.
    """

    def __init__(self, content: np.ndarray, crcs: list[int]):
        self._content, self._crcs = content, crcs
        self._whole = np.zeros(len(crcs), bool)

    def whole(self, start: int, stop: int) -> bool:
        """Returns whether the bytes [start, stop) are as they were written."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        if self._whole[first:last].all():
            return True
        for number in range(first, last):
            block = self._content[number * BLOCK : (number + 1) * BLOCK]
            self._whole[number] = self._whole[number] or zlib.crc32(block) == self._crcs[number]
        return bool(self._whole[first:last].all())


def _crcs(path: Path) -> list[int]:
    """Returns the CRC-32 of each block of a file."""
    size = path.stat().st_size
    with path.open("rb") as file:

        def crc(start: int) -> int:
            return zlib.crc32(os.pread(file.fileno(), BLOCK, start))

        starts = range(0, size, BLOCK)
        if size < _LARGE:
            return list(map(crc, starts))
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(crc, starts))


def _crc_of(content: Checksums) -> int:
    return zlib.crc32(json.dumps(content).encode())
