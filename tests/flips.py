"""Flips bits in files that are kept, for tests and benchmarks of what becomes of damage on a disk."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tljax.errors import InputError


def flip(path: Path, rng: np.random.Generator) -> int:
    """Flips one bit of a file, with its times as they were, and returns its place.

    Whoever holds the file open, or maps it, does not see the flip: another file takes its place.
    """
    content, stat = bytearray(path.read_bytes()), path.stat()
    place = int(rng.integers(8 * len(content)))
    content[place // 8] ^= 1 << place % 8
    other = path.with_name(f"{path.name}.flipped")
    other.write_bytes(content)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    return place


def kept_files(folder: Path) -> list[Path]:
    """Every file with content below a folder of a cache, but locks."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return [path for path in paths if path.suffix not in (".lock", ".claim")]


def flip_and_read(
    folder: Path, read: Callable[[], Sequence[np.ndarray]], flips: int, rng: np.random.Generator
) -> Counter[str]:
    """Flips bits one after another, each time in another file, and counts what became of them.

    Args:
        folder: with the files.
        read: what is made from them; the same each time, or an InputError.
        flips: how many.
        rng: which file, and which bit.

    Returns:
        How often what was read was the `same`, was `named` in an error of one line, and was `wrong`; and how often the
        reading after an error was `stuck`, as it failed, too.
    """
    whole, outcomes = read(), Counter[str]()
    for _ in range(flips):
        paths = kept_files(folder)
        path = paths[int(rng.integers(len(paths)))]
        place = flip(path, rng)
        try:
            outcome = "same" if _equal(read(), whole) else "wrong"
        except InputError as error:
            outcome = "named" if len(str(error).splitlines()) == 1 else "long"
            try:
                outcomes["stuck"] += not _equal(read(), whole)
            except InputError:
                outcomes["stuck"] += 1
        outcomes[outcome] += 1
        if outcome not in ("same", "named"):
            print(f"{path}, bit {place}: {outcome}")
    return outcomes


def _equal(arrays: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return len(arrays) == len(others) and all(map(np.array_equal, arrays, others))
