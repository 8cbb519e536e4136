"""The runs of a report, as their workdirs tell them: those that are finished, and why the others are not."""

import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict

from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import RESULT_NEUTRAL_SECTIONS, Experiment
from tljax.config.serialization import to_dict
from tljax.core.resolve import Resolved
from tljax.errors import InputError
from tljax.evals import predictions
from tljax.evals.evaluator import name_of
from tljax.evals.predictions import Predictions
from tljax.io import storage
from tljax.problems.registry import problem_for
from tljax.program import program

_FREE = tuple(f"{section}." for section in RESULT_NEUTRAL_SECTIONS)


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        name: its workdir, as it was asked for.
        folder: the same.
        experiment, resolved: as `Workdir.load` gives them.
        result: of `result.json`.
        origin: as `Workdir.origin` gives it.
    """

    name: str
    folder: Workdir
    experiment: Experiment
    resolved: Resolved
    result: Mapping[str, Any]
    origin: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.experiment.seed

    def metrics(self, split: str) -> Mapping[str, Any] | None:
        """Returns a split's metrics at the last step, of the run or of a later `evaluate`; None without.

        What JSON has null for is NaN.
        """
        metrics = self.result["splits"].get(split) or self._evaluated.get(split)
        return metrics and {name: math.nan if value is None else value for name, value in metrics.items()}

    def predictions(self, split: str) -> tuple[Predictions, Mapping[str, Any]]:
        """Returns the predictions of a split at the last step, and their metadata.

        Raises:
            InputError: they are not there, or damaged.
        """
        path = self.folder.path / "evaluations" / f"{name_of(self.result['steps'], split)}.parquet"
        if not path.exists():
            raise InputError(f"{self.name} has no predictions of {split}: {self.evaluation(split)} writes them")
        return predictions.load(path, problem_for(self.experiment))

    def evaluation(self, split: str) -> str:
        """Returns the command that evaluates it on a split."""
        return f"{program()} evaluate --workdir={shlex.quote(self.name)} --split={split}"

    @cached_property
    def values(self) -> dict[str, Any]:
        """All values of its config, by dotted key."""
        return flatten_dict(to_dict(self.experiment), sep=".")

    @property
    def command(self) -> list[str]:
        """The words of the command that trains it anew, by itself, in another workdir."""
        plain = flatten_dict(to_dict(Experiment()), sep=".")
        differing = [key for key, value in self.values.items() if value != plain.get(key) and not key.startswith(_FREE)]
        keys = [shlex.quote(f"--config.{key}={self.values[key]}") for key in differing]
        return [program(), "train", "--config=default", "--workdir=runs/again", *keys]

    @property
    def started_by(self) -> str:
        """The command that made it, without the path of its Python; empty if it did not come from a command line."""
        started = re.search(r" (-m |\S*/)tljax'? (.*)", self.origin["command"] or "", re.DOTALL)
        return f"{'python -m tljax' if started[1] == '-m ' else 'tljax'} {started[2]}" if started else ""

    @cached_property
    def _evaluated(self) -> dict[str, Any]:
        """The metrics of the splits that only `evaluate` has been asked for, at the last step."""
        metrics = {}
        for split in ("validation", "test"):
            path = self.folder.path / "evaluations" / f"{name_of(self.result['steps'], split)}.json"
            if path.exists():
                metrics[split] = storage.read_json(path, f"remove it, and evaluate {self.name} again")
        return metrics


@dataclass(frozen=True)
class Unfinished:
    """A workdir without a result.

    Attributes:
        name: as of a run.
        reason: how far it came, or what is wrong with it.
    """

    name: str
    reason: str


def read(folders: Sequence[str]) -> tuple[list[Run], list[Unfinished]]:
    """Returns all runs below some folders, or those that they are, finished and not, in the order of their names.

    Raises:
        InputError: a folder is not there, or has no run in it.
    """
    runs: dict[str, Run | Unfinished] = {}
    for folder in folders:
        root = storage.locate(folder)
        if not root.is_dir():
            raise InputError(f"{folder}: no such folder")
        paths = list(_workdirs(root))
        if not paths:
            raise InputError(f"{folder}: no run in it (no config.json)")
        for path in paths:
            inside = path.relative_to(root).as_posix()
            name = folder if inside == "." else f"{folder.rstrip('/')}/{inside}"
            if os.fspath(path) not in runs:
                runs[os.fspath(path)] = _run(name, path)
    finished = [run for run in runs.values() if isinstance(run, Run)]
    return finished, [run for run in runs.values() if isinstance(run, Unfinished)]


def _workdirs(folder: epath.Path) -> Iterator[epath.Path]:
    if any((folder / name).exists() for name in ("config.json", "error.json")):  # of a sweep's point maybe this alone
        yield folder
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir():
            yield from _workdirs(child)


def _run(name: str, path: epath.Path) -> Run | Unfinished:
    folder = Workdir(path)
    try:
        if (failed := folder.error) and folder.result is None:
            return Unfinished(name, f"failed: {failed['error']}")
        experiment, resolved = folder.load()
        result = folder.result
        if result is not None:
            return Run(name, folder, experiment, resolved, result, folder.origin)
        lines = folder.metrics
    except InputError as error:
        return Unfinished(name, str(error))
    except (KeyError, ValueError) as error:
        return Unfinished(name, f"its files are not a run's ({type(error).__name__}: {error})")
    at = f"at step {lines[-1]['step']} of {resolved.steps}" if lines else "no step logged"
    return Unfinished(name, f"not finished: {at}")
