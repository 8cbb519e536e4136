"""Which code a run is made by: versions, and the commit of a checkout."""

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import tljax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "tensorflow-datasets")


def versions() -> dict[str, str]:
    """Returns the version of Python, of tljax and of each package on which a run's numbers hang."""
    installed = {"python": platform.python_version(), "tljax": tljax.__version__}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def git_commit() -> str | None:
    """Returns the commit of the code that runs, with `-dirty` where it was changed; None outside a checkout."""
    checkout = Path(tljax.__file__).parents[1]
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError):
        if (checkout / ".git").exists():  # what is installed may lie in a repository of the user's
            return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    return None
