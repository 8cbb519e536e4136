import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.conftest import GOLDEN
from tljax.config.schema import OptimConfig
from tljax.errors import InputError
from tljax.tuning import optimizers
from tljax.tuning.masks import partition

NUMERICS = GOLDEN / "numerics"


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_schedules_are_transformers(name):
    golden = json.loads((NUMERICS / "schedules.json").read_text())[f"transformers_{name}"]
    schedule = optimizers.schedule(name, peak=1.0, warmup_steps=4, steps=20)
    found = [float(schedule(step)) for step in range(21)]
    np.testing.assert_allclose(found, golden["lr_at_step_0_to_21"][:21], atol=1e-6)


def test_a_constant_rate_stays_after_its_warm_up():
    schedule = optimizers.schedule("constant", peak=0.5, warmup_steps=2, steps=5)
    assert [float(schedule(step)) for step in range(5)] == [0, 0.25, 0.5, 0.5, 0.5]


def test_a_warm_up_as_long_as_the_run_is_an_error():
    with pytest.raises(InputError, match=r"optim\.warmup_steps is 5, the whole run or phase only 5 steps"):
        optimizers.schedule("cosine", 1.0, 5, 5)


def _descend(config: OptimConfig, start: np.ndarray, steps: int, rate: float = 0.1) -> list[np.ndarray]:
    """The golden's parabola, walked down."""
    tx = optimizers.optimizer(config, {"kernel": 1.0})
    params = {"kernel": jnp.array(start, jnp.float32)}
    state = tx.init(params)
    a, b = jnp.array([1.0, 0.5, 3.0]), jnp.array([0.1, -0.2, 0.3])
    found = []
    for _ in range(steps):
        grads = jax.grad(lambda p: jnp.sum(p["kernel"] ** 2 * a + p["kernel"] * b))(params)
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(lambda w, u: w - rate * u, params, updates)
        found.append(np.asarray(params["kernel"]))
    return found


@pytest.mark.parametrize(
    ("name", "weight_decay", "case"),
    [
        ("adamw", 0.05, "adamw_lr0.1_wd0.05_b0.9_0.999_eps1e-8"),
        ("sgd", 0.01, "sgd_lr0.1_momentum0.9_wd0.01"),
    ],
)
def test_optimizers_are_torchs(name, weight_decay, case):
    golden = np.array(json.loads((NUMERICS / "optimizers.json").read_text())[case])
    config = OptimConfig(name=name, weight_decay=weight_decay, momentum=0.9)
    # optax computes 1 - 0.999^t in float32, good to 6e-5 at t = 1, torch in float64; steps are 0.1 long.
    np.testing.assert_allclose(_descend(config, golden[0], 4), golden[1:], atol=5e-6)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_is_optaxs_own(name):
    """What ours adds up to is what optax's whole optimizer of that name does to a matrix in a block."""
    config = OptimConfig(name=name, weight_decay=0.01, momentum=0.9)
    whole = {
        "adamw": optax.adamw(0.1, weight_decay=0.01),
        "sgd": optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9)),
        "adafactor": optax.chain(
            optax.adafactor(min_dim_size_to_factor=128),
            optax.scale(-1),
            optax.add_decayed_weights(0.01),
            optax.scale(-0.1),
        ),
        "lamb": optax.lamb(0.1, weight_decay=0.01),
        "lion": optax.lion(0.1, weight_decay=0.01),
        "muon": optax.contrib.muon(0.1, weight_decay=0.01),
    }[name]
    rng = np.random.default_rng(0)
    paths = "backbone/block_0/fc1/kernel"
    params = theirs = unflatten_dict({paths: jnp.array(rng.normal(size=(4, 6)), jnp.float32)}, sep="/")
    ours = optimizers.optimizer(config, jax.tree.map(lambda _: 1.0, params))
    state, their_state = ours.init(params), whole.init(theirs)
    for _ in range(3):
        grads = jax.tree.map(lambda w: jnp.array(rng.normal(size=w.shape), jnp.float32), params)
        updates, state = ours.update(grads, state, params)
        params = jax.tree.map(lambda w, u: w - 0.1 * u, params, updates)
        updates, their_state = whole.update(grads, their_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        np.testing.assert_allclose(*(flatten_dict(tree, sep="/")[paths] for tree in (params, theirs)), rtol=2e-6)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_a_step_that_is_not_finite_leaves_every_state_alone(name):
    params = unflatten_dict({"backbone/block_0/fc1/kernel": jnp.ones((4, 6)), "head/bias": jnp.ones(3)}, sep="/")
    tx = optimizers.optimizer(OptimConfig(name=name, momentum=0.9), jax.tree.map(lambda _: 1.0, params))
    before = tx.update(jax.tree.map(jnp.cos, params), tx.init(params), params)[1]
    after = tx.update(jax.tree.map(lambda w: w * jnp.nan, params), before, params, finite=jnp.array(False))[1]
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_muon_is_for_the_matrices_of_blocks_alone():
    paths = {"backbone/block_0/fc1/kernel": (2, 5), "backbone/block_0/fc1/bias": (5,), "head/kernel": (5, 4)}
    params = unflatten_dict({path: jnp.ones(shape) for path, shape in paths.items()}, sep="/")
    multipliers = jax.tree.map(lambda _: 1.0, params)
    state = optimizers.optimizer(OptimConfig(name="muon"), multipliers).init(params)
    moments = [
        leaf.shape for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size > 1
    ]
    assert sorted(s for s in moments if s in paths.values()) == sorted([(2, 5), (5,), (5,), (5, 4), (5, 4)])


def test_leaves_that_go_on_keep_their_moments_and_others_start_afresh():
    """A leaf's steps after a switch are those of an optimizer that saw nothing but that leaf since it began."""
    config = OptimConfig(weight_decay=0.0)
    first = optimizers.optimizer(config, {"old": 1.0, "new": 0.0, "gone": 1.0}, {"old": 0, "new": 0, "gone": 0})
    second = optimizers.optimizer(config, {"old": 1.0, "new": 1.0, "gone": 0.0}, {"old": 0, "new": 1, "gone": 1})
    rng = np.random.default_rng(0)
    gradients = [
        {name: jnp.array(rng.normal(size=3), jnp.float32) for name in ("old", "new", "gone")} for _ in range(6)
    ]
    params = {name: jnp.ones(3) for name in gradients[0]}
    trains = {"old": 1.0, "new": 0.0, "gone": 1.0}
    state = first.init(partition(params, trains)[0])
    for grads in gradients[:4]:
        _, state = first.update(partition(grads, trains)[0], state, partition(params, trains)[0])
    trains = {"old": 1.0, "new": 1.0, "gone": 0.0}
    state = optimizers.carry_over(state, second.init(partition(params, trains)[0]))
    for grads in gradients[4:]:
        updates, state = second.update(partition(grads, trains)[0], state, partition(params, trains)[0])
    for name, seen in (("old", gradients), ("new", gradients[4:])):
        alone = optax.scale_by_adam()
        one = alone.init(params[name])
        for grads in seen:
            wanted, one = jax.jit(alone.update)(grads[name], one)
        np.testing.assert_array_equal(updates[name], wanted)
    assert isinstance(updates["gone"], optax.MaskedNode)


def test_clip_sees_trainable_leaves_only_and_multipliers_scale_the_step():
    multipliers = {"frozen": 0.0, "slow": 0.25, "fast": 1.0}
    params = {name: jnp.zeros(1) for name in multipliers}
    grads = {"frozen": jnp.array([1e6]), "slow": jnp.array([3.0]), "fast": jnp.array([4.0])}
    tx = optimizers.optimizer(OptimConfig(name="sgd", momentum=0.0, clip_norm=1.0), multipliers)
    masked = partition(params, multipliers)[0]
    updates, _ = tx.update(partition(grads, multipliers)[0], tx.init(masked), masked)
    np.testing.assert_allclose(updates["slow"], [0.25 * 3 / 5], rtol=1e-6)
    np.testing.assert_allclose(updates["fast"], [4 / 5], rtol=1e-6)
    assert isinstance(updates["frozen"], optax.MaskedNode)


@pytest.mark.parametrize("limit", [1.0, 100.0])
def test_norm_and_clip_are_optaxs(limit):
    """To the bit: optax's norm of the small leaves of a shape as one, and one factor for all."""
    rng = np.random.default_rng(0)
    grads = {name: jnp.asarray(rng.standard_normal((9, size)), jnp.float32) for name, size in (("a", 5), ("b", 7))}
    grads |= {"c": grads["a"] * 2, "large": jnp.ones((300, 300)) / 100, "frozen": optax.MaskedNode()}
    stacked = [jnp.stack([grads["a"], grads["c"]]), grads["b"], grads["large"]]
    size = jax.jit(optimizers.norm)(grads)
    assert size == jax.jit(optax.tree.norm)(stacked)
    np.testing.assert_allclose(size, jax.jit(optax.tree.norm)(grads), rtol=1e-6)
    theirs, ours = optax.clip_by_global_norm(limit), optimizers._clip(limit)
    found, wanted = (jax.jit(tx.update)(grads, tx.init(grads))[0] for tx in (ours, theirs))
    factor = np.float32(limit) / max(np.float32(size), np.float32(limit))
    jax.tree.map(lambda leaf, grad: np.testing.assert_array_equal(leaf, np.asarray(grad) * factor), found, grads)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, wanted)
    assert (found["a"] == grads["a"]).all() == (limit == 100)


def test_a_frozen_leaf_whose_gradient_is_passed_all_the_same_stays():
    multipliers = {"frozen": 0.0, "fast": 1.0}
    params = {name: jnp.ones(2) for name in multipliers}
    tx = optimizers.optimizer(OptimConfig(weight_decay=0.1), multipliers)
    updates, _ = tx.update(params, tx.init(params), params)
    assert not updates["frozen"].any()
    assert updates["fast"].all()


def test_weight_decay_is_for_kernels():
    tree = {"norm": {"scale": 0, "bias": 0}, "fc1": {"kernel": 0, "bias": 0}, "class_token": 0, "pos_embed": 0}
    found = optimizers.decay_mask(tree)
    assert [path for path, decayed in jax.tree_util.tree_leaves_with_path(found) if decayed] == [
        (jax.tree_util.DictKey("fc1"), jax.tree_util.DictKey("kernel"))
    ]
