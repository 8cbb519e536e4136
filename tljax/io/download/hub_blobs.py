"""Files in the hub client's cache, whose names are hashes of their content."""

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path


def remove_damaged(paths: Iterable[Path], sha256_of: Callable[[Path], str]) -> list[Path]:
    """Removes the files that are not what their names say, with the links to them, and returns the links.

    Args:
        paths: links in a snapshot, as the client lays it out; what is none, or not there, is left alone.
        sha256_of: a file's SHA-256, perhaps known already.
    """
    removed = []
    for path in paths:
        blob = path.resolve()
        if blob.parent.name == "blobs" and blob.is_file() and not _is_whole(path, blob.name, sha256_of):
            path.unlink()
            blob.unlink()
            removed.append(path)
    return removed


def _is_whole(path: Path, name: str, sha256_of: Callable[[Path], str]) -> bool:
    """Whether a file has the hash that is its name: SHA-256 of a large file, else Git's own; any, if it is neither."""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return sha256_of(path) == name
    if re.fullmatch(r"[0-9a-f]{40}", name):
        content = path.read_bytes()
        return name == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return True
