"""`launch/slurm.sbatch` and `sweep --launcher=slurm` on a real Slurm; `launch/README.md` says how to have one."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.kill import outcome
from tests.conftest import ROOT, tljax
from tljax.sweeps.launchers import slurm

CONFIG = ("--config=tests/configs_tiny.py:pretrained", "--config.eval_every=500", "--config.log_every=10")


def _answers() -> bool:
    if not (shutil.which("sbatch") and shutil.which("scontrol")):
        return False
    return "is UP" in subprocess.run(["scontrol", "ping"], capture_output=True, text=True).stdout


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not _answers(), reason="no Slurm here")]


@pytest.fixture
def _environment(shapes, tiny_weights, monkeypatch):
    monkeypatch.setenv("TLJAX_TEST_FOLDER", str(shapes))
    monkeypatch.setenv("TLJAX_TEST_WEIGHTS", str(tiny_weights))
    monkeypatch.setenv("PYTHON", sys.executable)


class Job:
    """A job of the script, and what it wrote."""

    def __init__(self, folder: Path, steps: int, *options: str):
        self.workdir, self._log = folder / "run", folder / "log"
        command = ["sbatch", "--parsable", "--cpus-per-task=1", f"--output={self._log}", *options]
        command += ["launch/slurm.sbatch", *CONFIG, f"--config.steps={steps}", f"--workdir={self.workdir}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        self.number = done.stdout.strip()

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def logged(self) -> int:
        """The last step in metrics.jsonl."""
        metrics = self.workdir / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    @property
    def facts(self) -> str:
        return self._scontrol("show", "job", "--oneliner", self.number)

    @property
    def state(self) -> str:
        return self.facts.split("JobState=")[1].split()[0]

    def requeue(self) -> None:
        self._scontrol("requeue", self.number)

    def wait_for(self, moment: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not moment():
            state = self.state
            lost = state in ("FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL") or time.monotonic() > deadline
            assert not lost, f"{state}, then {self.facts}\n{self.log[-3000:]}"
            time.sleep(0.2)

    def _scontrol(self, *arguments: str) -> str:
        return subprocess.run(["scontrol", *arguments], capture_output=True, text=True).stdout

    def cancel(self) -> None:
        subprocess.run(["scancel", self.number])


@pytest.fixture
def submit(tmp_path, _environment):
    jobs = []

    def start(steps: int, *options: str) -> Job:
        jobs.append(Job(tmp_path, steps, *options))
        return jobs[-1]

    yield start
    for job in jobs:
        job.cancel()


def _whole(folder: Path, steps: int) -> Path:
    tljax("train", *CONFIG, f"--config.steps={steps}", f"--workdir={folder / 'whole'}")
    return folder / "whole"


def test_a_job_that_is_requeued_twice_ends_with_the_bits_of_one_that_was_not(tmp_path, submit):
    job = submit(4000)
    for times, step in ((1, 300), (2, 2000)):
        job.wait_for(lambda step=step: job.logged > step)
        job.requeue()
        job.wait_for(lambda times=times: job.log.count("by SIGTERM: the same command goes on") == times)
    job.wait_for(lambda: job.state == "COMPLETED")
    assert job.log.count("resuming") == 2
    assert outcome(job.workdir) == outcome(_whole(tmp_path, 4000))


def test_a_job_whose_time_is_over_requeues_itself(tmp_path, submit):
    # Slurm looks every half a minute, and gives notice 10 to 40 s after the start: that may be before the first step.
    job = submit(16000, "--time=1", "--signal=USR1@20")
    job.wait_for(lambda: job.state == "COMPLETED", 900)
    assert job.log.count("by SIGUSR1: the same command goes on") >= job.log.count("resuming") > 0
    assert outcome(job.workdir) == outcome(_whole(tmp_path, 16000))


def test_a_job_that_is_cancelled_and_saves_is_not_requeued(tmp_path, submit, monkeypatch):
    saving = tmp_path / "saving"
    saving.write_text("#!/bin/bash\ntrap 'echo saved; exit 75' TERM\necho begun\nsleep 300 & wait\n")
    saving.chmod(0o755)
    monkeypatch.setenv("PYTHON", str(saving))
    job = submit(1)
    job.wait_for(lambda: "begun" in job.log)
    job.cancel()
    deadline = time.monotonic() + 60
    while job.number in slurm.queue() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "saved" in job.log and job.state == "CANCELLED"


SWEEP = ("sweep", "--config=tests/configs_slurm.py")


def _logged(workdir: Path) -> int:
    metrics = workdir / "metrics.jsonl"
    return json.loads(metrics.read_text().splitlines()[-1])["step"] if metrics.exists() else 0


def _table(text: str) -> list[list[str]]:
    """Its rows, but for the seconds in the last column."""
    return [[cell.strip() for cell in line.split("│")[1:-2]] for line in text.splitlines() if line.startswith("│")]


def test_a_sweep_with_a_job_cancelled_and_one_requeued_is_the_sweep_beside(tmp_path, _environment):
    root, beside = tmp_path / "slurm", tmp_path / "beside"
    command = (*SWEEP, f"--root={root}", "--launcher=slurm", "--jobs=2", "--sbatch=cpus-per-task=1")
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen([sys.executable, "-m", "tljax", *command], cwd=ROOT, stdout=log, stderr=log)
    try:
        begun: list[Path] = []
        deadline = time.monotonic() + 200
        while len(begun) < 2:
            assert time.monotonic() < deadline and driver.poll() is None, (tmp_path / "log").read_text()
            begun = [path for path in root.glob("full-*") if 100 < _logged(path) < 1500]
            time.sleep(0.1)
        running = slurm.queue()
        assert sorted(running.values()) == ["PENDING", "PENDING", "RUNNING", "RUNNING"]
        cancelled, requeued = [id for id, state in running.items() if state == "RUNNING"]
        subprocess.run(["scancel", cancelled], check=True)
        subprocess.run(["scontrol", "requeue", requeued], check=True)
        driver.wait(400)
    finally:
        driver.kill()
        subprocess.run(["scancel", "--me"])
    unfinished = [path for path in root.glob("full-*") if not (path / "result.json").exists()]
    assert len(unfinished) == 1, (tmp_path / "log").read_text()
    assert f"Slurm job {cancelled} ended without all its runs" in (tmp_path / "log").read_text()
    last = tljax(*command)
    local = tljax(*SWEEP, f"--root={beside}")
    names = sorted(path.name for path in beside.glob("full-*"))
    assert len(names) == 4
    assert _table(last.stdout) == _table(local.stdout) and len(_table(last.stdout)) == 2
    for name in names:
        assert outcome(root / name) == outcome(beside / name)
    logs = [path.read_text() for path in (root / "logs").glob("*_log.out")]
    assert sum(log.count("by SIGTERM: the same command goes on") for log in logs) == 2
    # Four runs, of which one was requeued; what replaced the cancelled one; and the test of those that were chosen.
    assert sorted(log.count("Starting with") for log in logs) == [1, 1, 1, 1, 1, 2]
