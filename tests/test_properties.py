"""What must hold for every tree, strategy and multiplier: tried on random ones, with the real step and optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as draw

from tljax.config.schema import OptimConfig, RegularizeConfig
from tljax.core.state import TrainState
from tljax.core.train_step import StepSpec, train_step
from tljax.errors import InputError
from tljax.tuning import multipliers as tuning_multipliers
from tljax.tuning import optimizers, strategies
from tljax.tuning.masks import partition
from tljax.tuning.strategies import Layout

LEAVES = ("norm1/scale", "norm1/bias", "fc/kernel", "fc/bias", "attention/qkv/kernel", "attention/qkv/lora_a", "prompt")
NEVER = 0.0


@draw.composite
def layouts(some):
    """A backbone of one to four groups, with or without a final norm, each with some usual leaves; and a head."""
    blocks = [f"block_{i}" for i in range(some(draw.integers(0, 3)))]
    groups = ("stem", *blocks, *(("norm",) if some(draw.booleans()) else ()))
    group_of = {}
    for group in groups:
        leaves = ("scale", "bias") if group == "norm" else some(draw.sets(draw.sampled_from(LEAVES), min_size=1))
        group_of |= {f"backbone/{group}/{leaf}": group for leaf in sorted(leaves)}
    return Layout((*groups, "head"), group_of | {"head/kernel": "head", "head/bias": "head"})


@draw.composite
def tuned(some):
    """A layout, and the multipliers of some strategy with some arguments on it."""
    layout = some(layouts())
    name = some(draw.sampled_from(sorted(strategies.STRATEGIES)))
    rate = draw.sampled_from([0.0, 0.25, 1.0, 1.7])
    arguments = {
        "last_k": {"k": draw.integers(1, len(layout.blocks))},
        "first_k": {"k": draw.integers(1, len(layout.blocks))},
        "surgical": {"groups": draw.lists(draw.sampled_from(layout.groups), unique=True).map(tuple)},
        "layer_decay": {"decay": draw.sampled_from([0.5, 0.75, 1.0])},
        "pattern": {
            "patterns": draw.tuples(rate, rate, rate).map(
                lambda m: ((r"head/.*", 1.0), (r".*/stem/.*", m[0]), (r".*", m[1]))
            )
        },
    }.get(name, {})
    arguments = {key: some(value) for key, value in arguments.items()}
    group_rates = (("head", some(draw.sampled_from([0.5, 1.0, 10.0]))),)
    try:
        return layout, tuning_multipliers.multipliers(name, arguments, layout, group_rates)
    except InputError as error:
        if "no normalization layers" in str(error) or "decides no parameter" in str(error):
            return layout, tuning_multipliers.multipliers("full", {}, layout)
        raise


def _params(layout: Layout, seed: int) -> tuning_multipliers.Tree:
    rng = np.random.default_rng(seed)
    return unflatten_dict({path: jnp.array(rng.normal(size=(2, 3)), jnp.float32) for path in layout.group_of}, sep="/")


def _forward(params, batch_stats, image, key):
    """Logits that every leaf has a hand in."""
    x = image.reshape(image.shape[0], -1).astype(jnp.float32)[:, :2]
    for leaf in jax.tree.leaves(params):
        x = x + jnp.tanh(x @ leaf) @ leaf.T
    return x, batch_stats


def _trained(params, multipliers, config: OptimConfig, steps: int, rate: float = 0.1) -> TrainState:
    tx = optimizers.optimizer(config, multipliers)
    ones = jax.tree.map(lambda _: 0.0, multipliers)
    rules = StepSpec(_forward, tx, lambda step: rate, multipliers, config, RegularizeConfig(), 0.0, ones, 0, 0)
    opt_state = tx.init(partition(params, multipliers)[0])
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, params, opt_state, {}, {}, {}, zero)
    image = np.random.default_rng(1).normal(size=(4, 1, 2, 1))
    ones = jnp.ones(4)
    batch = {"input": jnp.array(image), "label": jnp.array([0, 1, 1, 0]), "mask": ones, "weight": ones}
    for _ in range(steps):
        state, _ = train_step(state, batch, rules)
    return state


CAREFUL = OptimConfig(name="adamw", weight_decay=0.1, clip_norm=0.5)


@settings(max_examples=40, deadline=None)
@given(tuned(), draw.integers(0, 99))
def test_frozen_means_not_differentiated_no_state_and_the_same_bits(case, seed):
    layout, multipliers = case
    params = _params(layout, seed)
    state = _trained(params, multipliers, CAREFUL, steps=3)
    before, after = (flatten_dict(tree, sep="/") for tree in (params, state.params))
    by_path = flatten_dict(multipliers, sep="/")
    assert set(by_path) == set(layout.group_of)
    moments = [
        [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    selected = flatten_dict(partition(params, multipliers)[0], sep="/")
    for path, multiplier in by_path.items():
        same = np.asarray(before[path]).tobytes() == np.asarray(after[path]).tobytes()
        kept = sum("/".join(map(str, keys)).endswith(path) for keys in moments)
        differentiated = not isinstance(selected[path], optax.MaskedNode)
        # Every leaf has exactly one label: two moments if it trains, none if it does not.
        assert (same, kept, differentiated) == ((False, 2, True) if multiplier else (True, 0, False)), path


@settings(max_examples=40, deadline=None)
@given(tuned(), draw.integers(0, 99))
def test_a_multiplier_scales_the_step_of_plain_sgd(case, seed):
    layout, multipliers = case
    params = _params(layout, seed)
    plain = OptimConfig(name="sgd", momentum=0.0)
    ones = jax.tree.map(lambda _: 1.0, multipliers)
    # From zero, so that the new value is the step itself and no digit is lost in a sum.
    updates = {}
    for name, tree in (("whole", ones), ("scaled", multipliers)):
        tx = optimizers.optimizer(plain, tree)
        masked = partition(params, tree)[0]
        updates[name] = flatten_dict(tx.update(masked, tx.init(masked), masked)[0], sep="/")
    for path, multiplier in flatten_dict(multipliers, sep="/").items():
        if multiplier:
            wanted = np.float32(multiplier) * np.asarray(updates["whole"][path])
            np.testing.assert_array_equal(updates["scaled"][path], wanted, err_msg=path)


@settings(max_examples=60, deadline=None)
@given(layouts(), draw.sampled_from(["blok_.*", "head", "backbone/stem", r"backbone/.*/kernal"]))
def test_a_pattern_that_decides_nothing_is_an_error(layout, regex):
    with pytest.raises(InputError, match="decides no parameter"):
        tuning_multipliers.multipliers("pattern", {"patterns": ((regex, 1.0), (".*", 1.0))}, layout)


@settings(max_examples=60, deadline=None)
@given(layouts(), draw.data())
def test_a_leaf_that_no_pattern_covers_is_an_error(layout, data):
    left_out = data.draw(draw.sampled_from(sorted(layout.group_of)))
    others = tuple((path.replace(".", r"\."), 1.0) for path in layout.group_of if path != left_out)
    with pytest.raises(InputError, match=f"no pattern covers {left_out}"):
        tuning_multipliers.multipliers("pattern", {"patterns": others}, layout)
