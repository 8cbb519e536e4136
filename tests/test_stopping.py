"""Runs that are told to stop, and go on: by signals, by their time limit, in several processes, on other devices."""

import itertools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from tests import forks
from tests.conftest import PATIENCE, ROOT, TINY, tiny_run
from tests.test_end_to_end import _leaves
from tljax.checkpoints.workdir import Workdir
from tljax.core.run import Run
from tljax.distributed.preemption import SAVED, SIGNALS, PreemptionSignal, Stopped
from tljax.evals import predictions
from tljax.evals.evaluate import evaluate
from tljax.io import storage
from tljax.models.registry import BACKBONES
from tljax.training.trainer import train

CONFIG = "--config=tests/configs_tiny.py:pretrained"


@pytest.fixture(scope="module", autouse=True)
def _folder(shapes, tiny_weights):
    os.environ["TLJAX_TEST_FOLDER"] = str(shapes)
    os.environ["TLJAX_TEST_WEIGHTS"] = str(tiny_weights)


@pytest.fixture
def _terminal() -> Iterator[None]:
    """As on a terminal: whoever started these tests may have them ignore its end, as nohup does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_terminal")
def test_a_signal_is_noted_within_a_loop_and_stops_at_once_without():
    with PreemptionSignal().listening() as preemption, preemption.deferred():
        assert preemption.reason() == ""
        signal.raise_signal(signal.SIGTERM)
        assert preemption.reason() == "SIGTERM"
    for number in SIGNALS:
        with PreemptionSignal().listening() as preemption, pytest.raises(Stopped, match=number.name):
            signal.raise_signal(number)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("_terminal")
def test_a_terminal_that_closes_is_heard_once_and_under_nohup_not_at_all():
    with PreemptionSignal().listening() as preemption, preemption.deferred():
        for _ in range(2):
            signal.raise_signal(signal.SIGHUP)
            time.sleep(0.1)
        assert preemption.reason() == "SIGHUP"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with PreemptionSignal().listening() as preemption, preemption.deferred():
            signal.raise_signal(signal.SIGHUP)
            assert preemption.reason() == ""
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_time_limit_leaves_room_for_what_took_longest(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    preemption, told = PreemptionSignal(max_seconds=50), []
    for took in (20, 2, 9, 2, 2, 2, 2, 2, 2):  # the first is the compiler's, which comes once
        now[0] += took
        told.append(preemption.reason())
    # After 41 s, 9 more still fit.
    assert told == [*[""] * 8, "--max-seconds=50"]


def test_a_second_signal_ends_the_process_even_while_it_computes():
    code = (
        "import hashlib, sys; from tljax.distributed.preemption import PreemptionSignal\n"
        "with PreemptionSignal().listening() as preemption, preemption.deferred():\n"
        "    print('ready', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 300_000_000)\n"
    )
    process = forks.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert b"once more stops at once" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 128 + signal.SIGINT


def _start(workdir: Path, *flags: str, program: Sequence[str] = ("-m", "tljax"), **environment) -> subprocess.Popen:
    command = [sys.executable, *program, "train", CONFIG, f"--workdir={workdir}", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return forks.Popen(command, cwd=ROOT, env=os.environ | environment, **pipes)


def _end(process: subprocess.Popen, status: int = 0) -> str:
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, told[-3000:]
    return told


def _at(workdir: Path, step: int, *processes: subprocess.Popen) -> None:
    """Waits until a step is logged."""
    lines, deadline = workdir / "metrics.jsonl", time.monotonic() + PATIENCE
    while not (lines.exists() and f'"step": {step},' in lines.read_text()):
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _history(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("seconds")} for line in lines]


def _steps(workdir: Path) -> list[int]:
    folder = Workdir(workdir)
    return folder.checkpoints(folder.load()[0]).steps


LONG = ("--config.steps=400", "--config.eval_every=200", "--config.tuning.strategy=last_k", "--config.tuning.k=1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, _folder) -> Path:
    """A run of 400 steps that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    _end(_start(workdir, *LONG))
    return workdir


@pytest.mark.slow
def test_signals_and_the_limit_stop_between_steps_with_that_step_saved(tmp_path, whole):
    run, stopped, cache = tmp_path / "run", [], tmp_path / "cache"
    for number, step in ((signal.SIGTERM, 20), (signal.SIGINT, 90), (signal.SIGUSR1, 230)):
        process = _start(run, *LONG, TLJAX_CACHE=str(cache))
        _at(run, step, process)
        if not stopped:
            process.send_signal(signal.SIGSTOP)  # as one whose disk hangs: it is the writer all the same
            refused = _end(_start(run, *LONG), 2)
            process.send_signal(signal.SIGCONT)
            assert f"is being written by process {process.pid} on {socket.gethostname()}, which began at" in refused
        process.send_signal(number)
        told = _end(process, SAVED)
        stopped.append(_steps(run)[-1])
        assert stopped[-1] >= step
        assert f"stopped at step {stopped[-1]} of 400 by {number.name}: the same command goes on" in told
        assert not list((run / "checkpoints").glob("*/*tmp*"))
        shutil.rmtree(cache)  # it is a cache: nothing of the run is lost with it
    told = _end(_start(run, *LONG, "--max-seconds=0.001"), SAVED)  # a limit too short for anything still saves a step
    assert _steps(run)[-1] == stopped[-1] + 1
    assert "by --max-seconds=0.001" in told
    _end(_start(run, *LONG))
    assert _leaves(run) == _leaves(whole)
    assert _history(run) == _history(whole)
    assert not (run / "writer.json").exists()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _pair(workdir: Path, *flags: str) -> list[subprocess.Popen]:
    address = f"--coordinator=127.0.0.1:{_free_port()}"
    return [_start(workdir, *flags, address, "--num-processes=2", f"--process-id={i}") for i in range(2)]


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_end_as_two_devices_of_one(tmp_path):
    flags = ("--config.steps=120", "--config.eval_every=60", *LONG[2:])
    _end(_start(tmp_path / "one", *flags, JAX_NUM_CPU_DEVICES="2"))
    run = tmp_path / "two"
    for step, told in ((20, (1,)), (70, (0, 1))):  # a machine is taken away, or the job
        pair = _pair(run, *flags)
        _at(run, step, *pair)
        for i in told:
            pair[i].send_signal(signal.SIGTERM)
        said = [_end(process, SAVED) for process in pair]
        stopped = _steps(run)[-1]
        assert stopped >= step
        assert all(f"stopped at step {stopped} of 120" in some for some in said)
    for process in _pair(run, *flags):
        _end(process)
    assert _leaves(run) == _leaves(tmp_path / "one")
    assert _history(run) == _history(tmp_path / "one")


@pytest.mark.slow
def test_three_processes_count_every_example_of_a_ragged_split_once(tmp_path):
    flags = (
        "--config.steps=3",
        "--config.task.batch_size=6",
        "--config.task.validation=",
        "--config.task.test=train[17:]",
    )
    flags += ("--config.task.eval_batch_size=4",)  # made 6, of which the last batch has one: for two, nothing is left
    address = f"--coordinator=127.0.0.1:{_free_port()}"
    run = tmp_path / "run"
    for process in [_start(run, *flags, address, "--num-processes=3", f"--process-id={i}") for i in range(3)]:
        _end(process)
    kept, _ = predictions.load(run / "evaluations" / "3-test.parquet")
    experiment, resolved = Workdir(run).load()
    split = Run(experiment, resolved).inputs.splits["test"]
    assert kept.ids == split.ids and len(set(kept.ids)) == 7
    found = json.loads((run / "result.json").read_text())["splits"]["test"]
    assert found["count"] == 7
    assert found["accuracy"] == accuracy_score(kept.labels, kept.logits.argmax(-1))
    odds = np.exp(kept.logits.astype(np.float64))
    assert found["loss"] == pytest.approx(log_loss(kept.labels, odds / odds.sum(-1, keepdims=True)), abs=1e-15)
    shutil.rmtree(run / "evaluations")
    alone = evaluate(run)
    assert (alone["count"], alone["accuracy"]) == (7, found["accuracy"])
    assert alone["loss"] == pytest.approx(found["loss"], rel=1e-6)


def test_a_clock_that_jumps_changes_nothing(tmp_path, shapes, monkeypatch):
    with monkeypatch.context() as patch:
        for name, module in TINY.items():
            patch.setitem(BACKBONES, name, module)
        run = tiny_run(f"folder:{shapes}", task__train="train[:16]", task__test="train[16:]", log_every=1)
        wanted = train(run.experiment, tmp_path / "wanted")
        now, jumps = time.time, itertools.cycle((0, -1e7, 1e7, 3e7))
        patch.setattr(time, "time", lambda: now() + next(jumps))
        found = train(run.experiment, tmp_path / "found", PreemptionSignal(max_seconds=1000))
    assert found["splits"] == wanted["splits"]
    assert 0 < found["wall_seconds"] < 1000
    assert _history(tmp_path / "found") == _history(tmp_path / "wanted")


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices(tmp_path):
    flags = ("--config.steps=24", "--config.task.batch_size=8", "--config.optim.name=sgd", "--config.eval_every=8")
    _end(_start(tmp_path / "one", *flags))
    run = tmp_path / "run"
    for devices, steps in ((8, 8), (2, 16), (1, 24)):
        process = _start(run, *flags, JAX_NUM_CPU_DEVICES=str(devices))
        if steps < 24:
            _at(run, steps, process)
            process.send_signal(signal.SIGTERM)
        _end(process, SAVED if steps < 24 else 0)
    found, wanted = (
        {k: np.frombuffer(v, np.float32) for k, v in _leaves(path).items()} for path in (run, tmp_path / "one")
    )
    for name, leaf in wanted.items():
        if name.startswith(".params"):
            # The same sums over the batch, added in another order.
            assert np.linalg.norm(found[name] - leaf) <= 1e-5 * np.linalg.norm(leaf), name


# tljax, but that it tries again ten times as soon.
HASTY = """
import runpy
from tljax.io import storage
storage.PAUSES = tuple(pause / 10 for pause in storage.PAUSES)
runpy.run_module("tljax", run_name="__main__")
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_in_mid_run(tmp_path, whole):
    """A limit on the size of any file stands in for the disk; lifted in time, nothing is lost."""
    assert storage.PAUSES == (1, 4, 10, 30)
    for mended in (True, False):
        run = tmp_path / f"mended-{mended}"
        process = _start(run, *LONG, program=("-m", "tljax") if mended else ("-c", HASTY))
        _at(run, 20, process)
        before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
        process.send_signal(signal.SIGTERM) if not mended else None
        told = ""
        while "cannot be written (" not in told:  # which says it in words of its own, the system or TensorStore
            line = process.stdout.readline()
            assert line, told
            told += line
        if mended:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)
            _end(process)
        else:
            told += _end(process, 2)
            assert "tried 5 times in 4.5 s" in told
            _end(_start(run, *LONG))
        assert _leaves(run) == _leaves(whole)
        assert _history(run) == _history(whole)


def test_a_workdir_that_cannot_be_written_is_named_before_compute(tmp_path):
    (tmp_path / "file").write_text("")
    told = _end(_start(tmp_path / "file" / "run"), 2)
    assert f"error: {tmp_path}/file/run: cannot be written (Not a directory)" in told
