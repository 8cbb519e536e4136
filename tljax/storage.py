"""Files of a run, on a disk or in a bucket: written whole or not at all, checked, tried again where a disk fails."""

import atexit
import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from tljax import buckets, console
from tljax.errors import InputError

T = TypeVar("T")

PAUSES = (1.0, 4.0, 10.0, 30.0)  # seconds before each further try
TEMPORARY = ".tmp"  # the end of the name of what is not whole yet

Files = dict[str, list[Any]]  # relative name -> [size in bytes, SHA-256]


def locate(path: str | os.PathLike) -> epath.Path:
    """Returns the absolute path of what is on a disk, or a bucket's URL, as `buckets.to_path` does."""
    place = buckets.to_path(path)
    return place if is_remote(place) else epath.Path(Path(place).expanduser().absolute())


def is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def write_whole(path: epath.Path, content: bytes) -> None:
    """The file appears with all of its content, or stays as it was. A bucket does so by itself."""
    if is_remote(path):
        path.write_bytes(content)
        return
    temporary = f"{path}{TEMPORARY}"  # always the same name, so that what a killed process left is taken up
    with open(temporary, "wb") as file:  # noqa: PTH123
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileNotFoundError):  # another process that writes the same has just done so
        os.replace(temporary, path)  # noqa: PTH105


def files_of(folder: epath.Path) -> Files:
    """All files below a folder, by relative name, with size and SHA-256."""
    return {name: [path.stat().length, _sha256(path)] for name, path in sorted(_walk(folder).items())}


def check(folder: epath.Path, wanted: Files) -> str:
    """What is wrong with the files that a folder should have, in words; empty if nothing is."""
    for name, (size, sha256) in wanted.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().length != size:
            return f"{name} has {path.stat().length} bytes, not {size}"
        if _sha256(path) != sha256:
            return f"{name} has other bytes than were written"
    return ""


def copy(source: epath.Path, target: epath.Path) -> None:
    """All files below a folder, to another on whatever system."""
    for name, path in _walk(source).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as read, (target / name).open("wb") as write:
            shutil.copyfileobj(read, write, 1 << 24)


def local(folder: epath.Path) -> Path:
    """The folder on this machine: itself, or a copy that is there as long as the process."""
    if not is_remote(folder):
        return Path(folder)
    here = Path(tempfile.mkdtemp(prefix="tljax-"))
    atexit.register(shutil.rmtree, here, ignore_errors=True)
    copy(folder, epath.Path(here))
    return here


def persistently(write: Callable[[], T], what: str) -> T:
    """`write()`, tried again for three quarters of a minute if the disk is full, read-only, slow or gone.

    Raises:
        InputError: it never worked.
    """
    for pause in (*PAUSES, None):
        try:
            return write()
        except Exception as error:  # Orbax and buckets' clients wrap what the system said in kinds of their own
            told = f"{what}: cannot be written ({reason(error)})"
            if pause is None:
                raise InputError(f"{told}, tried {len(PAUSES) + 1} times in {sum(PAUSES):g} s") from error
            console.console.print(f"{told}; again in {pause:g} s")
            time.sleep(pause)
    raise AssertionError


def reason(error: BaseException) -> str:
    """What first went wrong, in one line."""
    root = error
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__
    told = getattr(root, "strerror", None) or f"{type(root).__name__}: {root}"
    return " ".join(told.split())[:300]


def children(folder: epath.Path) -> list[epath.Path]:
    """Returns what a folder has, by name; nothing where it is not there, as a bucket's folder before its first object."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _walk(folder: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
    found = {}
    for path in children(folder):
        name = f"{prefix}{path.name}"
        found |= _walk(path, f"{name}/") if path.is_dir() else {name: path}
    return found


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
