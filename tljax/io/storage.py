"""Files of a run, on a disk or in a bucket: written whole or not at all, checked, tried again where a disk fails."""

import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import IO, Any, TypeVar

from etils import epath

from tljax import console
from tljax.errors import InputError
from tljax.io import buckets

T = TypeVar("T")

PAUSES = (1.0, 4.0, 10.0, 30.0)  # seconds before each further try
TEMPORARY = ".tmp"  # the end of the name of what is not whole yet

Files = dict[str, list[Any]]  # relative name -> [size in bytes, SHA-256]


def locate(path: str | os.PathLike) -> epath.Path:
    """Returns the absolute path of what is on a disk, or a bucket's URL, as `buckets.to_path` does."""
    place = buckets.to_path(path)
    return place if is_remote(place) else epath.Path(console.without_dots(Path(place).expanduser()))


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is a bucket's URL."""
    return "://" in os.fspath(path)


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file that has all of its content, or stays as it was."""
    with replacing(path) as file:
        file.write(content)


def read(path: epath.Path) -> bytes:
    """Returns a file's content, whole even while another process writes it anew."""
    return buckets.read(path) if is_remote(path) else path.read_bytes()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Yields a file to write, which becomes `path`, on its disk or in its bucket, when the block ends well.

    On a disk its name is this writer's own, so that two writers of one path do not tear each other's. What writers of
    this path left who were killed is removed. A link stays one, to the new content; a device or a pipe is written to.
    """
    if is_remote(path):
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            with epath.Path(path).open("wb") as target:
                shutil.copyfileobj(file, target, 1 << 24)
        return
    path = Path(path)
    if path.exists() and not path.is_file():
        with path.open("wb") as target:
            yield target
        return
    path = Path(os.path.realpath(path))
    sweep(path.parent, path.name)
    file = _own_temporary(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(file.name).unlink()
        raise


def sweep(folder: str | os.PathLike, name: str = "") -> None:
    """Removes temporary files of writers that are dead from a folder: those of a file, or of all."""
    if is_remote(folder):  # where nothing is ever half written
        return
    with contextlib.suppress(OSError):
        for path in [path for path in Path(folder).iterdir() if path.name.endswith(TEMPORARY)]:
            if not name or path.name.startswith(f"{name}."):
                with contextlib.suppress(OSError), path.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who writes to it holds it
                    path.unlink()


def _own_temporary(path: Path) -> IO[bytes]:
    """Returns a new file beside `path`, locked as long as it is open, so that `sweep` knows that its writer lives."""
    while True:
        file = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}").open("xb")
        with contextlib.suppress(OSError):  # a disk that knows no locks, where none is swept either
            fcntl.flock(file, fcntl.LOCK_EX)
        if Path(file.name).exists():  # else it was swept before it was locked
            return file
        file.close()


def append(path: str | os.PathLike, content: bytes, torn: bytes = b"") -> None:
    """Adds lines to a file on a disk: all of them, or none.

    Args:
        path: of the file.
        content: the lines.
        torn: the half line that the file ends with, which they replace.

    Raises:
        OSError: the disk does not take them; the file has the lines that it had.
    """
    with open(path, "ab", buffering=0) as file:  # noqa: PTH123 (unbuffered: nothing is left to be written later)
        end = file.seek(0, os.SEEK_END) - len(torn)
        file.truncate(end)
        try:
            while content:
                content = content[file.write(content) :]
        except BaseException:
            file.truncate(end)
            raise


def last_line(path: str | os.PathLike) -> bytes:
    """Returns what a file on a disk has after the last end of a line; nothing if it is not there."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            size, block = file.seek(0, os.SEEK_END), 1 << 12
            while True:
                start = max(0, size - block)
                file.seek(start)
                _, newline, line = file.read(size - start).rpartition(b"\n")
                if newline or not start:
                    return line
                block *= 2
    except FileNotFoundError:
        return b""


def files_of(folder: epath.Path) -> Files:
    """Returns all files below a folder, by relative name, with size and SHA-256."""
    return {name: [path.stat().length, _sha256(path)] for name, path in sorted(_walk(folder).items())}


def check(folder: epath.Path, files: Files) -> str:
    """Returns what is wrong with the files that a folder should have, in words; empty if nothing is."""
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().length != size:
            return f"{name} has {path.stat().length} bytes, not {size}"
        if _sha256(path) != sha256:
            return f"{name} has other bytes than were written"
    return ""


def read_json(path: epath.Path, mend: str, **kinds: type | UnionType) -> dict[str, Any]:
    """Returns the JSON object that a file holds.

    Args:
        path: of the file.
        mend: what to do where it is damaged, which the error says.
        kinds: keys that it must have, and the type of each one's value.

    Raises:
        InputError: it is none, or has not these keys; file and key are named.
    """
    try:
        content = json.loads(read(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({reason(error)}); {mend}") from error
    return checked(content, str(path), mend, kinds)


def checked(content: Any, where: str, mend: str, kinds: Mapping[str, type | UnionType]) -> dict[str, Any]:
    """Returns what was read from JSON if it is an object with certain keys; else raises as `read_json` does.

    Args:
        content: what was read.
        where: what errors call it.
        mend, kinds: as in `read_json`.
    """
    if not isinstance(content, dict):
        raise InputError(f"{where}: damaged (it holds {_json_kind(content)}, not an object); {mend}")
    for key, kind in kinds.items():
        if key not in content:
            raise InputError(f"{where}: damaged (it has no {key}); {mend}")
        value = content[key]
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise InputError(f"{where}: damaged ({key} is {_json_kind(value)}); {mend}")
    return content


def copy(source: epath.Path, target: epath.Path, last: Collection[str] = ()) -> None:
    """Copies all files below a folder to another, on whatever system.

    Args:
        source: the folder to read.
        target: the folder to write.
        last: names of files that are copied after all others.
    """
    for name, path in sorted(_walk(source).items(), key=lambda item: item[0] in last):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as read, (target / name).open("wb") as write:
            shutil.copyfileobj(read, write, 1 << 24)


def local(folder: epath.Path) -> Path:
    """Returns the folder on this machine: itself, or a copy that is there as long as the process."""
    if not is_remote(folder):
        return Path(folder)
    here = Path(tempfile.mkdtemp(prefix="tljax-"))
    atexit.register(shutil.rmtree, here, ignore_errors=True)
    copy(folder, epath.Path(here))
    return here


def persistently(write: Callable[[], T], name: str) -> T:
    """Returns `write()`, tried again for three quarters of a minute if the disk is full, read-only, slow or gone.

    Args:
        write: what to do.
        name: the name in messages of what is written.

    Raises:
        InputError: it never worked; or `write` raised it.
    """
    for pause in (*PAUSES, None):
        try:
            return write()
        except InputError:  # which no further try mends
            raise
        except Exception as error:  # Orbax and buckets' clients wrap what the system said in kinds of their own
            message = f"{name}: cannot be written ({reason(error)})"
            if pause is None:
                raise InputError(f"{message}, tried {len(PAUSES) + 1} times in {sum(PAUSES):g} s") from error
            console.console.print(f"{message}; again in {pause:g} s")
            time.sleep(pause)
    raise AssertionError


def reason(error: BaseException) -> str:
    """Returns what first went wrong, in one line."""
    root = error
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__
    message = getattr(root, "strerror", None) or f"{type(root).__name__}: {root}"
    return " ".join(message.split())[:300]


def _json_kind(value: Any) -> str:
    """Returns the kind of a value in JSON's words, with its article."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def modified(path: epath.Path) -> float:
    """Returns when a file was last written, in seconds since 1970, by the clock of its disk or bucket."""
    return buckets.modified(path) if is_remote(path) else path.stat().mtime


def children(folder: epath.Path) -> list[epath.Path]:
    """Returns what a folder has, by name; nothing where it is not there, as in a bucket before its first object."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _walk(folder: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
    files = {}
    for path in children(folder):
        name = f"{prefix}{path.name}"
        files |= _walk(path, f"{name}/") if path.is_dir() else {name: path}
    return files


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
