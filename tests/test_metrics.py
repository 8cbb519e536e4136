import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, mean_absolute_error, r2_score

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
    found = metrics.summarise("single_label", logits, labels)
    odds = np.exp(logits.astype(np.float64))
    assert found["accuracy"] == accuracy_score(labels, logits.argmax(-1))
    assert found["loss"] == pytest.approx(log_loss(labels, odds / odds.sum(-1, keepdims=True)), rel=1e-12)
    assert found["count"] == 997


def test_the_interval_is_the_percentile_bootstraps():
    rng = np.random.default_rng(1)
    hits = (rng.random(400) < 0.8).astype(float)
    logits = np.stack([hits, 1 - hits], -1).astype(np.float32)
    low, high = metrics.summarise("single_label", logits, np.zeros(400, int))["accuracy_95"]
    wanted = stats.bootstrap((hits,), np.mean, method="percentile", n_resamples=20_000, rng=0).confidence_interval
    assert low == pytest.approx(wanted.low, abs=0.004)
    assert high == pytest.approx(wanted.high, abs=0.004)


def test_order_changes_no_bit():
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(64, 3)).astype(np.float32), rng.integers(0, 3, 64)
    found = metrics.summarise("single_label", logits, labels)
    assert found == metrics.summarise("single_label", logits.copy(), labels.copy())


def test_several_labels_are_judged_as_scikit_learn_would():
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(301, 5)), (rng.random((301, 5)) < 0.3).astype(np.float32)
    labels[:, 4] = 0  # a class without examples has no precision, and takes no part in the mean
    found = metrics.summarise("multi_label", logits, labels)
    odds = 1 / (1 + np.exp(-logits))
    assert found["mean_average_precision"] == pytest.approx(
        np.mean([average_precision_score(labels[:, i], logits[:, i]) for i in range(4)]), rel=1e-12
    )
    assert found["loss"] == pytest.approx(
        np.mean([log_loss(labels[:, i], odds[:, i], labels=[0, 1]) for i in range(5)]), rel=1e-9
    )
    assert found["exact_match"] == ((odds > 0.5) == (labels > 0)).all(-1).mean()
    per_example = metrics.loss("multi_label", jnp.array(logits), jnp.array(labels))
    assert float(per_example.mean()) == pytest.approx(found["loss"], rel=1e-5)
    right = metrics.score("multi_label", jnp.array(logits), jnp.array(labels))
    assert float(right.mean()) == pytest.approx(((odds > 0.5) == (labels > 0)).mean(), rel=1e-6)


def test_values_are_judged_as_scikit_learn_would():
    rng = np.random.default_rng(4)
    values, labels = rng.normal(size=(200, 2)), rng.normal(size=(200, 2)).astype(np.float32)
    found = metrics.summarise("regression", values, labels)
    assert found["mae"] == pytest.approx(mean_absolute_error(labels, values), rel=1e-9)
    assert found["r2"] == pytest.approx(r2_score(labels, values), rel=1e-9)
    assert found["rmse"] ** 2 == pytest.approx(found["loss"]) == np.square(values - labels).mean()
    low, high = found["mae_95"]
    errors = np.abs(values - labels).mean(-1)
    wanted = stats.bootstrap((errors,), np.mean, method="percentile", rng=0).confidence_interval
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=0.01)
    assert float(metrics.loss("regression", jnp.array(values), jnp.array(labels)).mean()) == pytest.approx(
        found["loss"], rel=1e-5
    )


@pytest.mark.parametrize("problem", metrics.JUDGED)
def test_quality_rises_with_better_predictions(problem):
    values = np.array([[0.0], [1.0]])
    labels = {"single_label": np.array([0, 1]), "multi_label": np.eye(2), "regression": values}[problem]
    good = {"single_label": np.eye(2), "multi_label": np.eye(2) - 0.5, "regression": values}[problem]
    bad = good[::-1]
    judged = metrics.JUDGED[problem]
    better, worse = (judged.quality(metrics.summarise(problem, one, labels)) for one in (good, bad))
    assert better > worse
