"""95% percentile bootstrap intervals over examples, the same resamples for every metric of a split."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

BINS = 15  # of a calibration
LARGE = 1_000_000  # scores, examples × classes, up to which the metrics of a ranking get an interval (some 10 s)
_DRAWS = 1000  # resamples of an interval
_BLOCK = 2**21  # numbers of a block of resamples: 16 MiB, whatever the split

# From how often each example is in each resample [n, draws]: metrics of each resample [draws], NaN where undefined.
Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Returns the bin of each confidence: `BINS` of equal width, each open below and closed above."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def interval_of_hits(hits: np.ndarray) -> list[float]:
    """Returns the 95% interval of the share of hits."""
    from scipy import stats

    # Resampling n hits with replacement draws a binomial count: the same bootstrap, without n × 10,000 numbers.
    draws = stats.binom.rvs(len(hits), hits.mean(), size=10_000, random_state=0) / len(hits)
    return np.quantile(draws, (0.025, 0.975)).tolist()


def intervals(statistics: list[Statistic], count: int) -> dict[str, list[float]]:
    """Returns the 95% percentile interval of each metric over the resamples in which it is defined."""
    samples: dict[str, list[np.ndarray]] = {}
    for times in resamples(count, _DRAWS) if statistics else ():
        for statistic in statistics:
            for name, values in statistic(times).items():
                samples.setdefault(name, []).append(values[~np.isnan(values)])
    distributions = {name: np.concatenate(parts) for name, parts in samples.items()}
    return {name: np.quantile(draws, (0.025, 0.975)).tolist() for name, draws in distributions.items() if len(draws)}


def resamples(count: int, total: int) -> Iterator[np.ndarray]:
    """Yields how often each example is in each of `total` resamples, always the same: [count, draws] a block."""
    rng = np.random.Generator(np.random.PCG64(0))
    step = max(1, _BLOCK // count)
    for start in range(0, total, step):
        draws = min(step, total - start)
        places = rng.integers(0, count, (draws, count)) + count * np.arange(draws)[:, None]
        times = np.bincount(places.ravel(), minlength=draws * count).reshape(draws, count)
        yield np.ascontiguousarray(times.T, dtype=np.float64)


def means_of(values: Mapping[str, np.ndarray]) -> Statistic:
    """Returns the statistic of metrics that are means over examples, from the value [n] of each example by name."""
    stacked = np.stack([array.astype(np.float64) for array in values.values()])
    return lambda times: dict(zip(values, stacked @ times / stacked.shape[1], strict=True))


def calibration_error(confidence: np.ndarray, is_right: np.ndarray) -> Statistic:
    """Returns the statistic of `Bins.ece`, of confidences [n, k]."""
    count = len(confidence)
    places = bin_of(confidence) * count + np.arange(count)[:, None]
    gaps = np.bincount(places.ravel(), (confidence - is_right).ravel(), minlength=BINS * count).reshape(BINS, count)
    return lambda times: {"ece": np.abs(gaps @ times).sum(axis=0) / confidence.size}


def by_class(labels: np.ndarray, predicted: np.ndarray, classes: int) -> Statistic:
    """Returns the statistic of `balanced_accuracy` and `macro_f1`.

    Args:
        labels, predicted: a class each, int [n].
        classes: how many there are.
    """
    from scipy.sparse import csr_array

    def members(labels: np.ndarray, weights: np.ndarray) -> csr_array:
        return csr_array((weights.astype(np.float64), (labels, np.arange(len(labels)))), shape=(classes, len(labels)))

    ones = np.ones(len(labels))
    occurring, called = members(labels, ones), members(predicted, ones)
    hits = members(labels, predicted == labels)

    def statistic(times: np.ndarray) -> dict[str, np.ndarray]:
        occur, right = occurring @ times, hits @ times
        with np.errstate(invalid="ignore"):
            recall, f1 = right / occur, 2 * right / (occur + called @ times)
        return {"balanced_accuracy": _mean_of_defined(recall), "macro_f1": _mean_of_defined(f1)}

    return statistic


def by_label(has: np.ndarray, predicted: np.ndarray) -> Statistic:
    """Returns the statistic of `f1` and `micro_f1`, of booleans [n, classes]."""
    # Whole numbers below 2**24 are exact in float32, which takes half the time.
    hits, sizes = (has & predicted).T.astype(np.float32), has.T.astype(np.float32) + predicted.T.astype(np.float32)

    def statistic(times: np.ndarray) -> dict[str, np.ndarray]:
        times = times.astype(np.float32)
        return f1((hits @ times).astype(np.float64), (sizes @ times).astype(np.float64))

    return statistic


def f1(hits: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
    """Returns `f1` and `micro_f1`.

    Args:
        hits: how many of each class [classes, ...] occur and are predicted.
        sizes: how many occur and how many are predicted, added.
    """
    per_class = np.divide(2 * hits, sizes, out=np.zeros(sizes.shape), where=sizes > 0)
    return {"f1": per_class.mean(axis=0), "micro_f1": 2 * hits.sum(axis=0) / np.maximum(sizes.sum(axis=0), 1)}


def by_target(values: np.ndarray, labels: np.ndarray) -> Statistic:
    """Returns the statistic of `rmse`, `loss` and `r2`, of [n, values]."""
    count = len(labels)
    squares, centered = np.square(values - labels).T, (labels - labels.mean(axis=0)).T

    def statistic(times: np.ndarray) -> dict[str, np.ndarray]:
        errors, spread = squares @ times, np.square(centered) @ times
        around = spread - np.square(centered @ times) / count
        # Of a target that is constant in a resample, rounding leaves some 1e-16 of its squared distance to the mean.
        around[around <= 1e-12 * spread] = np.nan
        loss = errors.mean(axis=0) / count
        return {"rmse": np.sqrt(loss), "loss": loss, "r2": (1 - errors / around).mean(axis=0)}

    return statistic


def rankings(has: np.ndarray, scores: np.ndarray, name: str, skip_constant: bool) -> list[Statistic]:
    """Returns the statistic of `auroc` and of the mean average precision; none for more than a million scores.

    Args:
        has: which examples have each class, [n, classes].
        scores: of each.
        name: of the mean average precision.
        skip_constant: whether a class that all examples of a resample have does not count for the precision.
    """
    occurring = np.flatnonzero(has.any(axis=0))
    if not len(occurring) or scores.size > LARGE:
        return []
    ranked = [_ranking(has[:, k], scores[:, k]) for k in occurring]

    def statistic(times: np.ndarray) -> dict[str, np.ndarray]:
        areas, precisions = np.stack([ranking(times) for ranking in ranked], axis=1)
        if skip_constant:
            precisions[np.isnan(areas)] = np.nan
        return {"auroc": _mean_of_defined(areas), name: _mean_of_defined(precisions)}

    return [statistic]


def _ranking(has: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns AUROC and average precision of a class in each resample, from the examples [n] sorted once.

    With weights, both are sums over the positive examples: AUROC of the negative ones below (those of an equal score
    count half), average precision of the part of positive ones among all that score at least as high.
    """
    order = np.argsort(-scores, kind="stable")
    fallen, places = -scores[order], np.flatnonzero(has[order])
    above = np.searchsorted(fallen, fallen[places], "left")  # examples of a higher score than each positive one's
    least = np.searchsorted(fallen, fallen[places], "right")  # and of at least that
    true_above, true_least = (np.searchsorted(places, ranks) for ranks in (above, least))

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
    """Returns the sum of the first 0, 1, … n rows."""
    sums = np.zeros((len(times) + 1, times.shape[1]))
    np.cumsum(times, axis=0, out=sums[1:])
    return sums


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Returns the mean over classes of [classes, draws], NaN where none is defined."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)
