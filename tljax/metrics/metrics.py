"""The metrics of a whole split, on the host: points as scikit-learn has them, and bootstrap intervals."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from tljax.errors import InputError
from tljax.metrics import bootstrap
from tljax.metrics.bootstrap import Statistic


@dataclass(frozen=True)
class Bins:
    """Predictions in 15 bins of equal width by confidence, each open below and closed above (Guo 2017, 1706.04599).

    Attributes:
        count: predictions in each.
        confidence: their mean probability; NaN in an empty bin.
        accuracy: the part of them that came true; NaN in an empty bin.
    """

    count: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]

    @property
    def ece(self) -> float:
        """The expected calibration error: how far accuracy and confidence are apart, averaged over predictions."""
        apart = np.abs(self.accuracy - self.confidence)
        return float(np.where(self.count, self.count * apart, 0).sum() / self.count.sum())


def summarize(
    problem: str, logits: Float[np.ndarray, "n classes"], labels: Num[np.ndarray, "n ..."], *, full: bool = True
) -> dict[str, float | int | list[float]]:
    """A split's metrics from the outputs and labels of all of its examples, in the labels' own units.

    Sums run over the whole split in float64 on the host, so that batch size and device count change nothing but
    the last bits of single logits. Probabilities are the softmax, or sigmoid, of the logits; from them scikit-learn's
    functions give the same numbers (`log_loss`, `brier_score_loss` and `top_k_accuracy_score` told of all classes).

    `single_label`, labels [n]:
        `accuracy`; `top_5`: the label is among the 5 highest logits; only with more than 5 classes.
        `balanced_accuracy`: recall, averaged over the classes that occur: what Pets, Flowers and VTAB call mean
        per-class accuracy. `macro_f1`: F1, averaged over the classes that occur or are predicted.
        `loss`: the negative log-likelihood in nats; `log_loss`, but for an example to whose label a probability
        below 2e-16 is given, which that counts as 36 nats.
        `brier`: the squared error of the probabilities, summed over classes (0 to 2) with more than two of them;
        of the second class (0 to 1) with two.
        `ece`: `Bins.ece` of the highest probability.
        `auroc`, `average_precision`: by the second class's probability of two; of more, one against the rest,
        averaged over the classes that some, and not all, examples have; left out where there is none.
    `multi_label`, labels [n, classes] of 0 and 1; a class is predicted above probability 0.5:
        `mean_average_precision`: averaged over the classes that occur, 0 if none does. `f1`, `micro_f1`: F1,
        averaged over classes (0 of one that neither occurs nor is predicted), and of all predictions together.
        `exact_match`: all classes of an example are right. `loss`: binary cross-entropy in nats, averaged over
        classes. `brier`: the probabilities' squared error, averaged over classes. `ece`: `Bins.ece` of each
        class's probability, all classes together. `auroc`: as above.
    `regression`, labels [n, classes]; averaged over values:
        `mae`; `loss`: the squared error; `rmse`: the root of `loss`; `r2`: NaN where a target is constant, as that of
        one example is.

    Args:
        full: whether with the metrics of a ranking (`auroc`, `average_precision`) and all intervals; without, the
            only interval is that of `accuracy`, `exact_match` or `mae`.

    Returns:
        The metrics, `count`, and `NAME_95` of a metric: its 95% percentile bootstrap interval over examples, from 1000
        resamples that are the same for all metrics, and for all splits of one size; a resample in which a metric is
        undefined does not count for it. Those of `accuracy` and `exact_match` are from 10,000 counts of hits, which
        are binomial. The metrics of a ranking have none above a million examples × classes. That of `ece` lies high,
        as each resample adds its own noise to the gaps.

    Raises:
        InputError: an output is not finite.
    """
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=-1))
    if len(broken):
        raise InputError(
            f"the network's output is not finite for {len(broken)} of {len(logits)} examples, the first at index"
            f" {broken[0]}: look at the weights, and at that example's input"
        )
    points, statistics = _judged(problem, logits, labels, full)
    intervals = bootstrap.intervals(statistics, len(labels))
    found: dict[str, float | int | list[float]] = {}
    for name, value in points.items():
        found[name] = value if isinstance(value, list) else float(value)
        if name in intervals:
            found[f"{name}_95"] = intervals[name]
    return found | {"count": len(labels)}


def statistic(
    problem: str, logits: Float[np.ndarray, "n classes"], labels: Num[np.ndarray, "n ..."], metric: str
) -> Statistic:
    """What gives a metric of `summarize`, under its name, of a split of which each example counts so many times.

    Raises:
        InputError: there is no such metric, or it is one of a ranking, of too many scores to be resampled.
    """
    hits = {"single_label": "accuracy", "multi_label": "exact_match"}
    if metric == hits.get(problem):
        return bootstrap.means_of({metric: right(logits, labels)})
    points, statistics = _judged(problem, logits, labels, True)
    once = np.ones((len(labels), 1))
    for one in statistics:
        if metric in one(once):
            return one
    if metric in points:
        raise InputError(f"{metric} of {logits.size:,} scores takes too long to resample: name another metric")
    known = [name for name, value in points.items() if not isinstance(value, list)]
    raise InputError(f"no metric {metric!r}; there are: {', '.join(known)}")


def calibration(logits: Float[np.ndarray, "n classes"], labels: Num[np.ndarray, "n ..."]) -> Bins:
    """How confidence, the highest probability for labels [n], or each class's for labels [n, classes], comes true."""
    from scipy.special import expit, softmax

    if labels.ndim == 1:
        return _bins(softmax(logits.astype(np.float64), axis=-1).max(axis=-1), logits.argmax(axis=-1) == labels)
    return _bins(expit(logits.astype(np.float64)), labels)


def right(logits: Float[np.ndarray, "n classes"], labels: Num[np.ndarray, "n ..."]) -> Bool[np.ndarray, " n"]:
    """Which examples are right: the highest logit is the label's, or of labels [n, classes] all are predicted."""
    if labels.ndim == 1:
        return logits.argmax(axis=-1) == labels
    return ((logits > 0) == (labels > 0)).all(axis=-1)


def _judged(problem: str, logits: np.ndarray, labels: np.ndarray, full: bool) -> tuple[dict[str, Any], list[Statistic]]:
    judged = {"single_label": _single_label, "multi_label": _multi_label, "regression": _regression}[problem]
    return judged(logits.astype(np.float64), labels, full)


def _single_label(logits: np.ndarray, labels: np.ndarray, full: bool) -> tuple[dict[str, Any], list[Statistic]]:
    from scipy.special import softmax
    from sklearn.metrics import f1_score

    classes, said = logits.shape[-1], logits.argmax(axis=-1)
    chances = softmax(logits, axis=-1)
    hits, confidence = said == labels, chances.max(axis=-1)
    means = {"loss": _nats(logits, chances, labels), "brier": _squared(chances, labels)}
    if classes > 5:
        means["top_5"] = _place(logits, labels) < 5
    points = {"accuracy": hits.mean(), "accuracy_95": bootstrap.interval_of_hits(hits)}
    points |= {name: values.mean() for name, values in means.items()}
    points["ece"] = _bins(confidence, hits).ece
    # As balanced_accuracy_score has it, which makes a table of classes × classes: of 20,000, some gigabytes.
    occur, right = (np.bincount(of, minlength=classes) for of in (labels, labels[hits]))
    points["balanced_accuracy"] = np.mean(right[occur > 0] / occur[occur > 0])
    with warnings.catch_warnings():  # that a class is predicted and does not occur, or that there are many for few
        warnings.simplefilter("ignore", UserWarning)
        points["macro_f1"] = f1_score(labels, said, average="macro", zero_division=0)
    if not full:
        return points, []
    statistics = [
        bootstrap.means_of(means),
        bootstrap.by_class(labels, said, classes),
        bootstrap.calibration_error(confidence[:, None], hits[:, None]),
    ]
    columns = [1] if classes == 2 else range(classes)  # of two, the first's ranking is the second's reversed
    columns = [k for k in columns if 0 < (labels == k).sum() < len(labels)]
    if columns:
        has, scores = labels[:, None] == np.array(columns), chances
        if len(columns) < classes:  # a copy only where need be
            scores = chances[:, columns]
        points["auroc"], points["average_precision"] = np.mean(_aurocs(has, scores)), np.mean(_precisions(has, scores))
        statistics += bootstrap.rankings(has, scores, "average_precision", both=True)
    return points, statistics


def _multi_label(logits: np.ndarray, labels: np.ndarray, full: bool) -> tuple[dict[str, Any], list[Statistic]]:
    from scipy.special import expit
    from sklearn.metrics import brier_score_loss

    has, said, chances = labels > 0, logits > 0, expit(logits)
    exact = (said == has).all(axis=-1)
    losses = (np.logaddexp(0, logits) - labels * logits).mean(axis=-1)
    points = {
        "mean_average_precision": np.mean(_precisions(has, logits) or 0.0),
        **bootstrap.f1((has & said).sum(axis=0), has.sum(axis=0) + said.sum(axis=0)),
        "exact_match": exact.mean(),
        "exact_match_95": bootstrap.interval_of_hits(exact),
        "loss": losses.mean(),
        "brier": np.mean(_of_columns(partial(brier_score_loss, pos_label=True), has, chances)),
        "ece": _bins(chances, has).ece,
    }
    if not full:
        return points, []
    means = {"loss": losses, "brier": np.square(has - chances).mean(axis=-1)}
    statistics = [bootstrap.means_of(means), bootstrap.by_label(has, said), bootstrap.calibration_error(chances, has)]
    if areas := _aurocs(has, logits):
        points["auroc"] = np.mean(areas)
    return points, statistics + bootstrap.rankings(has, logits, "mean_average_precision", both=False)


def _regression(values: np.ndarray, labels: np.ndarray, full: bool) -> tuple[dict[str, Any], list[Statistic]]:
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    labels = labels.astype(np.float64)
    squared = mean_squared_error(labels, values)
    points = {
        "mae": mean_absolute_error(labels, values),
        "rmse": np.sqrt(squared),
        "r2": r2_score(labels, values) if (labels.max(axis=0) > labels.min(axis=0)).all() else np.nan,
        "loss": squared,
    }
    statistics = [bootstrap.means_of({"mae": np.abs(values - labels).mean(axis=-1)})]
    return points, [*statistics, bootstrap.by_target(values, labels)] if full else statistics


def _nats(logits: np.ndarray, chances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The negative log-likelihood of each example."""
    from scipy.special import log_softmax

    own, least = chances[np.arange(len(labels)), labels], np.finfo(np.float64).eps
    losses = -np.log(np.clip(own, least, 1 - least))  # as log_loss has it, to the last digit
    rare = own < least
    losses[rare] = -np.take_along_axis(log_softmax(logits[rare], axis=-1), labels[rare][:, None], axis=-1)[:, 0]
    return losses


def _squared(chances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The squared error of each example's probabilities, summed over classes; of two, half of that."""
    errors = np.empty(len(labels))
    step = max(1, 2**22 // chances.shape[-1])
    for rows in (slice(start, start + step) for start in range(0, len(labels), step)):  # a part at a time is copied
        apart, own = chances[rows].copy(), labels[rows]
        apart[np.arange(len(own)), own] -= 1
        errors[rows] = np.square(apart, out=apart).sum(axis=-1)
    return errors * (0.5 if chances.shape[-1] == 2 else 1)


def _place(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before each label's; of equal logits the last comes first, as in top_k_accuracy_score."""
    own = np.take_along_axis(logits, labels[:, None], axis=-1)
    later = np.arange(logits.shape[-1]) > labels[:, None]
    return ((logits > own) | ((logits == own) & later)).sum(axis=-1)


def _bins(confidence: np.ndarray, right: np.ndarray) -> Bins:
    places = bootstrap.bin_of(confidence).ravel()
    count = np.bincount(places, minlength=bootstrap.BINS)
    sums = (np.bincount(places, of.ravel(), minlength=bootstrap.BINS) for of in (confidence, right))
    return Bins(count, *(np.divide(of, count, out=np.full(bootstrap.BINS, np.nan), where=count > 0) for of in sums))


def _aurocs(has: np.ndarray, scores: np.ndarray) -> list[float]:
    """Of each class that some, and not all, examples have."""
    from sklearn.metrics import roc_auc_score

    both = has.any(axis=0) & ~has.all(axis=0)
    return _of_columns(roc_auc_score, has, scores, both)


def _precisions(has: np.ndarray, scores: np.ndarray) -> list[float]:
    """The average precision of each class that occurs."""
    from sklearn.metrics import average_precision_score

    return _of_columns(average_precision_score, has, scores, has.any(axis=0))


def _of_columns(
    metric: Callable[..., float], has: np.ndarray, scores: np.ndarray, among: np.ndarray | None = None
) -> list[float]:
    """Returns a metric of each column, or of those `among` them."""
    columns = range(has.shape[1]) if among is None else np.flatnonzero(among).tolist()
    # Most of the time is NumPy sorting, during which another thread can sort, too.
    with ThreadPoolExecutor() as pool:
        each = pool.map if has.size > bootstrap.LARGE else map  # to start threads takes longer than a few short sorts
        return list(each(lambda k: metric(has[:, k], scores[:, k]), columns))
