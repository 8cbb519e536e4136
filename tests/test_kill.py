"""`benchmarks/kill.py` with a few kills. Moments are met by time, so what fails here may not fail again: kill more."""

import subprocess

import pytest

from benchmarks.kill import kill
from tests import forks

pytestmark = pytest.mark.slow


def test_runs_killed_at_any_moment_end_with_the_bits_of_those_that_were_not(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", forks.Popen)
    rows = kill(dict.fromkeys(("last_k", "full", "lora", "lp_ft"), 3), tmp_path / "kill")
    assert sum(row.kills.total() for row in rows) == 12
    for row in rows:
        assert not row.different and not row.strays, str(row)
