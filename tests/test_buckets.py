"""S3 as moto's server on loopback speaks it, by the real client: what a bucket does that no folder does."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from etils import epath
from moto.server import ThreadedMotoServer

from tests import forks
from tests.conftest import ROOT
from tljax.checkpoints.checkpointer import flatten_state
from tljax.checkpoints.workdir import Workdir
from tljax.cli import predict, report, sweep
from tljax.cli.convert import convert
from tljax.config.schema import BackboneConfig, Experiment, default
from tljax.core.run import Run
from tljax.data import registry
from tljax.errors import InputError
from tljax.evals.evaluate import evaluate
from tljax.io import arrays, buckets, lock, storage
from tljax.io.download.fetch import local_copy
from tljax.io.lock import Lock
from tljax.training.trainer import train
from tljax.weights import pretrained


@pytest.fixture(scope="module")
def s3() -> Iterator[epath.Path]:
    """An empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        epath.backend.fsspec_backend._get_filesystem.cache_clear()  # of a test that had another
        fsspec.filesystem("s3").mkdir("the-bucket")
        yield epath.Path("s3://the-bucket")
    server.stop()


def test_a_conditional_write_is_of_the_version_that_it_names(s3):
    path = s3 / "conditional" / "x"
    assert buckets.version_of(path) == ""
    first = buckets.put(path, b"1", "")
    assert buckets.version_of(path) == first
    for expected in ("", '"another"'):
        with pytest.raises(buckets.Conflict):
            buckets.put(path, b"2", expected)
    second = buckets.put(path, b"3", first)
    assert path.read_bytes() == b"3" and second != first
    buckets.remove(path, first)
    assert path.exists()
    buckets.remove(path, second)
    assert not path.exists()
    with pytest.raises(buckets.Conflict):  # of an object that is gone
        buckets.put(path, b"4", second)


def test_of_two_who_take_a_dead_writers_folder_one_has_it(s3, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    folder = s3 / "locked"
    stopped = Lock(folder)
    stopped.acquire()
    stopped._done.set()  # as a writer that is stopped shows no sign of life
    stopped._beating.join()
    assert lock.writer(folder)["pid"] == os.getpid()
    seen = stopped._sign.read()
    first, second = Lock(folder), Lock(folder)
    assert first._sign.claim(first._content(), seen)
    assert not second._sign.claim(second._content(), seen)
    with pytest.raises(lock.Lost, match="writes there now"):
        stopped.check()
    first.check()
    stopped._sign.renew(stopped._content(), stopped._token)  # as it wakes up
    stopped._sign.remove(stopped._token)
    first.check()
    first._sign.remove(first._token)
    assert lock.writer(folder) is None


def test_an_object_is_read_while_it_is_written_again_and_again(s3):
    path = s3 / "rewritten"
    version = buckets.put(path, b"0" * 300, "")
    done = threading.Event()
    contents: list[bytes] = []

    def read() -> None:
        while not done.is_set():
            contents.append(storage.read(path))

    reader = threading.Thread(target=read)
    reader.start()
    for count in range(60):
        version = buckets.put(path, str(count % 10).encode() * (300 + count), version)
    done.set()
    reader.join()
    assert len(contents) > 5 and all(len(set(content)) == 1 for content in contents)


def test_listings_are_never_old(s3):
    folder = s3 / "listed"
    assert storage.children(folder) == []
    (folder / "a").write_bytes(b"1")
    assert [path.name for path in storage.children(folder)] == ["a"]
    code = "import fsspec; fsspec.filesystem('s3').pipe_file('s3://the-bucket/listed/b', b'2')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [path.name for path in storage.children(folder)] == ["a", "b"]


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (("train", "--config=configs/default.py", "--workdir=memory://a"), "memory://"),
        (("train", "--config=configs/default.py", "--workdir=s3://"), "names no bucket"),
        (("sweep", "--config=configs/sweep.py", "--root=ftp://a/b"), "ftp://"),
        (("report", "ftp://a", "--out=b"), "ftp://"),
        (("convert", "weights", "ftp://a/b"), "ftp://"),
        (("inspect", "--config=configs/default.py", "--lr-find=s3://a/b.png"), "s3://a/b.png"),
    ],
)
def test_a_url_that_cannot_be_taken_is_refused_and_no_folder_made(verb, message, tmp_path, monkeypatch, capsys):
    import tljax.__main__

    config = tmp_path / "config.py"
    config.write_text(
        "from tljax.config import default\n\n\ndef get_config():\n    config = default()\n    config.steps = 1\n"
        "    config.backbone.name = 'resnet18'\n    return config\n\n\ndef sweep():\n    yield {'seed': 1}\n"
    )
    monkeypatch.chdir(tmp_path)
    verb = [f"--config={config}" if word.startswith("--config=") else word for word in verb]
    assert tljax.__main__.main(verb) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1, errors
    assert [path.name for path in tmp_path.iterdir()] == ["config.py"]


def _put(folder: Path, url: epath.Path) -> None:
    fsspec.filesystem("s3").put(str(folder), str(url), recursive=True)


def test_data_in_a_bucket_is_the_data_of_its_folder(s3, shapes, tmp_path):
    _put(shapes, s3 / "data" / "shapes")
    rows = [
        "image,label",
        *(f"{path.relative_to(shapes)},{path.parent.name}" for path in sorted(shapes.rglob("*.png"))),
    ]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    (s3 / "data" / "shapes" / "rows.csv").write_text("\n".join(rows))
    shutil.copytree(shapes, tmp_path, dirs_exist_ok=True)
    config = default().task
    for there, here in (
        (f"folder:{s3}/data/shapes", f"folder:{shapes}"),
        (f"csv:{s3}/data/shapes/rows.csv", f"csv:{tmp_path}/rows.csv"),
    ):
        actual, expected = (registry.load(_task(config, dataset)) for dataset in (there, here))
        assert actual.fingerprint == expected.fingerprint and len(actual.bases["train"].index) == 24
    with pytest.raises(InputError, match="no such file or folder"):
        registry.load(_task(config, f"folder:{s3}/data/none"))


def _task(config, dataset: str):
    config.dataset = dataset
    experiment = default()
    experiment.task, experiment.steps, experiment.backbone.name = config, 1, "resnet18"
    return Experiment.from_config(experiment).task


def test_a_copy_is_made_again_when_an_object_changes_or_the_copy_is_damaged(s3, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path))
    path = s3 / "copied" / "x.txt"
    path.write_bytes(b"one")
    first = local_copy(str(path))
    assert first.read_bytes() == b"one" and local_copy(str(path)) == first
    first.write_bytes(b"0ne")
    assert local_copy(str(path)).read_bytes() == b"one"
    path.write_bytes(b"two")
    assert local_copy(str(path)).read_bytes() == b"two"
    assert capsys.readouterr().err.count("fetching") == 3


def _config(folder: Path, dataset: Path, weights: str, steps: int) -> Path:
    file = folder / "config.py"
    file.write_text(f"""
from tljax.config import default

def get_config():
    config = default()
    config.steps, config.eval_every, config.log_every, config.cache = {steps}, 4, 1, "off"
    config.backbone.weights, config.task.dataset = {weights!r}, "folder:{dataset}"
    config.task.update(image_size=32, batch_size=8)
    config.task.update(train="train[:16]", validation="train[16:20]", test="train[20:]")
    config.optim.update(name="sgd", learning_rate=0.1)
    config.tuning.strategy, config.tuning.k = "last_k", 1
    return config

def sweep():
    for rate in (0.1, 0.01):
        yield {{"optim.learning_rate": rate}}
""")
    return file


def _experiment(config: Path) -> Experiment:
    space: dict = {}
    exec(config.read_text(), space)
    return Experiment.from_config(space["get_config"]())


def test_a_run_in_a_bucket_is_killed_and_goes_on_to_the_bits_of_one_on_a_disk(s3, shapes, tiny_weights, tmp_path):
    _put(tiny_weights, s3 / "weights")
    config = _config(tmp_path, shapes, f"{s3}/weights", 8)
    remote, local = s3 / "runs" / "one", tmp_path / "one"
    command = [sys.executable, "-m", "tljax", "train", f"--config={config}", f"--workdir={remote}"]
    process = forks.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 300
    while not (remote / "checkpoints" / "4" / "manifest.json").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "BEAT", 0.1)  # the dead one is waited for
        experiment = _experiment(config)
        result = train(experiment, remote)
    expected = train(experiment, local)
    assert result["splits"] == expected["splits"] and result["frozen_digest_after"] == expected["frozen_digest_after"]
    states = []
    for path in (local, remote):
        folder = Workdir(path)
        run = Run(*folder.load())
        with folder.checkpoints(experiment) as checkpoints:
            assert checkpoints.steps[-1] == 8
            states.append(flatten_state(checkpoints.restore(8, run.abstract_state(8))))
    jax.tree.map(np.testing.assert_array_equal, *states)
    lines = [(epath.Path(path) / "metrics.jsonl").read_text().splitlines() for path in (local, remote)]
    losses = [[(row["step"], row["split"], row["loss"]) for row in map(json.loads, rows)] for rows in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 10
    (remote / "evaluations").rmtree()
    assert evaluate(remote)["loss"] == expected["splits"]["test"]["loss"]
    _predict_and_convert(s3, remote, local, shapes, tmp_path)


def _predict_and_convert(s3: epath.Path, remote: epath.Path, local: Path, shapes: Path, tmp_path: Path) -> None:
    picture = str(shapes / "disc" / "00.png")
    for workdir, out in ((remote, s3 / "p.csv"), (local, tmp_path / "p.csv")):
        assert predict.main([f"--workdir={workdir}", "--format=csv", f"--out={out}", picture]) == 0
    assert (s3 / "p.csv").read_bytes() == (tmp_path / "p.csv").read_bytes()
    convert(BackboneConfig(weights=str(remote)), s3 / "converted")
    convert(BackboneConfig(weights=str(local)), tmp_path / "converted")
    rows = [pretrained.resolve_weights(BackboneConfig(weights=str(place / "converted"))) for place in (s3, tmp_path)]
    jax.tree.map(np.testing.assert_array_equal, *(arrays.load_tree(pretrained.converted(row)) for row in rows))
    assert rows[0].classes == rows[1].classes == ("disc", "square")


def test_a_sweep_and_its_report_in_a_bucket(s3, shapes, tiny_weights, tmp_path, capsys):
    config = _config(tmp_path, shapes, str(tiny_weights), 2)
    assert sweep.main([f"--config={config}", f"--root={s3}/sweep"]) == 0
    assert sweep.main([f"--config={config}", f"--root={s3}/sweep", "--status"]) == 0
    assert "2 trials: 1 tested, 1 trained" in capsys.readouterr().out
    report.main([f"{s3}/sweep", f"--out={s3}/report", "--resamples=200"])
    names = {path.name for path in (s3 / "report").iterdir()}
    assert names == {"report.html", "methods.md", "methods.tex", "methods.csv", "runs.csv"}
