import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, log_loss

from tests.conftest import GOLDEN
from tljax import metrics


def test_padding_counts_for_nothing():
    logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    labels, mask = jnp.array([0, 0, 1]), jnp.array([1.0, 1.0, 0.0])
    loss = metrics.total(metrics.cross_entropy(logits, labels), mask)
    np.testing.assert_allclose(loss, np.log(1 + np.exp(-2)) + np.log(1 + np.exp(1)), rtol=1e-6)
    assert metrics.total(metrics.correct(logits, labels), mask) == 1.0
    assert metrics.total(jnp.array([1.0, 2.0, jnp.nan]), mask) == 3.0


@pytest.mark.parametrize(
    ("smoothing", "name"), [(0.0, "cross_entropy"), (0.1, "cross_entropy_label_smoothing_0.1_torch")]
)
def test_cross_entropy_is_torchs(smoothing, name):
    golden = json.loads((GOLDEN / "numerics" / "losses.json").read_text())
    found = metrics.cross_entropy(jnp.array(golden["logits"]), jnp.array(golden["labels"]), smoothing)
    assert float(found.mean()) == pytest.approx(golden["values"][name], abs=1e-6)


def test_a_split_is_summarised_as_scikit_learn_would():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(997, 7)).astype(np.float32), rng.integers(0, 7, 997)
    found = metrics.summarise(logits, labels)
    odds = np.exp(logits.astype(np.float64))
    assert found["accuracy"] == accuracy_score(labels, logits.argmax(-1))
    assert found["loss"] == pytest.approx(log_loss(labels, odds / odds.sum(-1, keepdims=True)), rel=1e-12)
    assert found["count"] == 997


def test_the_interval_is_the_percentile_bootstraps():
    rng = np.random.default_rng(1)
    hits = (rng.random(400) < 0.8).astype(float)
    logits = np.stack([hits, 1 - hits], -1).astype(np.float32)
    low, high = metrics.summarise(logits, np.zeros(400, int))["accuracy_95"]
    wanted = stats.bootstrap((hits,), np.mean, method="percentile", n_resamples=20_000, rng=0).confidence_interval
    assert low == pytest.approx(wanted.low, abs=0.004)
    assert high == pytest.approx(wanted.high, abs=0.004)


def test_order_changes_no_bit():
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(64, 3)).astype(np.float32), rng.integers(0, 3, 64)
    assert metrics.summarise(logits, labels) == metrics.summarise(logits.copy(), labels.copy())
