"""Objects in a bucket: conditional writes, which locks need, and local copies for what reads files alone."""

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from tljax.errors import InputError, message_of

SCHEMES = ("gs", "s3", "az")


class Conflict(OSError):
    """The object has changed since the version that a conditional write named."""


def scheme_of(path: str | os.PathLike) -> str:
    """Returns the URL scheme of a path, without `://`; empty for a path on a disk."""
    scheme, separator, _ = os.fspath(path).partition("://")
    return scheme if separator else ""


def to_path(path: str | os.PathLike) -> epath.Path:
    """Returns a path on a disk as it is, or a URL whose kind of bucket can be used here.

    Raises:
        InputError: another scheme, or the package for this one is missing.
    """
    scheme = scheme_of(path)
    if not scheme:
        return epath.Path(path)
    known = ", ".join(f"{name}://" for name in SCHEMES)
    if scheme not in SCHEMES:
        raise InputError(f"{os.fspath(path)}: storage of kind {scheme}:// is not supported; give a path, or {known}")
    if not os.fspath(path).partition("://")[2].strip("/"):
        raise InputError(f"{os.fspath(path)}: names no bucket; write {scheme}://BUCKET/PATH")
    try:
        filesystem(path)
    except ImportError as error:
        raise InputError(f"{os.fspath(path)}: {scheme}:// needs a package that is not installed: {error}") from error
    return epath.Path(path)


def filesystem(path: str | os.PathLike) -> Any:
    """Returns the fsspec file system of a URL; listings are asked for anew each time, as other machines write, too."""
    import fsspec

    scheme = scheme_of(path)
    for protocol in {scheme, "gcs" if scheme == "gs" else scheme}:  # etils asks for `gcs`
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gcs" if scheme == "gs" else scheme)


def version_of(path: epath.Path) -> str:
    """Returns what identifies an object's present content in a conditional write; empty if there is no object."""
    try:
        details = filesystem(path).info(os.fspath(path))
    except FileNotFoundError:
        return ""
    return _version(details)


def read(path: epath.Path) -> bytes:
    """Returns an object's content, by one request: one that asks for its version first fails while others write it."""
    return filesystem(path).cat_file(os.fspath(path))


def modified(path: epath.Path) -> float:
    """Returns when an object was last written, in seconds since 1970, by the bucket's clock."""
    return filesystem(path).modified(os.fspath(path)).timestamp()


def put(path: epath.Path, content: bytes, expected: str) -> str:
    """Writes an object only if it is still the one that `expected` names; returns its new version.

    By S3's `If-Match` and `If-None-Match`, and Google's `ifGenerationMatch`. Other stores are asked for the version and
    written then, which two writers at the same moment can both pass.

    Args:
        path: of the object.
        content: all of it.
        expected: its version, of `version_of` or of the last `put`; empty where there must be no object.

    Raises:
        Conflict: another writer was there first.
    """
    system, scheme = filesystem(path), scheme_of(path)
    bucket, _, key = os.fspath(path).partition("://")[2].partition("/")
    try:
        if scheme == "s3" and hasattr(system, "call_s3"):
            condition = {"IfMatch": expected} if expected else {"IfNoneMatch": "*"}
            return system.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)["ETag"]
        if scheme == "gs" and hasattr(system, "call"):
            answer = system.call(
                "POST",
                f"{system._location}/upload/storage/v1/b/{bucket}/o",
                uploadType="media",
                name=key,
                ifGenerationMatch=expected or "0",
                headers={"Content-Type": "application/octet-stream"},
                data=content,
                json_out=True,
            )
            return str(answer["generation"])
    except Exception as error:
        if _is_conflict(error, expected):
            raise Conflict(errno.EEXIST, "another process has written it", os.fspath(path)) from error
        raise
    if version_of(path) != expected:
        raise Conflict(errno.EEXIST, "another process has written it", os.fspath(path))
    system.pipe_file(os.fspath(path), content)
    return version_of(path)


def remove(path: epath.Path, expected: str) -> None:
    """Removes an object if it is still the one that `expected` names; nothing happens if it is not."""
    if version_of(path) == expected:
        path.unlink(missing_ok=True)


def objects(url: str) -> dict[str, tuple[int, str]]:
    """Returns the objects at or below a URL: their names relative to it, with size in bytes and version.

    An object with the URL's own name is `""`.

    Raises:
        InputError: there is none, or the bucket cannot be read.
    """
    to_path(url)
    prefix = url.partition("://")[2].rstrip("/")
    try:
        details = filesystem(url).find(url, detail=True)
    except Exception as error:  # each store's client has kinds of its own
        raise InputError(f"{url}: cannot be read ({message_of(error)})") from error
    if not details:
        raise InputError(f"{url}: no such file or folder")
    return {
        name.removeprefix(prefix).lstrip("/"): (info["size"], _version(info))
        for name, info in sorted(details.items())
        if not name.endswith("/")
    }


def download(url: str, names: Iterable[str], folder: Path) -> None:
    """Copies objects below a URL into a folder on this machine.

    Args:
        url: of a folder or an object.
        names: the objects, as `objects` gives them.
        folder: where to.

    Raises:
        InputError: one cannot be read, or its name would lie outside the folder.
    """
    system = filesystem(url)
    for name in names:
        source = f"{url.rstrip('/')}/{name}".rstrip("/")
        local = folder / (name or source.rpartition("/")[2])
        if folder.resolve() not in local.resolve().parents:
            raise InputError(f"{source}: no name for a file on a disk")
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            system.get_file(source, str(local))
        except Exception as error:  # each store's client has kinds of its own
            raise InputError(f"{source}: cannot be read ({message_of(error)})") from error


def _version(details: Mapping[str, Any]) -> str:
    """Returns what identifies an object's content, in the word that its store has for it."""
    return str(next(filter(None, map(details.get, ("generation", "ETag", "etag", "created"))), ""))


def _is_conflict(error: BaseException, expected: str) -> bool:
    """Returns whether a store refused a conditional write because its condition did not hold."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code")
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                return True
            if code in ("NoSuchKey", "404") and expected:
                return True
        if getattr(error, "code", None) in (412, "412") or isinstance(error, FileExistsError):
            return True
        error = error.__cause__
    return False
