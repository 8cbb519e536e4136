import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import GOLDEN
from tljax import optim, tuning
from tljax.config import OptimConfig
from tljax.errors import InputError

NUMERICS = GOLDEN / "numerics"


def test_schedule_is_transformers_cosine():
    golden = json.loads((NUMERICS / "schedules.json").read_text())["transformers_cosine"]
    schedule = optim.schedule(OptimConfig(learning_rate=1.0, warmup_steps=4), steps=20)
    found = [float(schedule(step)) for step in range(21)]
    np.testing.assert_allclose(found, golden["lr_at_step_0_to_21"][:21], atol=1e-6)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(InputError, match=r"optim\.warmup_steps is 5, the whole run only 5 steps"):
        optim.schedule(OptimConfig(warmup_steps=5), steps=5)


@pytest.mark.parametrize(
    ("name", "weight_decay", "case"),
    [
        ("adamw", 0.05, "adamw_lr0.1_wd0.05_b0.9_0.999_eps1e-8"),
        ("sgd", 0.01, "sgd_lr0.1_momentum0.9_wd0.01"),
    ],
)
def test_optimizers_are_torchs(name, weight_decay, case, monkeypatch):
    golden = np.array(json.loads((NUMERICS / "optimizers.json").read_text())[case])
    monkeypatch.setattr(optim, "schedule", lambda config, steps: 0.1)
    config = OptimConfig(name=name, learning_rate=0.1, weight_decay=weight_decay, momentum=0.9)
    tx = optim.optimizer(config, {"kernel": 1.0}, steps=10)
    params = {"kernel": jnp.array(golden[0])}
    state = tx.init(params)
    a, b = jnp.array([1.0, 0.5, 3.0]), jnp.array([0.1, -0.2, 0.3])
    for wanted in golden[1:]:
        grads = jax.grad(lambda p: jnp.sum(p["kernel"] ** 2 * a + p["kernel"] * b))(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        # optax computes 1 - 0.999^t in float32, good to 6e-5 at t = 1, torch in float64; steps are 0.1 long.
        np.testing.assert_allclose(params["kernel"], wanted, atol=5e-6)


def test_clip_sees_trainable_leaves_only_and_multipliers_scale_the_step():
    multipliers = {"frozen": 0.0, "slow": 0.25, "fast": 1.0}
    params = {name: jnp.zeros(1) for name in multipliers}
    grads = {"frozen": jnp.array([1e6]), "slow": jnp.array([3.0]), "fast": jnp.array([4.0])}
    tx = optim.optimizer(OptimConfig(name="sgd", learning_rate=1.0, momentum=0.0, clip_norm=1.0), multipliers, 10)
    masked = tuning.select(params, multipliers)
    updates, _ = tx.update(tuning.select(grads, multipliers), tx.init(masked), masked)
    np.testing.assert_allclose(updates["slow"], [-0.25 * 3 / 5], rtol=1e-6)
    np.testing.assert_allclose(updates["fast"], [-4 / 5], rtol=1e-6)
    assert isinstance(updates["frozen"], optax.MaskedNode)


def test_a_frozen_leaf_whose_gradient_is_passed_all_the_same_stays():
    multipliers = {"frozen": 0.0, "fast": 1.0}
    params = {name: jnp.ones(2) for name in multipliers}
    tx = optim.optimizer(OptimConfig(weight_decay=0.1), multipliers, 10)
    updates, _ = tx.update(params, tx.init(params), params)
    assert not updates["frozen"].any()
    assert updates["fast"].all()


def test_weight_decay_is_for_kernels():
    tree = {"norm": {"scale": 0, "bias": 0}, "fc1": {"kernel": 0, "bias": 0}, "class_token": 0, "pos_embed": 0}
    found = optim.decay_mask(tree)
    assert [path for path, decayed in jax.tree_util.tree_leaves_with_path(found) if decayed] == [
        (jax.tree_util.DictKey("fc1"), jax.tree_util.DictKey("kernel"))
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimConfig(name="adam"), "no optim.name 'adam'; there are: adamw, sgd"),
        (OptimConfig(learning_rate=0.0), "optim.learning_rate must be above 0"),
    ],
)
def test_what_cannot_be_used_is_named(config, message):
    with pytest.raises(InputError) as error:
        optim.optimizer(config, {"kernel": 1.0}, 10)
    assert message in str(error.value)
