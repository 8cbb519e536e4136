"""Logits are float32, whatever the network computes in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import make_folder, tiny_run
from tljax.evals import linear_probe
from tljax.problems.registry import PROBLEMS


@pytest.mark.parametrize("strategy", ["full", "mlp_head"])
def test_logits_and_loss_of_a_bfloat16_network_are_not_rounded(tmp_path, strategy):
    run = tiny_run(f"folder:{make_folder(tmp_path)}", compute_dtype="bfloat16", tuning__strategy=strategy)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.array(0.2 * rng.standard_normal(leaf.shape), leaf.dtype), run.init_state().params
    )
    x = jnp.array(rng.integers(0, 256, (8, 32, 32, 3)), jnp.uint8)
    logits, _ = run.network.forward({"params": params}, x)
    assert logits.dtype == jnp.float32
    assert not np.array_equal(logits, logits.astype(jnp.bfloat16))
    (features,) = run.network.features({"params": params}, x, [len(run.network.backbone.groups)])
    assert features.dtype == jnp.bfloat16
    last = params["head"]["out"] if strategy == "mlp_head" else params["head"]
    if strategy == "full":  # of the same rounded features and weights, in float64
        kernel, bias = (np.asarray(last[name].astype(jnp.bfloat16), np.float64) for name in ("kernel", "bias"))
        exact = np.asarray(features, np.float64) @ kernel + bias
        np.testing.assert_allclose(logits, exact, rtol=1e-5, atol=1e-6)
        labels = jnp.arange(8) % 2
        odds = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
        found = PROBLEMS["single_label"].loss(logits, labels)
        np.testing.assert_allclose(found, -odds[np.arange(8), np.arange(8) % 2], rtol=1e-5, atol=1e-6)
        beside = {"head": {"kernel": last["kernel"].T, "bias": last["bias"]}}  # as heads that train side by side
        together, _ = linear_probe.forward(beside, {}, features, dtype=jnp.bfloat16)
        np.testing.assert_allclose(together, exact, rtol=1e-5, atol=1e-6)
