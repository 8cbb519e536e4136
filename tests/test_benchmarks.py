"""That benchmarks start: what breaks in them shall be seen here, not when a table is made anew."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests import forks
from tests.conftest import ROOT


def _starts_here(text: str) -> bool:
    """Whether it takes arguments, and needs nothing that tljax does not, until it is at work."""
    return "ArgumentParser" in text and "\nimport torch\n" not in text


SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py") if _starts_here(path.read_text()))


def _stdout(script: str, *arguments: str, start=forks.run, **environment: str) -> str:
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    done = start(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_says_what_it_takes(script):
    assert _stdout(script, "--help").startswith(f"usage: {script}")


def test_a_start_is_timed_up_to_its_first_step(shapes, tmp_path):
    environment = {"STARTUP_BEGAN": str(time.time()), "TLJAX_TEST_FOLDER": str(shapes)}
    workdir = tmp_path / "run"
    arguments = ("start", "--config=tests/configs_tiny.py", f"--workdir={workdir}")
    out = _stdout("startup.py", *arguments, start=subprocess.run, **environment)  # imports are what it times
    found = json.loads(out.splitlines()[-1])
    assert found.keys() == {"imports", "data", "tracing", "programs", "seconds"} and min(found.values()) > 0
    assert found["imports"] + found["data"] < found["seconds"]
    assert (workdir / "plan.json").exists() and not (workdir / "result.json").exists()
