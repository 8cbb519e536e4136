"""Who may write to a run's folder: a writer that was stopped, or whose folder is another's now, writes no more.

The other process is a real one, which does what it is told a line at a time.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from tests import forks
from tests.conftest import ROOT
from tljax.checkpoints.workdir import Workdir
from tljax.io import arrays, lock, storage
from tljax.io.lock import Lost, Taken

WRITER = """
import contextlib, json, resource, sys
import numpy as np
from tljax.io import lock, storage
from tljax.checkpoints.checkpointer import Checkpoints
from tljax.config.schema import CheckpointConfig
from tljax.problems.registry import PROBLEMS
from tljax.core.state import TrainState
from tljax.checkpoints.workdir import Workdir

lock.BEAT, storage.PAUSES = 0.05, (0.01,)
stack = contextlib.ExitStack()

def no_locks(self):
    raise NotImplementedError

def row(step):
    return {"step": step, "split": "train", "seconds": 1.0, "input_seconds": 0.0, "loss": 0.5}

for line in sys.stdin:
    verb, value = json.loads(line)
    try:
        if verb == "flockless":
            lock.FileLock.acquire = lambda self, timeout: no_locks(self)
        elif verb == "lock":
            folder = Workdir(value)
            stack.enter_context(folder.locked())
            judged, checkpoints = PROBLEMS["single_label"].headline, folder.path / "checkpoints"
            saver = Checkpoints(checkpoints, judged, CheckpointConfig(), True, folder.check)
        elif verb == "append":
            folder.append(row(value))
        elif verb == "flush":
            folder.flush()
        elif verb == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (value, resource.RLIM_INFINITY))
        elif verb == "save":
            saver.save(TrainState(np.int32(value), {"w": np.ones(3, np.float32)}, (), {}, {}, {}, np.int32(0)))
            saver.wait()
        elif verb == "finish":
            folder.finish({"steps": 1})
        elif verb == "evaluate":
            folder.save_evaluation("1-test", {})
        elif verb == "release":
            stack.close()
        print("ok", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)  # an InputError, or a Lost, which is one
"""


class Writer:
    """A process that writes to a workdir."""

    def __init__(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        self.process = forks.Popen([sys.executable, "-c", WRITER], cwd=ROOT, env=environment, **pipes)

    def __call__(self, verb: str, value: object = None) -> str:
        """What it answers: `ok`, or the error."""
        self.process.stdin.write(json.dumps([verb, value]) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(("ok", "Lost", "Taken", "InputError")):
                return line.rstrip("\n")
        return ""

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def writer():
    found = Writer()
    yield found
    found.end()


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _row(step: int) -> dict:
    return {"step": step, "split": "train", "seconds": 2.0, "input_seconds": 0.0}


VERBS = (("append", 2), ("flush", None), ("save", 2), ("finish", None), ("evaluate", None))


def test_a_writer_whose_folder_was_removed_and_is_anothers_now_mixes_nothing_into_it(tmp_path, writer):
    assert [writer("lock", str(tmp_path / "run")), writer("append", 1), writer("save", 1)] == ["ok"] * 3
    shutil.rmtree(tmp_path / "run")
    for verb, value in VERBS:  # nobody has come in its place yet: no half of a run is made anew
        told = writer(verb, value)
        assert (
            told.startswith(f"Lost: {tmp_path}/run: it was removed, renamed or replaced")
            and "what is saved goes on" in told
        )
    assert not (tmp_path / "run").exists()
    another = Workdir(tmp_path / "run")
    with another.locked():
        another.append(_row(1))
        before = _names(tmp_path / "run")
        for verb, value in VERBS:
            told = writer(verb, value)
            assert told.startswith(f"Lost: {tmp_path}/run: process {os.getpid()} on ")
            assert f"no longer this process ({writer.process.pid} on " in told
        assert writer("release") == "ok"
        another.append(_row(2))
        another.check()
        assert _names(tmp_path / "run") == before == {".lock", "writer.json", "metrics.jsonl"}
    assert another.metrics == [_row(1), _row(2)]


def test_a_writer_whose_folder_was_renamed_writes_to_neither(tmp_path, writer, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    assert [writer("lock", str(tmp_path / "run")), writer("append", 1), writer("save", 1)] == ["ok"] * 3
    (tmp_path / "run").rename(tmp_path / "moved")
    before = _names(tmp_path / "moved")
    assert all(writer(verb, value).startswith(f"Lost: {tmp_path}/run: it was removed") for verb, value in VERBS)
    assert not (tmp_path / "run").exists() and _names(tmp_path / "moved") == before
    with pytest.raises(Taken), Workdir(tmp_path / "moved").locked():  # it lives, and has it open
        pass
    assert writer("release") == "ok"
    with Workdir(tmp_path / "moved").locked():
        pass


def test_a_lock_that_someone_removed_does_not_let_a_second_writer_in(tmp_path, writer, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    assert writer("lock", str(tmp_path / "run")) == "ok"
    (tmp_path / "run" / ".lock").unlink()
    with pytest.raises(Taken, match=f"process {writer.process.pid} on"), Workdir(tmp_path / "run").locked():
        pass
    assert [writer("append", 1), writer("release")] == ["ok", "ok"]


def test_a_writer_that_was_stopped_and_taken_over_stops(tmp_path, writer, monkeypatch):
    """On a disk without locks, as when a machine is paused: the other one sees no sign of life, and goes on."""
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock.FileLock, "acquire", lambda self, timeout: (_ for _ in ()).throw(NotImplementedError))
    run = tmp_path / "run"
    assert [writer("flockless"), writer("lock", str(run)), writer("append", 1), writer("save", 1)] == ["ok"] * 4
    with pytest.raises(Taken, match=f"is being written by process {writer.process.pid} on"), Workdir(run).locked():
        pass
    os.kill(writer.process.pid, signal.SIGSTOP)
    try:
        another = Workdir(run)
        with another.locked():
            another.append(_row(2))
            os.kill(writer.process.pid, signal.SIGCONT)
            time.sleep(0.2)  # in which it would have given several signs of life
            before = _names(run)
            for verb, value in VERBS:
                assert writer(verb, value).startswith(f"Lost: {run}: process {os.getpid()} on ")
            assert writer("release") == "ok"
            another.append(_row(3))
            another.check()
            assert _names(run) == before
        assert [row["step"] for row in another.metrics] == [1, 2, 3]
    finally:
        os.kill(writer.process.pid, signal.SIGCONT)


def test_a_writer_that_is_taken_over_while_it_saves_leaves_no_manifest(tmp_path):
    asked = []

    def check():
        asked.append(1)
        if len(asked) > 1:
            raise Lost("taken over meanwhile")

    with pytest.raises(Lost):
        arrays.write(epath.Path(tmp_path / "1"), {"w": np.ones(3)}, {}, check)
    assert len(asked) == 2 and not (tmp_path / "1" / "manifest.json").exists()


def test_of_a_disk_that_was_full_and_is_mended_every_line_stays(tmp_path, writer):
    run = tmp_path / "run"
    assert [writer("lock", str(run)), writer("append", 1), writer("append", 2)] == ["ok"] * 3
    whole = (run / "metrics.jsonl").read_bytes()
    assert writer("limit", len(whole) + 20) == "ok"  # room for a part of a line
    for step in (3, 4):
        assert writer("append", step) == "ok"  # which training goes on with
        assert (run / "metrics.jsonl").read_bytes() == whole
    assert "InputError" in writer("flush") and (run / "metrics.jsonl").read_bytes() == whole
    assert writer("limit", resource.RLIM_INFINITY) == "ok"
    assert [writer("append", 5), writer("flush"), writer("release")] == ["ok"] * 3
    lines = (run / "metrics.jsonl").read_bytes()
    assert lines.startswith(whole) and [json.loads(line)["step"] for line in lines.splitlines()] == [1, 2, 3, 4, 5]
    assert _names(run) - {".lock"} == {"metrics.jsonl"}


TWO = """
import sys
from etils import epath
from tljax.io import storage
for _ in range(60):
    storage.write_whole(epath.Path(sys.argv[1]), sys.argv[2].encode() * 300_000)
"""


def test_two_writers_of_one_file_do_not_tear_it(tmp_path):
    file = tmp_path / "x.json"
    left = tmp_path / "x.json.0123.tmp"  # of a third, who was killed
    left.write_text("half")
    storage.write_whole(epath.Path(file), b"a" * 300_000)
    assert not left.exists()
    command = [sys.executable, "-c", TWO, str(file)]
    writers = [forks.Popen([*command, letter], cwd=ROOT, stderr=subprocess.PIPE) for letter in "bc"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        content = file.read_bytes()
        assert len(content) == 300_000 and len(set(content)) == 1
        seen.add(content[:1])
    assert [writer.communicate()[1] for writer in writers] == [b"", b""] and seen >= {b"b", b"c"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_what_a_living_writer_has_begun_is_not_swept(tmp_path):
    begun, goes_on = threading.Event(), threading.Event()

    def write():
        with storage.replacing(tmp_path / "x") as file:
            file.write(b"whole")
            begun.set()
            goes_on.wait()

    thread = threading.Thread(target=write)
    thread.start()
    begun.wait()
    storage.sweep(tmp_path)
    storage.write_whole(epath.Path(tmp_path / "x"), b"another's")
    goes_on.set()
    thread.join()
    assert (tmp_path / "x").read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 1
