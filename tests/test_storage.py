"""Disks and buckets; the bucket is fsspec's memory behind `s3://`, as etils, by which runs write, would find any."""

import json
import os

import jax
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from tests.conftest import StopAt, tiny_run
from tljax.checkpoints.workdir import Workdir
from tljax.distributed.preemption import Stopped
from tljax.errors import InputError
from tljax.evals.evaluate import evaluate
from tljax.io import storage
from tljax.training.trainer import train


class Bucket(MemoryFileSystem):
    """Of objects that are put whole."""

    protocol = "s3"
    store = {}  # noqa: RUF012 (as its parent's)
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("s3://", "memory://"))


@pytest.fixture
def bucket(monkeypatch) -> epath.Path:
    monkeypatch.setitem(_registry, "s3", Bucket)
    epath.backend.fsspec_backend._get_filesystem.cache_clear()  # of a test that had another
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    return epath.Path("s3://bucket/runs/one")


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(storage.locate("runs/a")) == f"{tmp_path}/runs/a"
    assert str(storage.locate("s3://b/runs/a")) == "s3://b/runs/a"
    assert storage.is_remote(storage.locate("s3://b")) and not storage.is_remote(storage.locate("a"))


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "x.json")
    storage.write_whole(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            storage.write_whole(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_link_stays_one_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    storage.write_whole(epath.Path(tmp_path / "link"), b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    storage.write_whole(epath.Path(tmp_path / "pipe"), b"through")
    assert os.read(reader, 99) == b"through" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_files_are_checked_by_size_and_content(tmp_path):
    folder = epath.Path(tmp_path)
    (folder / "a").mkdir()
    (folder / "a" / "x").write_bytes(b"123")
    files = storage.files_of(folder)
    assert files == {"a/x": [3, "a665a45920422f9d417e4867efdc4fb8a04a1f3fff1fa07e998e86f7f7a27ae3"]}
    assert storage.check(folder, files) == ""
    for content, wrong in ((b"12", "a/x has 2 bytes, not 3"), (b"124", "a/x has other bytes than were written")):
        (folder / "a" / "x").write_bytes(content)
        assert storage.check(folder, files) == wrong
    (folder / "a" / "x").unlink()
    assert storage.check(folder, files) == "a/x is missing"


def test_what_fails_is_tried_again_and_then_named(monkeypatch, capsys):
    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    tries = []

    def write(times):
        tries.append(1)
        if len(tries) < times:
            raise RuntimeError("wrapped") from OSError(30, "Read-only file system")
        return "done"

    assert storage.persistently(lambda: write(3), "x") == "done"
    assert capsys.readouterr().out.count("x: cannot be written (Read-only file system); again in 0 s") == 2
    with pytest.raises(InputError, match=r"^another's$"):  # which no further try mends
        storage.persistently(lambda: (_ for _ in ()).throw(InputError("another's")), "x")
    tries.clear()
    with pytest.raises(InputError, match=r"x: cannot be written \(Read-only file system\), tried 3 times in 0 s"):
        storage.persistently(lambda: write(99), "x")


def test_a_run_in_a_bucket_is_the_run_on_a_disk(tmp_path, shapes, bucket):
    run = tiny_run(
        f"folder:{shapes}",
        task__train="train[:16]",
        task__validation="train[16:20]",
        task__test="train[20:]",
        tuning__strategy="last_k",
        tuning__k=1,
        eval_every=2,
        log_every=1,
        cache="off",  # from images, as `evaluate` computes it: the same bits
    )
    with pytest.MonkeyPatch.context() as patch:
        from tests.conftest import TINY
        from tljax.models.registry import BACKBONES

        for name, module in TINY.items():
            patch.setitem(BACKBONES, name, module)
        expected = train(run.experiment, tmp_path / "disk")
        with pytest.raises(Stopped, match="stopped at step 3 of 6 by a test"):
            train(run.experiment, bucket, StopAt(3))
        assert Workdir(bucket).checkpoints(run.experiment).steps == [2, 3]
        result = train(run.experiment, bucket)
        states = []
        for path in (tmp_path / "disk", bucket):
            with Workdir(path).checkpoints(run.experiment) as checkpoints:
                assert checkpoints.steps[-1] == 6
                states.append(checkpoints.restore(6, run.abstract_state(6)))
        jax.tree.map(np.testing.assert_array_equal, *states)
        for key in ("splits", "frozen_digest_after"):
            assert result[key] == expected[key]
        lines = [(path / "metrics.jsonl").read_text().splitlines() for path in (epath.Path(tmp_path / "disk"), bucket)]
        steps = [[(line["step"], line["split"], line["loss"]) for line in map(json.loads, rows)] for rows in lines]
        assert steps[0] == steps[1] and len(steps[0]) == 9
        assert evaluate(bucket)["loss"] == expected["splits"]["test"]["loss"]  # from predictions that train stored
        (bucket / "evaluations").rmtree()
        assert evaluate(bucket)["loss"] == expected["splits"]["test"]["loss"]
        assert {path.name for path in (bucket / "evaluations").iterdir()} == {"6-test.parquet", "6-test.json"}
