import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import GOLDEN
from tljax.metrics import metrics as metrics_metrics
from tljax.problems import base


def test_padding_counts_for_nothing():
    logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    labels, mask = jnp.array([0, 0, 1]), jnp.array([1.0, 1.0, 0.0])
    loss = base.total(base.cross_entropy(logits, labels), mask)
    np.testing.assert_allclose(loss, np.log(1 + np.exp(-2)) + np.log(1 + np.exp(1)), rtol=1e-6)
    assert base.total(base.correct(logits, labels), mask) == 1.0
    assert base.total(jnp.array([1.0, 2.0, jnp.nan]), mask) == 3.0


@pytest.mark.parametrize(
    ("smoothing", "name"), [(0.0, "cross_entropy"), (0.1, "cross_entropy_label_smoothing_0.1_torch")]
)
def test_cross_entropy_is_torchs(smoothing, name):
    golden = json.loads((GOLDEN / "numerics" / "losses.json").read_text())
    found = base.cross_entropy(jnp.array(golden["logits"]), jnp.array(golden["labels"]), smoothing)
    assert float(found.mean()) == pytest.approx(golden["values"][name], abs=1e-6)


def test_a_class_or_value_counts_alike_on_the_device_and_in_a_summary():
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(301, 5)), (rng.random((301, 5)) < 0.3).astype(np.float32)
    for problem in ("multi_label", "regression"):
        per_example = base.loss(problem, jnp.array(logits), jnp.array(labels))
        found = metrics_metrics.summarize(problem, logits, labels, full=False)
        assert float(per_example.mean()) == pytest.approx(found["loss"], rel=1e-5)
    right = base.score("multi_label", jnp.array(logits), jnp.array(labels))
    assert float(right.mean()) == pytest.approx(((logits > 0) == (labels > 0)).mean(), rel=1e-6)


@pytest.mark.parametrize("problem", base.JUDGED)
def test_quality_rises_with_better_predictions(problem):
    values = np.array([[0.0], [1.0]])
    labels = {"single_label": np.array([0, 1]), "multi_label": np.eye(2), "regression": values}[problem]
    good = {"single_label": np.eye(2), "multi_label": np.eye(2) - 0.5, "regression": values}[problem]
    bad = good[::-1]
    judged = base.JUDGED[problem]
    better, worse = (judged.quality(metrics_metrics.summarize(problem, one, labels)) for one in (good, bad))
    assert better > worse
