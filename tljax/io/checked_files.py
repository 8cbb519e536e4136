"""Checks of files that come from anywhere, before more is read of them than they hold."""

import json
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tljax.errors import InputError
from tljax.io.strict_json import without_duplicates
from tljax.streams import in_one_line

MAX_JSON = 8 << 20  # bytes; a checkpoint's names are some hundred bytes an array
MAX_EXPANSION = 100  # deflate makes zeros 1000 times smaller, and weights hardly
SMALL = 16 << 20

# How a file starts that was saved in place of the one that was meant.
_OTHERS = {
    b"version https://git-lfs": "is a git-lfs pointer, not the file itself: run `git lfs pull` where it came from",
    b"<!doctype html": "is a web page, not the file itself: fetch it by its link for downloads (`resolve`, not `blob`)",
    b"<html": "is a web page, not the file itself: fetch it by its link for downloads (`resolve`, not `blob`)",
}


def check_file(path: Path) -> None:
    """Checks that something is a file that can be read to its end, and not one that stands for another.

    Raises:
        InputError: it is missing, empty, a folder, a pipe, a device, a loop of links, a web page or a git-lfs pointer.
    """
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    kind = stat.S_IFMT(facts.st_mode)
    if kind != stat.S_IFREG:
        raise InputError(f"{path}: is {_NO_FILES.get(kind, 'no plain file')}; name a file")
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not facts.st_size:
        raise InputError(f"{path}: is empty; fetch it anew")
    for prefix, message in _OTHERS.items():
        if start.startswith(prefix):
            raise InputError(f"{path}: {message}")


_NO_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def one_line(message: str, length: int = 600) -> str:
    """Returns a message, of which a part came out of a file, as one printable line of at most `length` characters."""
    line = in_one_line(message[: 2 * length])
    return line if len(line) <= length and len(message) <= 2 * length else f"{line[: length - 1]}…"


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        InputError: it cannot be read, is larger than any such file, or is no JSON object.
    """
    check_file(path)
    size = path.stat().st_size
    if size > MAX_JSON:
        raise InputError(f"{path}: {size} bytes, far more than such a file has; fetch it anew")
    try:
        content = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise InputError(one_line(f"{path}: damaged, no JSON ({error}); fetch it anew")) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object ({{…}}) but a {type(content).__name__}; fetch it anew")
    return content


def parse_json(content: bytes) -> Any:
    """Returns what JSON out of another library's file says; a byte order mark is dropped.

    Raises:
        ValueError: it is no JSON, or has a key twice.
        RecursionError: it is nested too deeply.
    """
    return json.loads(content.decode("utf-8-sig"), object_pairs_hook=without_duplicates)


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive.

    Raises:
        ValueError: it claims to hold far more than a file of its size can, or two files of one name.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        claimed, size = sum(member.file_size for member in members), path.stat().st_size
        if claimed > MAX_EXPANSION * size + SMALL:
            raise ValueError(f"an archive of {size} bytes that claims to hold {claimed}")
        if members:
            name, count = Counter(member.filename for member in members).most_common(1)[0]
            if count > 1:
                raise ValueError(f"{count} files called {name!r} in it")
        yield archive
