"""Processes of a sweep: so many at a time, each with its share, ended with the one that started them."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, ROOT, tljax
from tests.report import made
from tljax.distributed.preemption import PreemptionSignal, Stopped
from tljax.errors import InputError
from tljax.sweeps.launchers import local
from tljax.sweeps.launchers.base import Job
from tljax.sweeps.launchers.local import at_once, run_here
from tljax.sweeps.trial import Trial

MARK = """
import json, os, sys, time
from pathlib import Path
plan, marks, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
if sys.argv[4] != "0":
    plan.mkdir(parents=True)
    facts = {"steps": 1, "cost": {}, "frozen_digest": "", "cached": False, "peak_bytes": int(sys.argv[4])}
    (plan / "plan.json").write_text(json.dumps(facts))
began = time.monotonic()
time.sleep(seconds)
facts = {"began": began, "ended": time.monotonic(), "cores": sorted(os.sched_getaffinity(0)), "pid": os.getpid()}
(marks / sys.argv[5]).write_text(json.dumps(facts | {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}))
"""


def _jobs(folder: Path, count: int, seconds: float = 0.5, peak: int = 1) -> list[Job]:
    """Processes that sleep, with a plan as a run writes it, and leave how long they lived."""
    jobs = []
    for number in range(count):
        trial = Trial({"seed": number}, made.experiment(seed=number), folder / f"trial-{number}")
        arguments = trial.folder, folder, seconds, peak, f"mark-{number}"
        jobs.append(Job(trial.name, (sys.executable, "-c", MARK, *map(str, arguments)), (trial,)))
    return jobs


def _marks(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("mark-*"))]


def _most_at_once(marks: list[dict]) -> int:
    return max(sum(mark["began"] <= other["began"] < mark["ended"] for mark in marks) for other in marks)


def test_so_many_run_at_a_time_and_each_has_its_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_gpus", lambda: [])
    cores = os.sched_getaffinity(0)
    run_here(_jobs(tmp_path, 5), PreemptionSignal(), 2, tmp_path / "logs")
    marks = _marks(tmp_path)
    assert len(marks) == 5 and _most_at_once(marks) == 2
    each = max(len(cores) // 2, 1)
    assert all(len(mark["cores"]) == each for mark in marks)
    assert len({tuple(mark["cores"]) for mark in marks}) == min(2, len(cores))
    assert os.sched_getaffinity(0) == cores
    assert len(list((tmp_path / "logs").glob("*.log"))) == 5


def test_with_little_memory_fewer_run_at_a_time_and_it_is_said(tmp_path, monkeypatch, capsys):
    assert [at_once(4, peaks, 100) for peaks in ((), (10,), (10, 22), (30,), (46,), (200,), (0,))] == [
        1,
        4,
        4,
        3,
        1,
        1,
        4,
    ]
    monkeypatch.setattr(local, "_gpus", lambda: [])
    monkeypatch.setattr(local, "host_bytes", lambda: (8 * 10**9, 5 * 10**9))
    run_here(_jobs(tmp_path, 3, peak=3 * 10**9), PreemptionSignal(), 3, tmp_path / "logs")
    assert _most_at_once(_marks(tmp_path)) == 1
    assert "a run needs 3.0 GB, and 5.0 GB are free: 1 at a time" in capsys.readouterr().out


def test_gpus_are_shared_out_and_not_shared(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,8")
    run_here(_jobs(tmp_path, 2), PreemptionSignal(), 2, tmp_path / "logs")
    assert sorted(mark["gpus"] for mark in _marks(tmp_path)) == ["4,5", "6,7"]
    with pytest.raises(InputError, match="--jobs=6 processes cannot share 5 GPUs: give --jobs=5"):
        run_here([], PreemptionSignal(), 6, tmp_path / "logs")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert local._gpus() == []


WAIT = """
import os, pathlib, signal, sys, time
from tljax.sweeps.launchers.local import end_with_stdin
from tljax.distributed.preemption import PreemptionSignal, Stopped
with PreemptionSignal().listening():
    end_with_stdin()
    try:
        pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
        time.sleep(60)
    except Stopped:
        pathlib.Path(sys.argv[1] + "-ended").write_text("saved")
        sys.exit(75)
"""
DRIVER = """
import sys
from pathlib import Path
from tljax.sweeps.launchers.base import Job
from tljax.sweeps.launchers.local import run_here
from tljax.distributed.preemption import PreemptionSignal
folder = Path(sys.argv[1])
jobs = [Job(f"job-{i}", (sys.executable, "-c", sys.argv[2], str(folder / f"child-{i}")), ()) for i in range(2)]
run_here(jobs, PreemptionSignal(), 2, folder / "logs")
"""


def test_processes_end_when_they_are_told_or_when_the_one_that_started_them_is_killed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local, "at_once", lambda count, peaks, free: count)
    job = Job("told", (sys.executable, "-c", WAIT, str(tmp_path / "told")), ())
    with pytest.raises(Stopped):
        run_here([job], _Once(tmp_path / "told"), 1, tmp_path / "logs")
    assert (tmp_path / "told-ended").read_text() == "saved"
    program = DRIVER.replace(
        "run_here(jobs", "import tljax.sweeps.launchers.local as l; l.at_once = lambda n, p, f: n; run_here(jobs"
    )
    driver = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), WAIT], cwd=ROOT)
    _until(lambda: all((tmp_path / f"child-{i}").exists() for i in range(2)))
    driver.kill()
    driver.wait()
    _until(lambda: all((tmp_path / f"child-{i}-ended").exists() for i in range(2)))
    for i in range(2):
        _until(lambda i=i: not Path(f"/proc/{(tmp_path / f'child-{i}').read_text()}").exists())


class _Once(PreemptionSignal):
    """Told to stop when a file is there."""

    def __init__(self, path: Path):
        super().__init__()
        self._path = path

    def reason(self) -> str:
        return "a test" if self._path.exists() else ""


def _until(moment) -> None:
    deadline = time.monotonic() + PATIENCE
    while not moment():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_how_a_process_ended_is_told(tmp_path, capsys):
    codes = {"killed": "os.kill(os.getpid(), 9)", "crash": "sys.exit(3)", "fails": "sys.exit(1)", "does": "print('hi')"}
    jobs = [Job(name, (sys.executable, "-c", f"import os, sys; {code}"), ()) for name, code in codes.items()]
    run_here(jobs, PreemptionSignal(), 1, tmp_path)
    shown = capsys.readouterr().out
    assert f"killed: killed by SIGKILL, see {tmp_path}/killed.log" in shown
    assert f"crash: ended with status 3, see {tmp_path}/crash.log" in shown
    assert "fails: failed" in shown and "does: done" in shown
    assert (tmp_path / "does.log").read_text() == "hi\n"


CONFIG = """
from tests.configs_tiny import get_config
from tljax.config.search_space import grid

def sweep():
    probes = grid({"tuning.strategy": ("linear_probe",), "optim.learning_rate": (1e-3, 1e-2)})
    return probes + [{"tuning.strategy": "last_k", "tuning.k": 1}]
"""


@pytest.mark.slow
def test_what_print_prints_can_be_run_from_anywhere(shapes, tiny_weights, tmp_path, monkeypatch):
    for name, value in (("FOLDER", shapes), ("WEIGHTS", tiny_weights)):
        monkeypatch.setenv(f"TLJAX_TEST_{name}", str(value))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = tmp_path / "a config.py"
    config.write_text(CONFIG)
    flags = f"--config={config}:pretrained", "--config.task.crop=center", "--config.task.augment=()"
    root = f"--root={tmp_path / 'my runs'}"
    printed = tljax("sweep", *flags, root, "--launcher=print").stdout.splitlines()
    assert len(printed) == 3 and not (tmp_path / "my runs").exists()
    shares = re.findall(r"--trials=(\S+)", "\n".join(printed))
    assert [share.count(",") for share in shares] == [1, 0]
    for line in printed[:2]:
        subprocess.run(line, shell=True, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    results = [json.loads(path.read_text()) for path in (tmp_path / "my runs").glob("*/result.json")]
    assert [result["held"] for result in results] == [["test"]] * 3
    again = printed[2].removeprefix("# and when these have ended: ")
    subprocess.run(shlex.split(again), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    results = [json.loads(path.read_text()) for path in (tmp_path / "my runs").glob("*/result.json")]
    assert sorted("test" in result["splits"] for result in results) == [False, True, True]
    assert tljax("sweep", *flags, root, "--launcher=print").stdout.count("--trials") == 0
