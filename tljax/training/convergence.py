"""Whether a run has converged, or its rate made it diverge, as its logged training losses say; and what to try."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tljax.config.schema import Experiment

_SHARE = 0.2  # of the learning rate spent, that each of the two windows is long
_LEAST_FALL = 0.05  # of all that the loss fell, that it fell from one to the other
_RISE = 1.1  # times the loss at the start


@dataclass(frozen=True)
class Course:
    """What the training losses of a run did.

    Attributes:
        falling: the mean losses of the last two windows, where the loss was still falling.
        diverged: the loss at the end, and what it is far above, where it is.
        skipped: steps that were not finite.
    """

    falling: tuple[float, float] | None = None
    diverged: tuple[float, float] | None = None
    skipped: int = 0


def course(rows: Sequence[Mapping[str, Any]]) -> Course:
    """Judges the training losses of `metrics.jsonl`.

    Time is counted in learning rate spent, so that a rate that has decayed to nothing does not pass for convergence.
    The loss was still falling if its mean over the last fifth of that is below its mean over the fifth before, by more
    than 5% of what it fell in all and by two standard errors. It has diverged if its mean over the last tenth of the
    rows is more than 10% above the first row's; or more than twice its lowest such mean, and above that by more than
    half of what it had fallen. Fewer than 10 rows, or 2 of a fifth, say nothing of either.

    Args:
        rows: of training; those with a loss that is a number count.
    """
    rows = [row for row in rows if row.get("split") == "train"]
    skipped = int(rows[-1].get("skipped_steps", 0)) if rows else 0
    rows = [row for row in rows if isinstance(row.get("loss"), int | float) and math.isfinite(row["loss"])]
    if len(rows) < 10:
        return Course(skipped=skipped)
    losses = np.array([row["loss"] for row in rows], np.float64)
    rates = np.array([row.get("learning_rate", 1.0) for row in rows], np.float64)
    diverged = _diverged(losses)
    return Course(None if diverged else _falling(losses, rates), diverged, skipped)


def _diverged(losses: np.ndarray) -> tuple[float, float] | None:
    size = max(3, len(losses) // 10)
    means = np.convolve(losses, np.full(size, 1 / size), "valid")
    start, lowest, end = losses[0], means.min(), means[-1]
    if end > max(_RISE * start, start):
        return float(end), float(start)
    if end > 2 * lowest > 0 and end - lowest > (start - lowest) / 2:
        return float(end), float(lowest)
    return None


def _falling(losses: np.ndarray, rates: np.ndarray) -> tuple[float, float] | None:
    spent = np.cumsum(rates)
    if not spent[-1] > 0:
        return None
    # Of what is spent by a row half counts to its own place: the middle of the steps that it stands for.
    places = (spent - rates / 2) / spent[-1]
    last, before = losses[places >= 1 - _SHARE], losses[(places >= 1 - 2 * _SHARE) & (places < 1 - _SHARE)]
    if min(len(last), len(before)) < 2:
        return None
    fall = before.mean() - last.mean()
    error = math.sqrt(last.var(ddof=1) / len(last) + before.var(ddof=1) / len(before))
    if fall > 2 * error and fall > _LEAST_FALL * (losses[0] - last.mean()) > 0:
        return float(before.mean()), float(last.mean())
    return None


def advice(rows: Sequence[Mapping[str, Any]], experiment: Experiment) -> list[str]:
    """Returns a line for each thing that is amiss in a run's training losses, with the keys to try.

    Args:
        rows: of `metrics.jsonl`, of the run's last phase.
        experiment: the run's.
    """
    judged, optim, lines = course(rows), experiment.optim, []
    rate = optim.learning_rate
    calmer = [f"config.optim.learning_rate={rate / 10:.2g}"]
    calmer += [] if optim.clip_norm else ["config.optim.clip_norm=1.0"]
    calmer += [] if optim.warmup_steps or not experiment.steps else [f"config.optim.warmup_steps={_tenth(experiment)}"]
    if judged.skipped:
        lines.append(f"{judged.skipped} steps were not finite and were skipped: try {', '.join(calmer)}")
    if judged.diverged:
        end, other = judged.diverged
        message = f"the training loss rose, to {end:.3g} from {other:.3g}: the learning rate is too high"
        lines.append(f"{message}; try {', '.join(calmer)}")
    if judged.falling:
        before, last = judged.falling
        length = (
            f"config.steps={2 * experiment.steps}" if experiment.steps else f"config.epochs={2 * experiment.epochs:g}"
        )
        message = f"not converged: the training loss was still falling, from {before:.3g} to {last:.3g}"
        lines.append(f"{message}; try {length}, or config.optim.learning_rate={3 * rate:.2g}")
    return lines


def _tenth(experiment: Experiment) -> int:
    return max(1, experiment.steps // 10)
