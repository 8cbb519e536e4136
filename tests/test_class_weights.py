"""Each label counts by the weight of its own class: mixed, smoothed, or in parts."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from tests.conftest import tiny_run
from tljax.config.schema import OptimConfig, RegularizeConfig
from tljax.core.state import TrainState
from tljax.core.train_step import StepSpec, gradients
from tljax.data import mixup
from tljax.tuning import optimizers

CASE = json.loads((Path(__file__).parent / "cases" / "mixup_class_weights.json").read_text())


def _loss(monkeypatch, *, smoothing: float = 0.0, parts: int = 1, is_mixed: bool = True, weights=None) -> float:
    """The loss of one step on the case's logits, as `step` computes it."""
    weights = np.array(CASE["class_weights"] if weights is None else weights, np.float32)
    labels, other = np.array(CASE["labels"]), np.array(CASE["other"])
    batch = {"input": np.array(CASE["logits"], np.float32), "label": labels, "weight": weights[labels]}
    batch |= {"mask": np.ones(4, np.float32)}
    if is_mixed:
        share = np.array(CASE["share"], np.float32)
        batch |= {"other": other, "other_weight": weights[other], "share": share}
    monkeypatch.setattr(mixup, "apply_mixup_cutmix", lambda batch, *_: batch)
    params, one, zero = {"head": {"shift": jnp.zeros(3)}}, {"head": {"shift": 1.0}}, jnp.zeros((), jnp.int32)

    def forward(params, batch_stats, x, key):
        return x + params["head"]["shift"], batch_stats

    config = OptimConfig(accumulate=parts)
    tx = optimizers.optimizer(config, one)
    rules = StepSpec(
        *(forward, tx, lambda step: 0.1, one, config, RegularizeConfig(), smoothing, one, 0, 0),
        class_weights=jnp.array(weights),
    )
    state = TrainState(zero, params, tx.init(params), {}, {}, {}, zero)
    loss, _, _, grads, _, finite = jax.jit(lambda batch: gradients(state, batch, rules))(batch)
    assert bool(finite) and np.isfinite(grads["head"]["shift"]).all()
    return float(loss)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_mixed_labels_weigh_by_their_own_class(monkeypatch, parts):
    assert _loss(monkeypatch, parts=parts) == pytest.approx(CASE["loss"], abs=1e-6)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_smoothed_labels_are_weighed_as_torch_weighs_them(monkeypatch, parts, is_mixed):
    losses, weights = -log_softmax(np.array(CASE["logits"]), axis=1), np.array(CASE["class_weights"])
    labels, other, share = (np.array(CASE[name]) for name in ("labels", "other", "share"))
    share = share if is_mixed else np.ones(4)

    def per_label(labels):
        return 0.9 * weights[labels] * losses[np.arange(4), labels] + 0.1 * (weights * losses).mean(axis=1)

    total = (share * per_label(labels) + (1 - share) * per_label(other)).sum()
    expected = total / (share * weights[labels] + (1 - share) * weights[other]).sum()
    assert is_mixed or expected == pytest.approx(0.554461, abs=1e-6)
    assert _loss(monkeypatch, smoothing=0.1, parts=parts, is_mixed=is_mixed) == pytest.approx(expected, abs=1e-6)


def test_a_batch_of_classes_that_weigh_nothing_moves_nothing(monkeypatch):
    assert _loss(monkeypatch, weights=(0.0, 0.0, 0.0)) == 0
    assert np.isfinite(_loss(monkeypatch, weights=(0.0, 0.0, 0.0), smoothing=0.1))


def test_a_run_weighs_what_it_mixes(shapes):
    values = {"regularize__mixup": 0.4, "task__class_weights": (1.0, 4.0), "head__init": "truncated_normal"}
    run = tiny_run(f"folder:{shapes}", **values)
    batch, state = run.train_input().batch(0), run.init_state()
    key = jax.random.fold_in(jax.random.key(np.uint32(0)), 0)
    mixed = jax.jit(lambda batch: mixup.apply_mixup_cutmix(batch, jax.random.fold_in(key, mixup.KEY), 0.4, 0.0))(batch)
    logits = jax.jit(lambda params, x: run.network.forward({"params": params}, x)[0])(state.params, mixed["input"])
    losses, weights = -log_softmax(np.asarray(logits, np.float64), axis=1), np.array([1.0, 4.0])
    share, own, other = np.asarray(mixed["share"]), batch["label"], batch["label"][::-1]
    rows = np.arange(len(own))
    total = share * weights[own] * losses[rows, own] + (1 - share) * weights[other] * losses[rows, other]
    expected = total.sum() / (share * weights[own] + (1 - share) * weights[other]).sum()
    _, metrics = run.programs.train_step(run.phases[0])(state, batch)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
