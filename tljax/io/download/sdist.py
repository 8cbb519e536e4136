"""Source distributions from the index that pip is configured for. pip itself would run their code to read metadata."""

import ast
import base64
import gzip
import hashlib
import html.parser
import io
import re
import ssl
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from tljax.errors import InputError
from tljax.io.checked_files import MAX_EXPANSION, SMALL

SUFFIX = ".tar.gz"
_SECTIONS = (":env:", "download", "global")  # of pip's configuration; the first that sets a key decides, as in pip
_HTML = "application/vnd.pypi.simple.v1+html, text/html;q=0.5"


def download(package: str, version: str, folder: Path, uri: str) -> None:
    """Downloads `package-version.tar.gz` as the index has it; where the index gives a sha256, it is checked.

    Pages are read as PEP 503 lays them down. `index-url`, `extra-index-url`, `find-links` (a folder, or a page of
    links), `no-index`, `cert` and `timeout` are taken from pip's environment variables and configuration files.

    Args:
        package, version: as on the index.
        folder: where to.
        uri: what errors call it.

    Raises:
        InputError: no page has it, none can be reached, or what came is not what the index says.
    """
    settings, name_and_version, failures = _settings(), _normal(f"{package}-{version}"), []
    for page in _pages(package, settings):
        try:
            for link in _links(page, settings):
                name = urllib.parse.unquote(urllib.parse.urlsplit(link).path.rpartition("/")[2])
                if name.endswith(SUFFIX) and _normal(name.removesuffix(SUFFIX)) == name_and_version:
                    data = _get(link, settings)
                    _check(data, link, uri)
                    (folder / name).write_bytes(data)
                    return
        except OSError as error:  # of urllib, too
            failures.append(f"{_public(page)}: {error}")
    raise InputError(f"{uri}: no {package}-{version}{SUFFIX} found; {'; '.join(failures) or 'no index has one'}")


def member(archive: bytes, name: str, uri: str) -> bytes:
    """Returns a file's bytes out of a `.tar.gz`; nothing is written.

    Args:
        archive: all of its bytes.
        name: of the file in it.
        uri: what errors call it.

    Raises:
        InputError: the archive is damaged, or has no such file.
    """
    try:
        # All of it is unpacked first: tarfile does not miss what is cut off at the end, with gzip's checksum.
        content = _unpacked(archive)
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            files = {entry.name: entry for entry in tar if entry.isreg() and entry.size <= len(content)}
            if name in files:
                return tar.extractfile(files[name]).read()
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{uri}: a damaged archive ({error}); remove it from the cache and fetch it again") from error
    near = [other for other in files if Path(other).suffix == Path(name).suffix][:4]
    raise InputError(f"{uri}: no file {name} in it; it has {', '.join(near) or 'no such files'}")


def _unpacked(archive: bytes) -> bytes:
    """Returns what gzip packed, which is hardly larger of weights.

    Raises:
        ValueError: it is far more than an archive of that size holds.
    """
    limit = MAX_EXPANSION * len(archive) + SMALL
    with gzip.GzipFile(fileobj=io.BytesIO(archive)) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{len(archive)} bytes that become more than {limit}")
    return content


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _settings() -> Mapping[str, str]:
    """Returns pip's configuration: key -> value."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    values: dict[str, str] = {}
    ranks: dict[str, int] = {}
    for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in _SECTIONS and _SECTIONS.index(section) < ranks.get(key, len(_SECTIONS)):
            values[key], ranks[key] = str(ast.literal_eval(value)), _SECTIONS.index(section)
    return values


def _pages(package: str, settings: Mapping[str, str]) -> Iterator[str]:
    """Yields the URLs to look for links at."""
    yield from (_url(place) for place in settings.get("find-links", "").split())
    if settings.get("no-index", "0").lower() in ("1", "true", "yes", "on"):
        return
    from pip._internal.models.index import PyPI  # pip's own default

    indices = [settings.get("index-url") or PyPI.simple_url, *settings.get("extra-index-url", "").split()]
    yield from (f"{_url(index).rstrip('/')}/{_normal(package)}/" for index in indices)


def _url(place: str) -> str:
    return place if re.match(r"[a-z]+://", place) else Path(place).expanduser().absolute().as_uri()


def _links(page: str, settings: Mapping[str, str]) -> list[str]:
    """Returns what a page links to, or the files of a folder that is no page."""
    parts = urllib.parse.urlsplit(page)
    if parts.scheme == "file" and (folder := Path(urllib.request.url2pathname(parts.path))).is_dir():
        if not (folder / "index.html").exists():
            return [path.as_uri() for path in sorted(folder.iterdir())]
        page = (folder / "index.html").as_uri()
    reader = _Links()
    reader.feed(_get(page, settings).decode(errors="replace"))
    return [urllib.parse.urljoin(page, link) for link in reader.links]


class _Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag == "a" and (link := dict(attrs).get("href")):
            self.links.append(link)


def _get(url: str, settings: Mapping[str, str]) -> bytes:
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host, fragment="")))
    request.add_header("Accept", _HTML)
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    context = ssl.create_default_context(cafile=settings.get("cert"))
    with urllib.request.urlopen(request, timeout=_timeout(settings), context=context) as answer:
        return answer.read()


def _timeout(settings: Mapping[str, str]) -> float:
    """Returns seconds; `PIP_DEFAULT_TIMEOUT` is the older name of `PIP_TIMEOUT`."""
    return float(settings.get("timeout") or settings.get("default-timeout") or 60)


def _public(url: str) -> str:
    """Returns a URL without its password."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _check(data: bytes, link: str, uri: str) -> None:
    pinned = re.search(r"sha256=([0-9a-fA-F]{64})", urllib.parse.urlsplit(link).fragment)
    if pinned and hashlib.sha256(data).hexdigest() != pinned[1].lower():
        raise InputError(f"{uri}: its file has not the sha256 {pinned[1]} of the index: cut off, or tampered with")
