"""What a report keeps of a run's predictions: enough for its comparisons and figures, without the predictions."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from tljax.metrics import bootstrap
from tljax.metrics.bootstrap import Statistic
from tljax.metrics.classification import Bins
from tljax.reports import checks
from tljax.reports.runs import Run


@dataclass(frozen=True, eq=False)
class RunMetrics:
    """A run's metric on a split, and what figures and tests need of it.

    Attributes:
        value: the metric.
        metric, statistic: its name, and what gives it of examples that count several times or not at all.
        examples: the key of the split's content and order, and a digest of names and labels in order.
        count: examples.
        right: which of them are right; None of a regression.
        bins: how its confidence comes true; None of a regression.
        confused: how many of each class are taken for each, of single_label alone.
    """

    value: float
    metric: str
    statistic: Statistic
    examples: tuple[str, str]
    count: int
    right: Bool[np.ndarray, " n"] | None
    bins: Bins | None
    confused: Int[np.ndarray, "classes classes"] | None


def judge(run: Run, split: str, metric: str) -> RunMetrics:
    """Reads a run's predictions of a split.

    Raises:
        InputError: they are not there, there is no such metric, or the run's result says another value of it.
    """
    found, facts = run.predictions(split)
    problem = found.problem
    statistic = problem.statistic(found.logits, found.labels, metric)
    value = float(statistic(np.ones((len(found.ids), 1)))[metric][0])
    checks.check_metric(run, metric, split, value)
    digest = hashlib.sha256(json.dumps(found.ids).encode() + np.ascontiguousarray(found.labels).tobytes())
    hits = problem.hits(found.logits, found.labels)
    return RunMetrics(
        value,
        metric,
        statistic,
        (facts["data"], digest.hexdigest()),
        len(found.ids),
        hits and hits[1],
        problem.calibration(found.logits, found.labels),
        problem.confusion(found.logits, found.labels),
    )


def resampled(runs: Sequence[RunMetrics], draws: int) -> list[Float[np.ndarray, " draws"]]:
    """The metric of each run in each resample of the examples that they have in common, the same resamples for all."""
    found: list[list[np.ndarray]] = [[] for _ in runs]
    for times in bootstrap.resamples(runs[0].count, draws):
        for parts, run in zip(found, runs, strict=True):
            parts.append(run.statistic(times)[run.metric])
    return [np.concatenate(parts) for parts in found]


def pooled(bins: Sequence[Bins]) -> Bins:
    """The calibration of all predictions of several runs together."""
    count = np.sum([one.count for one in bins], axis=0)

    def mean(of: str) -> np.ndarray:
        sums = np.sum([np.where(one.count, getattr(one, of) * one.count, 0) for one in bins], axis=0)
        return np.divide(sums, count, out=np.full(len(count), np.nan), where=count > 0)

    return Bins(count, mean("confidence"), mean("accuracy"))
