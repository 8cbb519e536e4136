"""Checkpoints of several files: an index beside its shards."""

from pathlib import Path

from tljax.errors import InputError
from tljax.io.checked_files import check_file, one_line, read_json


def weight_map(index: Path) -> dict[str, str]:
    """Returns what a sharded checkpoint's index says: name of an array -> name of the file beside it.

    Raises:
        InputError: it says no such thing.
    """
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise InputError(f"{index}: 'weight_map' is no table of arrays and their files; fetch it anew")
    for file in files.values():
        if not isinstance(file, str) or Path(file).name != file or is_index(Path(file)):
            raise InputError(one_line(f"{index}: the shard {file!r} is not the name of a file beside it"))
    return files


def shards(index: Path) -> list[Path]:
    """Returns a sharded checkpoint's files, by name.

    Raises:
        InputError: one of them is missing.
    """
    paths = [index.parent / file for file in sorted(set(weight_map(index).values()))]
    for path in paths:
        if not path.exists():
            raise InputError(f"{index}: the shard {path.name} is missing; put it beside the index")
        check_file(path)
    return paths


def is_index(path: Path) -> bool:
    """Returns whether a file is the index of a sharded checkpoint."""
    return path.name.endswith(".index.json")


def parts(path: Path) -> list[Path]:
    """Returns all files of a checkpoint: itself, and after an index its shards by name."""
    return [path, *(shards(path) if is_index(path) else [])]
