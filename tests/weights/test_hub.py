"""Repositories in the layout of the real hub, made from the goldens, fetched by the real client in its own process."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.conftest import GOLDEN, ROOT
from tests.weights.test_files import assert_same, shard, tensor, torch_save
from tljax.weights.readers import files

BERT, VIT = GOLDEN / "hf_bert_cls" / "weights.safetensors", GOLDEN / "hf_vit" / "weights_hub.safetensors"
OLD = GOLDEN / "timm_resnet_basic" / "weights.safetensors"
SENTENCES = GOLDEN / "st_xlmr_mean_dense"
COMMIT, EARLIER = "c" * 40, "b" * 40


def make_repositories(root: Path) -> dict[str, dict[str, bytes]]:
    """Sharded with a tokenizer; one file of either kind with preprocessing; and only what torch saved, in a folder."""
    for name in ("bert", "old"):
        (root / name).mkdir()
    shard(load_file(BERT), root / "bert")
    facts = json.loads((BERT.parent / "case.json").read_text())
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "transfer", "learning"]
    (root / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"} | facts["constructor"]["config"]))
    (root / "bert" / "vocab.txt").write_text("\n".join(words))
    (root / "bert" / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    (root / "bert" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "WordPiece"}}))
    torch_save(
        OrderedDict((name, tensor(array)) for name, array in load_file(OLD).items()), root / "old" / "pytorch_model.bin"
    )
    read = {name: {file.name: file.read_bytes() for file in (root / name).iterdir()} for name in ("bert", "old")}
    vit = {
        "model.safetensors": VIT.read_bytes(),
        "pytorch_model.bin": b"not this one",
        "config.json": b'{"model_type": "vit"}',
        "preprocessor_config.json": b'{"image_mean": [0.5, 0.5, 0.5]}',
        "README.md": b"# not fetched",
    }
    nested = {f"large/{name}": content for name, content in read["bert"].items()}
    dense = {str(file.relative_to(SENTENCES)): file.read_bytes() for file in SENTENCES.rglob("*") if file.is_file()}
    repositories = {"org/bert": read["bert"], "org/vit": vit, "org/old": read["old"] | nested, "org/gated": vit}
    return repositories | {"org/sentences": dense}


class Hub(http.server.ThreadingHTTPServer):
    """As much of the hub as the client asks for: `/org/repo/resolve/REVISION/FILE` and the headers it reads."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories = repositories
        self.truncated = ""  # a file of which half the bytes are sent
        self.token = ""  # lets one into what is gated
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        if "/resolve/" not in self.path:
            return self.refuse(404, "", "The client asks for more than files, and does without")
        self.server.requests.append(f"{self.command} {self.path}")
        organisation, name, _, revision, file = self.path.lstrip("/").split("/", 4)
        repository = self.server.repositories.get(f"{organisation}/{name}")
        let_in = name != "gated" or self.headers["authorization"] == f"Bearer {self.server.token}"
        if repository is None:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if not let_in:
            return self.refuse(401, "GatedRepo", f"Access to model {organisation}/{name} is restricted.")
        if revision not in ("main", "v1", COMMIT, EARLIER):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit = EARLIER if revision in ("v1", EARLIER) else COMMIT
        if file not in repository:
            return self.refuse(404, "EntryNotFound", "Entry not found", commit)
        return self.send(file, repository[file], commit)

    def refuse(self, status: int, code: str, message: str, commit: str = ""):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, file: str, content: bytes, commit: str):
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if file == self.server.truncated else content)
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "made").mkdir()
    hub = Hub(make_repositories(tmp_path / "made"))
    yield hub
    hub.stop()


# Between its tries the hub's client waits for half a minute in all; here a hundredth of that.
CLIENT = """
import sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 100)
from tljax.errors import InputError
from tljax.io.download.fetch import fetch
try:
    print(fetch(*sys.argv[1:]))
except InputError as error:
    sys.exit(f"InputError {error}")
"""


@pytest.fixture
def client(tmp_path, hub):
    """Fetches in a process of its own: the client reads its environment when it is imported."""

    def run(uri: str, sha256: str = "", **environment: str) -> subprocess.CompletedProcess:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        clean |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", CLIENT, uri, sha256]
        return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True)

    return run


def fetched(done: subprocess.CompletedProcess) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def refused(done: subprocess.CompletedProcess) -> str:
    """The one line that says why not."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("InputError")]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1 and done.stderr.rstrip().endswith(lines[0]), done.stderr
    return lines[0].removeprefix("InputError ")


def names_beside(path: Path) -> set[str]:
    return {other.name for other in path.parent.iterdir()}


def test_a_sharded_repository_with_its_configuration_and_tokenizer(hub, client):
    path = fetched(client("hf://org/bert"))
    assert path.name == "model.safetensors.index.json" and path.parent.name == COMMIT
    assert_same(files.read(path), load_file(BERT))
    for name, content in hub.repositories["org/bert"].items():
        assert (path.parent / name).read_bytes() == content
    assert json.loads((path.parent / "config.json").read_text())["kwargs"]["hidden_size"] == 36


def test_safetensors_come_before_what_torch_saved_and_only_what_belongs_to_them_is_brought(client):
    path = fetched(client("hf://org/vit"))
    assert_same(files.read(path), load_file(VIT))
    assert names_beside(path) == {"model.safetensors", "config.json", "preprocessor_config.json"}


def test_a_sentence_encoder_comes_with_its_dense_layer(client):
    path = fetched(client("hf://org/sentences"))
    assert {"2_Dense", "1_Pooling", "modules.json", "tokenizer.json"} < names_beside(path)
    assert_same(
        files.read(path.parent / "2_Dense" / "model.safetensors"), load_file(SENTENCES / "2_Dense/model.safetensors")
    )


def test_a_repository_that_has_only_what_torch_saved(client):
    path = fetched(client("hf://org/old"))
    assert path.name == "pytorch_model.bin"
    assert_same(files.read(path), load_file(OLD))


def test_a_named_file_comes_alone_and_a_named_index_with_its_shards(hub, client):
    path = fetched(client("hf://org/old/large/model.safetensors.index.json@v1"))
    assert path.parent.parts[-2:] == (EARLIER, "large")
    assert_same(files.read(path), load_file(BERT))
    assert names_beside(path) == {name for name in hub.repositories["org/bert"] if name.startswith("model")}


def test_a_revision_is_pinned_and_then_needs_no_hub_for_the_weights(hub, client):
    assert fetched(client(f"hf://org/vit@{EARLIER}")).parent.name == EARLIER
    hub.requests.clear()
    assert fetched(client(f"hf://org/vit@{EARLIER}")).parent.name == EARLIER
    assert hub.requests == []


def test_a_token_opens_what_is_gated(hub, client):
    hub.token = "hf_secret"
    assert "org/gated is gated: ask for access at" in refused(client("hf://org/gated", HF_TOKEN="hf_other"))
    assert_same(files.read(fetched(client("hf://org/gated", HF_TOKEN="hf_secret"))), load_file(VIT))


@pytest.mark.parametrize("uri", ["hf://org/bert", "hf://org/vit", "hf://org/old@v1"])
def test_offline_with_a_warm_cache(hub, client, uri):
    path = fetched(client(uri))
    hub.requests.clear()
    done = client(uri, HF_HUB_OFFLINE="1")
    assert fetched(done) == path
    assert hub.requests == []


@pytest.mark.parametrize("uri", ["hf://org/vit", "hf://org/bert"])
def test_out_of_reach_with_a_warm_cache(hub, client, uri):
    path = fetched(client(uri))
    hub.stop()
    assert fetched(client(uri)) == path
    assert_same(files.read(path), load_file({"hf://org/vit": VIT, "hf://org/bert": BERT}[uri]))


def test_offline_with_a_cold_cache(client, tmp_path):
    message = refused(client("hf://org/bert", HF_HUB_OFFLINE="1"))
    assert message.startswith("hf://org/bert: the hub did not give it: ")
    assert "out of reach (or HF_HUB_OFFLINE is set), and it is not in" in message
    assert str(tmp_path / "hf" / "hub") in message


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf://org/none", "no repository org/none at {hub}, or a private one: check the name, or set HF_TOKEN"),
        ("hf://org/vit@v9", "org/vit has no branch, tag or commit 'v9': see {hub}/org/vit/commits"),
        (f"hf://org/vit@{'a' * 40}", f"org/vit has no branch, tag or commit '{'a' * 40}'"),
        ("hf://org/gated", "org/gated is gated: ask for access at {hub}/org/gated, then set HF_TOKEN"),
        ("hf://org/vit/absent.npz", "org/vit has no absent.npz; name a file it has"),
        ("hf://org/bad..name", "HFValidationError"),
    ],
)
def test_what_the_hub_refuses_is_one_line_and_leaves_nothing(hub, client, tmp_path, uri, message):
    found = refused(client(uri))
    assert found.startswith(f"{uri}: the hub did not give it: ")
    assert message.format(hub=hub.url) in found
    assert [path for path in (tmp_path / "hf").rglob("*") if path.is_file() and path.parent.name == "blobs"] == []


def test_a_repository_without_weights_and_an_index_without_its_shard(hub, client):
    hub.repositories["org/docs"] = {"README.md": b"#"}
    wanted = "model.safetensors or model.safetensors.index.json or pytorch_model.bin or pytorch_model.bin.index.json"
    assert f"org/docs has no {wanted}; name a file it has" in refused(client("hf://org/docs"))
    del hub.repositories["org/bert"]["model-00002-of-00003.safetensors"]
    assert "org/bert lacks model-00002-of-00003.safetensors, which model.safetensors.index.json names" in refused(
        client("hf://org/bert")
    )


@pytest.mark.parametrize(
    ("uri", "file", "weights"),
    [
        ("hf://org/vit", "model.safetensors", VIT),
        ("hf://org/bert", "model-00003-of-00003.safetensors", BERT),
    ],
)
def test_a_download_that_breaks_off_leaves_nothing_half_written(hub, client, tmp_path, uri, file, weights):
    hub.truncated = file
    message = refused(client(uri))
    assert message.startswith(f"{uri}: the hub did not give it: ")
    assert "nothing half-fetched was kept, run it again" in message
    served = {content for repository in hub.repositories.values() for content in repository.values()}
    for path in (tmp_path / "hf").rglob("blobs/*"):
        assert path.read_bytes() in served, f"half a file is left in {path}"

    hub.truncated = ""
    path = fetched(client(uri))
    assert_same(files.read(path), load_file(weights))
    assert (path.parent / file).read_bytes() == hub.repositories[uri.removeprefix("hf://")][file]


def test_a_large_file_that_is_never_sent_whole_is_not_asked_for_for_ever(hub, client, tmp_path):
    hub.repositories["org/vit"]["model.safetensors"] = bytes(21 << 20)  # the client's chunks are of 10 MiB
    hub.truncated = "model.safetensors"
    assert "OSError: the connection breaks off again and again; nothing half-fetched was kept" in refused(
        client("hf://org/vit")
    )
    assert [path for path in (tmp_path / "hf").rglob("blobs/*") if path.is_file()] == []


def test_a_pinned_checksum(hub, client):
    content = hub.repositories["org/vit"]["model.safetensors"]
    fetched(client("hf://org/vit", hashlib.sha256(content).hexdigest()))
    assert "fix the pinned sha256 or the file" in refused(client("hf://org/vit", "0" * 64))
    bert = hub.repositories["org/bert"]
    parts = ["model.safetensors.index.json", *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))]
    fetched(client("hf://org/bert", hashlib.sha256(b"".join(bert[name] for name in parts)).hexdigest()))
