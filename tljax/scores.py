"""The metrics of a whole split, on the host: points as scikit-learn has them, and bootstrap intervals."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from tljax.errors import InputError

_DRAWS = 1000  # resamples of an interval
_BLOCK = 2**21  # numbers of a block of resamples: 16 MiB, whatever the split
_LARGE = 1_000_000  # scores, examples × classes, up to which the metrics of a ranking get an interval (some 10 s)
_BINS = 15

# From how often each example is in each resample [n, draws]: metrics of each resample [draws], NaN where undefined.
_Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]


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


def summarise(
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
    judged = {"single_label": _single_label, "multi_label": _multi_label, "regression": _regression}[problem]
    points, statistics = judged(logits.astype(np.float64), labels, full)
    intervals = _intervals(statistics, len(labels))
    found: dict[str, float | int | list[float]] = {}
    for name, value in points.items():
        found[name] = value if isinstance(value, list) else float(value)
        if name in intervals:
            found[f"{name}_95"] = intervals[name]
    return found | {"count": len(labels)}


def calibration(logits: Float[np.ndarray, "n classes"], labels: Num[np.ndarray, "n ..."]) -> Bins:
    """How confidence, the highest probability for labels [n], or each class's for labels [n, classes], comes true."""
    from scipy.special import expit, softmax

    if labels.ndim == 1:
        return _bins(softmax(logits.astype(np.float64), axis=-1).max(axis=-1), logits.argmax(axis=-1) == labels)
    return _bins(expit(logits.astype(np.float64)), labels)


def _single_label(logits: np.ndarray, labels: np.ndarray, full: bool) -> tuple[dict[str, Any], list[_Statistic]]:
    from scipy.special import softmax
    from sklearn.metrics import balanced_accuracy_score, f1_score

    classes, said = logits.shape[-1], logits.argmax(axis=-1)
    chances = softmax(logits, axis=-1)
    hits, confidence = said == labels, chances.max(axis=-1)
    means = {"loss": _nats(logits, chances, labels), "brier": _squared(chances, labels)}
    if classes > 5:
        means["top_5"] = _place(logits, labels) < 5
    points = {"accuracy": hits.mean(), "accuracy_95": _interval_of_hits(hits)}
    points |= {name: values.mean() for name, values in means.items()}
    points["ece"] = _bins(confidence, hits).ece
    with warnings.catch_warnings():  # that a class is predicted and does not occur, or that there are many for few
        warnings.simplefilter("ignore", UserWarning)
        points["balanced_accuracy"] = balanced_accuracy_score(labels, said)
        points["macro_f1"] = f1_score(labels, said, average="macro", zero_division=0)
    if not full:
        return points, []
    statistics = [_means(means), _by_class(labels, said, classes), _error(confidence[:, None], hits[:, None])]
    columns = [1] if classes == 2 else range(classes)  # of two, the first's ranking is the second's reversed
    columns = [k for k in columns if 0 < (labels == k).sum() < len(labels)]
    if columns:
        has, scores = labels[:, None] == np.array(columns), chances[:, columns]
        points["auroc"], points["average_precision"] = np.mean(_aurocs(has, scores)), np.mean(_precisions(has, scores))
        statistics += _rankings(has, scores, "average_precision", both=True)
    return points, statistics


def _multi_label(logits: np.ndarray, labels: np.ndarray, full: bool) -> tuple[dict[str, Any], list[_Statistic]]:
    from scipy.special import expit
    from sklearn.metrics import brier_score_loss

    has, said, chances = labels > 0, logits > 0, expit(logits)
    exact = (said == has).all(axis=-1)
    losses = (np.logaddexp(0, logits) - labels * logits).mean(axis=-1)
    points = {
        "mean_average_precision": np.mean(_precisions(has, logits) or 0.0),
        **_f1((has & said).sum(axis=0), has.sum(axis=0) + said.sum(axis=0)),
        "exact_match": exact.mean(),
        "exact_match_95": _interval_of_hits(exact),
        "loss": losses.mean(),
        "brier": np.mean(_of_columns(partial(brier_score_loss, pos_label=True), has, chances)),
        "ece": _bins(chances, has).ece,
    }
    if not full:
        return points, []
    means = {"loss": losses, "brier": np.square(has - chances).mean(axis=-1)}
    statistics = [_means(means), _by_label(has, said), _error(chances, has)]
    if areas := _aurocs(has, logits):
        points["auroc"] = np.mean(areas)
    return points, statistics + _rankings(has, logits, "mean_average_precision", both=False)


def _regression(values: np.ndarray, labels: np.ndarray, full: bool) -> tuple[dict[str, Any], list[_Statistic]]:
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    labels = labels.astype(np.float64)
    squared = mean_squared_error(labels, values)
    points = {
        "mae": mean_absolute_error(labels, values),
        "rmse": np.sqrt(squared),
        "r2": r2_score(labels, values) if (labels.max(axis=0) > labels.min(axis=0)).all() else np.nan,
        "loss": squared,
    }
    statistics = [_means({"mae": np.abs(values - labels).mean(axis=-1)})]
    return points, [*statistics, _by_target(values, labels)] if full else statistics


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
    apart = chances.copy()
    apart[np.arange(len(labels)), labels] -= 1
    return np.square(apart, out=apart).sum(axis=-1) * (0.5 if chances.shape[-1] == 2 else 1)


def _place(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before each label's; of equal logits the last comes first, as in top_k_accuracy_score."""
    own = np.take_along_axis(logits, labels[:, None], axis=-1)
    later = np.arange(logits.shape[-1]) > labels[:, None]
    return ((logits > own) | ((logits == own) & later)).sum(axis=-1)


def _bin_of(confidence: np.ndarray) -> np.ndarray:
    return np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)


def _bins(confidence: np.ndarray, right: np.ndarray) -> Bins:
    places = _bin_of(confidence).ravel()
    count = np.bincount(places, minlength=_BINS)
    sums = (np.bincount(places, of.ravel(), minlength=_BINS) for of in (confidence, right))
    return Bins(count, *(np.divide(of, count, out=np.full(_BINS, np.nan), where=count > 0) for of in sums))


def _aurocs(has: np.ndarray, scores: np.ndarray) -> list[float]:
    """Of each class that some, and not all, examples have."""
    from sklearn.metrics import roc_auc_score

    both = has.any(axis=0) & ~has.all(axis=0)
    return _of_columns(roc_auc_score, has[:, both], scores[:, both])


def _precisions(has: np.ndarray, scores: np.ndarray) -> list[float]:
    """The average precision of each class that occurs."""
    from sklearn.metrics import average_precision_score

    there = has.any(axis=0)
    return _of_columns(average_precision_score, has[:, there], scores[:, there])


def _of_columns(metric: Callable[..., float], has: np.ndarray, scores: np.ndarray) -> list[float]:
    # Most of the time is NumPy sorting, during which another thread can sort, too.
    with ThreadPoolExecutor() as pool:
        each = pool.map if has.size > _LARGE else map  # to start threads takes longer than a few short sorts
        return list(each(metric, has.T, scores.T))


def _interval_of_hits(hits: np.ndarray) -> list[float]:
    from scipy import stats

    # Resampling n hits with replacement draws a binomial count: the same bootstrap, without n × 10,000 numbers.
    draws = stats.binom.rvs(len(hits), hits.mean(), size=10_000, random_state=0) / len(hits)
    return np.quantile(draws, (0.025, 0.975)).tolist()


def _intervals(statistics: list[_Statistic], count: int) -> dict[str, list[float]]:
    """The 95% percentile interval of each metric over the resamples in which it is defined."""
    drawn: dict[str, list[np.ndarray]] = {}
    for times in _resamples(count) if statistics else ():
        for statistic in statistics:
            for name, values in statistic(times).items():
                drawn.setdefault(name, []).append(values[~np.isnan(values)])
    whole = {name: np.concatenate(parts) for name, parts in drawn.items()}
    return {name: np.quantile(draws, (0.025, 0.975)).tolist() for name, draws in whole.items() if len(draws)}


def _resamples(count: int) -> Iterator[np.ndarray]:
    """How often each example is in each of 1000 resamples, [count, draws] in blocks of draws."""
    rng = np.random.Generator(np.random.PCG64(0))
    step = max(1, _BLOCK // count)
    for start in range(0, _DRAWS, step):
        draws = min(step, _DRAWS - start)
        places = rng.integers(0, count, (draws, count)) + count * np.arange(draws)[:, None]
        times = np.bincount(places.ravel(), minlength=draws * count).reshape(draws, count)
        yield np.ascontiguousarray(times.T, dtype=np.float64)


def _means(of: Mapping[str, np.ndarray]) -> _Statistic:
    values = np.stack([one.astype(np.float64) for one in of.values()])
    return lambda times: dict(zip(of, values @ times / values.shape[1], strict=True))


def _error(confidence: np.ndarray, right: np.ndarray) -> _Statistic:
    """`Bins.ece` of confidences [n, k]."""
    count = len(confidence)
    places = _bin_of(confidence) * count + np.arange(count)[:, None]
    gaps = np.bincount(places.ravel(), (confidence - right).ravel(), minlength=_BINS * count).reshape(_BINS, count)
    return lambda times: {"ece": np.abs(gaps @ times).sum(axis=0) / confidence.size}


def _by_class(labels: np.ndarray, said: np.ndarray, classes: int) -> _Statistic:
    """`balanced_accuracy` and `macro_f1` from how many of each class occur, are predicted, and both."""
    from scipy.sparse import csr_array

    def members(of: np.ndarray, weights: np.ndarray) -> csr_array:
        return csr_array((weights.astype(np.float64), (of, np.arange(len(of)))), shape=(classes, len(of)))

    ones = np.ones(len(labels))
    there, called, both = members(labels, ones), members(said, ones), members(labels, said == labels)

    def statistic(times: np.ndarray) -> dict[str, np.ndarray]:
        occur, right = there @ times, both @ times
        with np.errstate(invalid="ignore"):
            recall, f1 = right / occur, 2 * right / (occur + called @ times)
        return {"balanced_accuracy": _mean_of_defined(recall), "macro_f1": _mean_of_defined(f1)}

    return statistic


def _by_label(has: np.ndarray, said: np.ndarray) -> _Statistic:
    # Whole numbers below 2**24 are exact in float32, which takes half the time.
    both, sizes = (has & said).T.astype(np.float32), has.T.astype(np.float32) + said.T.astype(np.float32)

    def statistic(times: np.ndarray) -> dict[str, np.ndarray]:
        times = times.astype(np.float32)
        return _f1((both @ times).astype(np.float64), (sizes @ times).astype(np.float64))

    return statistic


def _f1(both: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
    """`f1` and `micro_f1` from how many of each class [classes, ...] occur and are predicted, and the sum of each."""
    each = np.divide(2 * both, sizes, out=np.zeros(sizes.shape), where=sizes > 0)
    return {"f1": each.mean(axis=0), "micro_f1": 2 * both.sum(axis=0) / np.maximum(sizes.sum(axis=0), 1)}


def _by_target(values: np.ndarray, labels: np.ndarray) -> _Statistic:
    """`rmse`, `loss` and `r2`."""
    count = len(labels)
    squares, centred = np.square(values - labels).T, (labels - labels.mean(axis=0)).T

    def statistic(times: np.ndarray) -> dict[str, np.ndarray]:
        errors, spread = squares @ times, np.square(centred) @ times
        around = spread - np.square(centred @ times) / count
        # Of a target that is constant in a resample, rounding leaves some 1e-16 of its squared distance to the mean.
        around[around <= 1e-12 * spread] = np.nan
        loss = errors.mean(axis=0) / count
        return {"rmse": np.sqrt(loss), "loss": loss, "r2": (1 - errors / around).mean(axis=0)}

    return statistic


def _rankings(has: np.ndarray, scores: np.ndarray, name: str, both: bool) -> list[_Statistic]:
    """`auroc` and the mean average precision under its name, [n, classes]; none for more than a million scores.

    Args:
        both: whether a class counts for the precision only where some examples do not have it.
    """
    there = np.flatnonzero(has.any(axis=0))
    if not len(there) or scores.size > _LARGE:
        return []
    ranked = [_ranking(has[:, k], scores[:, k]) for k in there]

    def statistic(times: np.ndarray) -> dict[str, np.ndarray]:
        areas, precisions = np.stack([one(times) for one in ranked], axis=1)
        if both:
            precisions[np.isnan(areas)] = np.nan
        return {"auroc": _mean_of_defined(areas), name: _mean_of_defined(precisions)}

    return [statistic]


def _ranking(has: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """AUROC and average precision of one class in each resample, from the examples [n] sorted once.

    With weights, both are sums over the positive examples: AUROC of the negative ones below (those of an equal score
    count half), average precision of the part of positive ones among all that score at least as high.
    """
    order = np.argsort(-scores, kind="stable")
    fallen, places = -scores[order], np.flatnonzero(has[order])
    above = np.searchsorted(fallen, fallen[places], "left")  # examples of a higher score than each positive one's
    least = np.searchsorted(fallen, fallen[places], "right")  # and of at least that
    true_above, true_least = (np.searchsorted(places, of) for of in (above, least))

    def statistic(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        times = times[order]
        own, every = times[places], _running(times)
        true = _running(own)
        false = every[-1] - true[-1]
        below = false - (every[above] - true[true_above] + every[least] - true[true_least]) / 2
        precision = true[true_least] / np.maximum(every[least], 1)  # where none is drawn, `own` is 0
        with np.errstate(invalid="ignore"):
            return (own * below).sum(axis=0) / (true[-1] * false), (own * precision).sum(axis=0) / true[-1]

    return statistic


def _running(times: np.ndarray) -> np.ndarray:
    """The sum of the first 0, 1, … n rows."""
    sums = np.zeros((len(times) + 1, times.shape[1]))
    np.cumsum(times, axis=0, out=sums[1:])
    return sums


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Over classes [classes, draws]; NaN where none is."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)
