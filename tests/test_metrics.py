import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import GOLDEN
from tljax.problems.losses import cross_entropy, masked_sum
from tljax.problems.registry import PROBLEMS


def test_padding_counts_for_nothing():
    logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    labels, mask = jnp.array([0, 0, 1]), jnp.array([1.0, 1.0, 0.0])
    loss = masked_sum(cross_entropy(logits, labels), mask)
    np.testing.assert_allclose(loss, np.log(1 + np.exp(-2)) + np.log(1 + np.exp(1)), rtol=1e-6)
    assert PROBLEMS["single_label"].counts(logits, labels, mask) == 1.0
    assert masked_sum(jnp.array([1.0, 2.0, jnp.nan]), mask) == 3.0


@pytest.mark.parametrize(
    ("smoothing", "name"), [(0.0, "cross_entropy"), (0.1, "cross_entropy_label_smoothing_0.1_torch")]
)
def test_cross_entropy_is_torchs(smoothing, name):
    golden = json.loads((GOLDEN / "numerics" / "losses.json").read_text())
    found = cross_entropy(jnp.array(golden["logits"]), jnp.array(golden["labels"]), smoothing)
    assert float(found.mean()) == pytest.approx(golden["values"][name], abs=1e-6)


def test_a_class_or_value_counts_alike_on_the_device_and_in_a_summary():
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(301, 5)), (rng.random((301, 5)) < 0.3).astype(np.float32)
    for problem in ("multi_label", "regression"):
        per_example = PROBLEMS[problem].loss(jnp.array(logits), jnp.array(labels))
        found = PROBLEMS[problem].summarize(logits, labels, full=False)
        assert float(per_example.mean()) == pytest.approx(found["loss"], rel=1e-5)
    right = PROBLEMS["multi_label"].score(jnp.array(logits), jnp.array(labels))
    assert float(right.mean()) == pytest.approx(((logits > 0) == (labels > 0)).mean(), rel=1e-6)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_quality_rises_with_better_predictions(problem):
    values = np.array([[0.0], [1.0]])
    labels = {"single_label": np.array([0, 1]), "multi_label": np.eye(2), "regression": values}[problem]
    good = {"single_label": np.eye(2), "multi_label": np.eye(2) - 0.5, "regression": values}[problem]
    bad = good[::-1]
    headline = PROBLEMS[problem].headline
    better, worse = (headline.quality(PROBLEMS[problem].summarize(one, labels)) for one in (good, bad))
    assert better > worse
