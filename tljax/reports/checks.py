"""Which runs may stand in one table, and what keeps others out of it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tljax.errors import InputError
from tljax.reports.runs import Run, Unfinished


def by_task(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Returns the runs of each data set, by its name; of a set with several kinds of labels, by theirs too."""
    members_of: dict[tuple, list[Run]] = {}
    for run in runs:
        members_of.setdefault((run.experiment.task.dataset, run.experiment.task.label), []).append(run)
    datasets = [dataset for dataset, _ in members_of]
    return {
        dataset if datasets.count(dataset) == 1 else f"{dataset}, {' '.join(label) or 'default label'}": members
        for (dataset, label), members in members_of.items()
    }


def with_split(runs: Sequence[Run], split: str) -> tuple[list[Run], list[Unfinished]]:
    """Returns the runs that have a split, and those that have not and are left out.

    Raises:
        InputError: none has it.
    """
    judged = [run for run in runs if getattr(run.experiment.task, split)]
    reason = f"no {split} split (task.{split} is empty)"
    if not judged:
        other = "--split=validation" if split == "test" else "--split=test"
        raise InputError(f"{runs[0].name} has {reason}, nor has another run: set it, or give {other}")
    return judged, [Unfinished(run.name, reason) for run in runs if run not in judged]


def check(runs: Sequence[Run], split: str) -> None:
    """Raises InputError, of two runs and what they differ in, where numbers of a data set are of different things."""
    tested = [run for run in runs if run.metrics(split) is not None]
    validated = [run for run in runs if run.experiment.task.validation]
    _same(runs, "the kind of problem, task.problem", lambda run: run.experiment.task.problem)
    _same(runs, "the content of the data set, by its fingerprint", lambda run: run.resolved.data)
    _same(runs, "the classes", lambda run: run.resolved.classes)
    _same(runs, f"the {split} split, task.{split}", lambda run: getattr(run.experiment.task, split))
    _same(validated, "the validation split, task.validation", lambda run: run.experiment.task.validation)
    _same(tested, "the metrics that there are", lambda run: _names(run.metrics(split) or {}))


def check_seeds(members: Sequence[Run]) -> None:
    """Raises InputError where two runs of a setting have the same seed."""
    first: dict[int, Run] = {}
    for run in members:
        other = first.setdefault(run.seed, run)
        if other is not run:
            raise InputError(f"{other.name} and {run.name} are one setting with one seed, {run.seed}: leave out one")


def check_examples(runs: Sequence[Run], examples: Sequence[tuple[str, str]]) -> None:
    """Raises InputError where predictions are not of the same examples in the same order.

    Args:
        examples: of each run, the key of the split's content and order, and a digest of names and labels.
    """
    facts = dict(zip(runs, examples, strict=True))
    _same(runs, "the examples that they were judged on, or their order", lambda run: facts[run])


def check_metric(run: Run, metric: str, split: str, counted: float) -> None:
    """Raises InputError where a metric of stored predictions is not what the run's result says.

    Args:
        run: whose result it is.
        metric: its name.
        split: that the predictions are of.
        counted: the metric's value of the predictions.
    """
    metrics = run.metrics(split) or {}
    if metric not in metrics:
        raise InputError(f"{run.name} has no metric {metric!r} of {split}; there are: {', '.join(_names(metrics))}")
    if not math.isfinite(counted) or not math.isfinite(metrics[metric]):
        raise InputError(f"{run.name}: {metric} of {split} is not a number, and nothing is best by it: name another")
    if abs(metrics[metric] - counted) > 1e-6 * max(1.0, abs(counted)):
        raise InputError(
            f"{run.name} says {split} {metric} {metrics[metric]:.6g}, and of its predictions it is {counted:.6g}: that "
            "is of another definition, or version of tljax: leave it out, or train it anew"
        )


def _names(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(name for name, value in metrics.items() if isinstance(value, float)))


def _same(runs: Sequence[Run], quantity: str, value_of: Callable[[Run], Any]) -> None:
    for run in runs[1:]:
        value, first = value_of(run), value_of(runs[0])
        if value != first:
            raise InputError(
                f"{runs[0].name} and {run.name} differ in {quantity} ({_apart(first, value)}): they cannot be "
                "compared, report them apart"
            )


def _apart(first: Any, second: Any) -> str:
    """Returns two values in a few words; of tuples the first place where they part."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        for left, right in zip(first, second, strict=False):
            if left != right:
                return _apart(left, right)
        return f"{len(first)} and {len(second)} of them"
    short = [text if len(text) <= 40 else f"{text[:12]}…" for text in (str(first), str(second))]
    return " and ".join(repr(text) for text in short)
