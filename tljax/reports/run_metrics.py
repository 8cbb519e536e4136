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
    """A metric of a run on a split, and what comparisons and figures need of its predictions.

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


def measure(run: Run, split: str, metric: str) -> RunMetrics:
    """Returns a metric of a run, from its predictions of a split.

    Args:
        run: a finished run.
        split: its name.
        metric: a name in `Problem.summarize`.

    Raises:
        InputError: they are not there, there is no such metric, or the run's result says another value of it.
    """
    predictions, metadata = run.predictions(split)
    problem, outputs, labels = predictions.problem, predictions.logits, predictions.labels
    statistic = problem.statistic(outputs, labels, metric)
    value = float(statistic(np.ones((len(predictions.ids), 1)))[metric][0])
    checks.check_metric(run, metric, split, value)
    digest = hashlib.sha256(json.dumps(predictions.ids).encode() + np.ascontiguousarray(labels).tobytes())
    hits = problem.hits(outputs, labels)
    return RunMetrics(
        value,
        metric,
        statistic,
        (metadata["data"], digest.hexdigest()),
        len(predictions.ids),
        hits and hits[1],
        problem.calibration(outputs, labels),
        problem.confusion(outputs, labels),
    )


def resampled(runs: Sequence[RunMetrics], draws: int) -> list[Float[np.ndarray, " draws"]]:
    """Returns the metric of each run in each resample of their examples, the same resamples for all."""
    values: list[list[np.ndarray]] = [[] for _ in runs]
    for times in bootstrap.resamples(runs[0].count, draws):
        for parts, run in zip(values, runs, strict=True):
            parts.append(run.statistic(times)[run.metric])
    return [np.concatenate(parts) for parts in values]


def pooled(bins: Sequence[Bins]) -> Bins:
    """Returns the calibration of all predictions of several runs together."""
    count = np.sum([run_bins.count for run_bins in bins], axis=0)

    def mean(key: str) -> np.ndarray:
        sums = np.sum(
            [np.where(run_bins.count, getattr(run_bins, key) * run_bins.count, 0) for run_bins in bins], axis=0
        )
        return np.divide(sums, count, out=np.full(len(count), np.nan), where=count > 0)

    return Bins(count, mean("confidence"), mean("accuracy"))
