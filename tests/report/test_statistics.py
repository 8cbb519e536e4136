"""Intervals, tests and corrections against scipy, statsmodels' numbers, and loops that say what they are."""

import numpy as np
import pytest
from scipy import stats

from tljax.metrics import bootstrap
from tljax.reports import statistics


def _runs(seeds: int, count: int, accuracy: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((seeds, count)) < accuracy).astype(float)


def _resampled(values: np.ndarray, draws: int) -> np.ndarray:
    """The mean of each row [runs, n] in resamples of its columns, as a report has it."""
    parts = [bootstrap.means_of({"accuracy": values[i]}) for i in range(len(values))]
    blocks = [[part(times)["accuracy"] for part in parts] for times in bootstrap.resamples(values.shape[1], draws)]
    return np.concatenate([np.stack(block) for block in blocks], axis=1)


def test_mean_and_deviation_are_of_a_sample():
    assert statistics.mean_and_deviation([0.8, 0.82, 0.84]) == pytest.approx((0.82, 0.02))
    mean, deviation = statistics.mean_and_deviation([0.8])
    assert mean == 0.8 and np.isnan(deviation)


def test_one_seed_is_scipys_bootstrap_over_examples():
    values = _runs(1, 400, 0.8, 0)
    low, high = statistics.interval(statistics.over_seeds(_resampled(values, 20_000)))
    expected = stats.bootstrap(
        (values[0],), np.mean, method="percentile", n_resamples=20_000, rng=0
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.003)


def test_seeds_and_examples_are_both_drawn_in_each_resample():
    values = _runs(3, 50, 0.7, 1)
    draws = statistics.over_seeds(_resampled(values, 200))
    places = np.random.Generator(np.random.PCG64(0)).integers(0, 50, (200, 50))
    seeds = np.random.Generator(np.random.PCG64(1)).integers(0, 3, (200, 3))
    literal = [np.mean([values[s][examples].mean() for s in of]) for examples, of in zip(places, seeds, strict=True)]
    np.testing.assert_allclose(draws, literal, rtol=1e-12)


def test_the_interval_covers_both_kinds_of_chance():
    """Seeds that differ much widen it; its width is that of the sum of both variances."""
    rng = np.random.default_rng(2)
    chances = np.clip(0.8 + 0.05 * rng.standard_normal(40), 0, 1)
    values = (rng.random((40, 500)) < chances[:, None]).astype(float)
    low, high = statistics.interval(statistics.over_seeds(_resampled(values, 4000)))
    of_seeds, of_examples = values.mean(axis=1).var(ddof=1) / 40, values.mean(axis=0).var(ddof=1) / 500
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(of_seeds + of_examples), rel=0.1)


def test_a_paired_bootstrap_is_scipys():
    values, others = _runs(1, 300, 0.85, 3), _runs(1, 300, 0.8, 4)
    result = statistics.bootstrap_test((values - others).mean(axis=1), _resampled(values - others, 20_000))
    options = {"method": "percentile", "n_resamples": 20_000, "paired": True, "rng": 0, "vectorized": False}
    expected = stats.bootstrap((values[0], others[0]), lambda a, b: np.mean(a - b), **options)
    interval = expected.confidence_interval
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), abs=0.005)
    assert result.difference == pytest.approx(values.mean() - others.mean())
    side = min((expected.bootstrap_distribution <= 0).mean(), (expected.bootstrap_distribution >= 0).mean())
    assert result.p == pytest.approx(2 * side, abs=0.02)


def test_what_never_crosses_nothing_is_as_sure_as_the_resamples_are_many():
    resampled = np.full((2, 999), 0.1)
    assert statistics.bootstrap_test(np.array([0.1, 0.1]), resampled).p == 2 / 1000
    assert statistics.bootstrap_test(np.array([0.0, 0.0]), 0 * resampled).p == 1.0


def test_an_undefined_resample_does_not_count():
    draws = np.array([np.nan, *np.linspace(0, 1, 101)])
    assert statistics.interval(draws) == pytest.approx((0.025, 0.975))
    assert all(np.isnan(statistics.interval(np.array([np.nan]))))


def test_the_t_test_is_scipys():
    values, others = np.array([0.951, 0.957, 0.962, 0.949]), np.array([0.947, 0.949, 0.958, 0.950])
    result, expected = statistics.t_test(values, others), stats.ttest_rel(values, others)
    assert result.p == expected.pvalue
    assert (result.low, result.high) == tuple(expected.confidence_interval(0.95))
    assert result.difference == pytest.approx((values - others).mean())
    assert statistics.t_test(values, values).p == 1.0
    assert statistics.t_test(values + 0.25, values).p == 0.0


def test_mcnemar_is_statsmodels():
    values = np.array([True] * 12 + [False] * 3 + [True] * 40 + [False] * 5)
    others = np.array([False] * 12 + [True] * 3 + [True] * 40 + [False] * 5)
    # statsmodels.stats.contingency_tables.mcnemar([[40, 12], [3, 5]], exact=True).pvalue
    assert statistics.mcnemar(values, others) == pytest.approx(0.03515625, abs=1e-12)
    assert statistics.mcnemar(values, values) == 1.0


def test_holm_is_statsmodels():
    p = [0.01, 0.04, 0.03, 0.005, 0.5, 0.04]
    # statsmodels.stats.multitest.multipletests(p, method="holm")[1]
    expected = [0.05, 0.12, 0.12, 0.03, 0.5, 0.12]
    np.testing.assert_allclose(statistics.holm(p), expected, atol=1e-12)
    assert statistics.holm([0.3]) == [0.3] and statistics.holm([]) == []
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_front_is_what_nothing_beats():
    cost, quality = np.array([1.0, 2.0, 3.0, 3.0, 4.0, 1.0]), np.array([0.5, 0.4, 0.7, 0.8, 0.8, 0.5])
    assert statistics.pareto(cost, quality).tolist() == [0, 3]
