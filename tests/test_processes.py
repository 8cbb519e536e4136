"""Processes of one run that do not find each other, or lose one."""

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import forks
from tests.conftest import PATIENCE, ROOT
from tests.test_stopping import _at, _end, _start
from tljax.checkpoints.checkpointer import Checkpoints
from tljax.config.schema import CheckpointConfig
from tljax.distributed import processes
from tljax.distributed.preemption import SAVED
from tljax.errors import InputError
from tljax.problems.registry import PROBLEMS


@pytest.fixture(scope="module", autouse=True)
def _folder(shapes, tiny_weights):
    os.environ["TLJAX_TEST_FOLDER"] = str(shapes)
    os.environ["TLJAX_TEST_WEIGHTS"] = str(tiny_weights)


def _options(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    processes.add_arguments(parser)
    return parser.parse_args(flags)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--num-processes=2",), "--num-processes needs --coordinator=HOST:PORT"),
        (("--coordinator=here", "--num-processes=2"), "--coordinator=here is neither HOST:PORT nor auto"),
        (
            ("--coordinator=here:1", "--num-processes=2", "--process-id=2"),
            "--process-id=2 is none of --num-processes=2: they count from 0",
        ),
    ],
)
def test_flags_that_cannot_be_are_named(flags, told):
    with pytest.raises(InputError, match=told), processes.join(_options(*flags)):
        pass


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_ID": "7"},
        {"OMPI_MCA_orte_hnp_uri": "1;tcp://h:1", "OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "host-0"},
    ],
)
def test_one_process_by_itself_joins_nobody(environment, monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("jax.distributed.initialize", lambda *_, **__: pytest.fail("joined"))
    with processes.join(_options()):
        pass


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"OMPI_MCA_orte_hnp_uri": "1;tcp://h:1", "OMPI_COMM_WORLD_SIZE": "2"},
        {"TPU_WORKER_HOSTNAMES": "host-0,host-1"},
    ],
)
def test_a_launcher_of_several_is_seen(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes._launched()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _alone(*flags: str) -> tuple[int, str, float]:
    """Exit status, what is said, and the seconds, of a process that is one of two."""
    began, command = time.monotonic(), [sys.executable, "-m", "tljax", "train"]
    command += ["--config=tests/configs_tiny.py:pretrained", "--workdir=nowhere", "--join-timeout=3", *flags]
    done = forks.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


@pytest.mark.parametrize("number", [0, 1])
def test_who_waits_in_vain_says_for_whom_and_how_long(number):
    address = f"127.0.0.1:{_free_port()}"
    status, told, _ = _alone(f"--coordinator={address}", "--num-processes=2", f"--process-id={number}")
    assert status == 2, told
    assert f"error: process {number} of 2 waited 3 s for the others, at {address}" in told
    assert "--join-timeout=S waits longer" in told


def test_where_nobody_says_where_the_others_are_it_is_said():
    status, told, _ = _alone("--coordinator=auto")
    assert status == 2, told
    assert "error: this process cannot join the others: nothing here says where they are; give --coordinator=" in told


def test_processes_that_differ_all_learn_in_what(monkeypatch):
    mine, other = {"config": {"steps": 4, "seed": 0}, "data": "a"}, {"config": {"steps": 4, "seed": 1}, "data": "bc"}
    told = [json.dumps(facts, sort_keys=True).encode() for facts in (mine, other)]
    longest = max(map(len, told))
    answers = [
        [np.frombuffer(hashlib.sha256(one).digest(), np.uint8) for one in told],
        [len(one) for one in told],
        [np.frombuffer(one.ljust(longest), np.uint8) for one in told],
    ]
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda _: np.stack(answers.pop(0)))
    line = "must be alike: config.seed is 0 in process 0, 1 in process 1; data is 'a' in process 0, 'bc' in process 1: "
    with pytest.raises(InputError, match=line):
        processes.agree(mine)
    answers = [[np.zeros(32, np.uint8)] * 2]
    processes.agree(mine)


@pytest.mark.slow
def test_processes_of_different_configs_do_not_train_together(tmp_path):
    address, run = f"--coordinator=127.0.0.1:{_free_port()}", tmp_path / "run"
    started = []
    for number, rate in enumerate((0.001, 0.002)):
        flags = f"--config.optim.learning_rate={rate}", f"--config.input.workers={1 + number}"
        started.append(_start(run, *flags, address, "--num-processes=2", f"--process-id={number}"))
    for process in started:
        told = _end(process, 2)
        assert "config.optim.learning_rate is 0.001 in process 0, 0.002 in process 1: start all" in told
        assert "input.workers" not in told
    assert not run.exists()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others_and_the_run_goes_on_from_what_was_saved(tmp_path, lost):
    run, long = tmp_path / "run", ("--config.steps=4000", "--config.checkpoint.every=10")

    def pair(*flags: str) -> list[subprocess.Popen]:
        address = f"--coordinator=127.0.0.1:{_free_port()}"
        return [_start(run, *flags, address, "--num-processes=2", f"--process-id={i}") for i in range(2)]

    started = pair(*long)
    _at(run, 30, *started)
    began = time.monotonic()
    started[lost].send_signal(signal.SIGKILL)
    told, _ = started[1 - lost].communicate(timeout=PATIENCE)
    started[lost].communicate()
    assert started[1 - lost].returncode == SAVED, told[-3000:]
    assert f"error: process {lost} of 2 on {socket.gethostname()} is gone" in told
    assert told.count("error") == 1 and "Traceback" not in told and "stack trace" not in told
    assert time.monotonic() - began < 20
    kept = Checkpoints(_path(run), PROBLEMS["single_label"].headline, CheckpointConfig()).newest()
    assert kept >= 20
    flags = ("--config.steps=4000", "--config.checkpoint.every=10", "--max-seconds=0.001")
    said = [_end(process, 75) for process in pair(*flags)]
    assert f"at step {kept} of 4000" in said[0]


def _path(run):
    from etils import epath

    return epath.Path(run / "checkpoints")
