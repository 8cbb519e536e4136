"""How sure a comparison of methods is: intervals, tests and their correction, from values of runs and of resamples.

A method is as many runs as seeds, each judged on the same examples: two things that could have come out otherwise. The
bootstrap here resamples both, seeds and examples, each with replacement and independently of the other: the
Multi-Bootstrap of Sellam et al. (2106.16163), Owen's pigeonhole bootstrap (0712.1111). With one seed it is the
bootstrap over examples, and says nothing of other seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

LEVEL = 0.05  # of significance; intervals cover the rest


@dataclass(frozen=True)
class Comparison:
    """A comparison of a method with another.

    Attributes:
        difference: the mean over their common seeds of what is added to the other's metric.
        low, high: its 95% interval.
        p: of no difference, two-sided; `adjusted` for the number of comparisons (`holm`).
    """

    difference: float
    low: float
    high: float
    p: float
    adjusted: float = float("nan")

    @property
    def significant(self) -> bool:
        """Whether the adjusted p-value is below `LEVEL`."""
        return self.adjusted < LEVEL


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean, and the standard deviation of a sample (n - 1), which is NaN of a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def over_seeds(resampled: Float[np.ndarray, "seeds draws"]) -> Float[np.ndarray, " draws"]:
    """Returns the mean over seeds in each draw, the seeds being drawn anew in each as well.

    Args:
        resampled: the metric of each seed's run in each resample of the examples, the same resample for all. Seeds are
            drawn alike for all that have as many, so what is subtracted before or after is the same.
    """
    seeds, draws = resampled.shape
    indices = np.random.Generator(np.random.PCG64(1)).integers(0, seeds, (draws, seeds))
    return resampled[indices, np.arange(draws)[:, None]].mean(axis=1)


def interval(draws: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    """Returns the 95% percentile interval; NaN where nothing was drawn. A draw that is undefined does not count."""
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)


def bootstrap_test(differences: Float[np.ndarray, " seeds"], resampled: Float[np.ndarray, "seeds draws"]) -> Comparison:
    """Compares by a paired bootstrap: runs of the same seed are compared on the same examples.

    p is twice the smaller part of draws on one side of 0, those at 0 being on both; with the sample itself as one more
    draw, so that it is never 0 (Davison and Hinkley 1997, 4.4).

    Args:
        differences: of each common seed.
        resampled: the same in each resample of the examples.
    """
    draws = over_seeds(resampled)
    defined = draws[~np.isnan(draws)]
    side = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    return Comparison(float(differences.mean()), *interval(draws), min(1.0, 2 * (1 + side) / (1 + len(defined))))


def t_test(values: Float[np.ndarray, " seeds"], others: Float[np.ndarray, " seeds"]) -> Comparison:
    """Returns Student's paired t-test over at least two common seeds: of these examples, whatever others would say."""
    from scipy import stats

    differences = values - others
    if np.ptp(differences) < 1e-12:  # but for rounding no spread, of which t is 0 / 0, or without bound
        mean = float(differences[0])
        return Comparison(mean, mean, mean, 1.0 if abs(mean) < 1e-12 else 0.0)
    test = stats.ttest_rel(values, others)
    low, high = test.confidence_interval(1 - LEVEL)
    return Comparison(float(differences.mean()), float(low), float(high), float(test.pvalue))


def mcnemar(right: Bool[np.ndarray, " n"], others_right: Bool[np.ndarray, " n"]) -> float:
    """Returns p of McNemar's exact test of two runs: binomial at a half, of what only one of them has right."""
    from scipy import stats

    only_first, only_second = np.count_nonzero(right & ~others_right), np.count_nonzero(others_right & ~right)
    if not only_first + only_second:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Returns p-values adjusted so that all tests together are wrong at most as often as each says (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def pareto(cost: Float[np.ndarray, " n"], quality: Float[np.ndarray, " n"]) -> Int[np.ndarray, " front"]:
    """Returns which of n things no other beats at no more cost, by cost; of equal ones the first."""
    front, best = [], -np.inf
    for i in np.lexsort((-quality, cost)):
        if quality[i] > best:
            front.append(i)
            best = quality[i]
    return np.array(front, np.int64)
