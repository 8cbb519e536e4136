"""Runs that several tests read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report import made
from tljax.checkpoints import code

ACCURACIES = {"linear_probe": (0.80, 0.82, 0.81), "prompt": (0.90, 0.92, 0.94), "full": (0.91, 0.92, 0.93)}


@pytest.fixture(scope="session", autouse=True)
def _asked_once() -> Iterator[None]:
    """git and the installed packages are not asked for each run that is made."""
    versions = code.versions()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "git_commit", lambda: "c0ffee")
        patch.setattr(code, "versions", lambda: versions)
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 runs: three strategies, two rates, three seeds."""
    return made.sweep(tmp_path_factory.mktemp("runs") / "ablation", ACCURACIES)
