"""The optimizer of a multiplier tree: state for trainable leaves only, one learning rate per multiplier."""

from collections.abc import Callable, Hashable, Mapping
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float
from optax import contrib

from tljax.config.references import is_reference, resolve_reference
from tljax.config.tuning import OptimConfig, schedule_arguments
from tljax.errors import InputError
from tljax.tuning.multipliers import Tree

FROZEN = "frozen"
_SMALL = 1 << 16  # elements of a leaf that is soon copied
_NOT_DECAYED = ("bias", "scale", "class_token", "distillation_token", "registers", "latent", "pos_embed", "prompt")
_NOT_DECAYED += ("adapter_down_bias", "adapter_up_bias")
_NOT_DECAYED += ("bias_table", "logit_scale", "gamma_1", "gamma_2")

Transformation = optax.GradientTransformation


def _still(tx: Transformation, direction: Callable[[optax.OptState], Tree] | None = None) -> Transformation:
    """Returns `tx`, whose state stays what it was where its update is told that a step is not `finite`.

    Args:
        direction: the update as a function of the state that is kept; it is `tx`'s own wherever that is used. `tx`'s
            own reads the old moments, for which XLA's CPU compiler copies all moments and parameters before it writes
            the new ones in their place.
    """

    def update(updates, state, params=None, *, finite=True, **_):
        updates, new = tx.update(updates, state, params)
        new = jax.tree.map(partial(jnp.where, finite), new, state)
        return direction(new) if direction else updates, new

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Transformation:
    """Returns `optax.scale_by_adam` as `_still` would have it, traced once for each shape of a leaf."""

    def update(grads, state, params=None, *, finite=True, **_):
        count = jnp.where(finite, optax.safe_increment(state.count), state.count)
        mu = jax.tree.map(lambda g, m: _moment(g, m, finite, b1, 1), grads, state.mu)
        nu = jax.tree.map(lambda g, v: _moment(g, v, finite, b2, 2), grads, state.nu)
        updates = jax.tree.map(lambda m, v: _direction(m, v, count, b1, b2, eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1, b2, eps).init, update)


@partial(jax.jit, static_argnums=(3, 4))
def _moment(grad, old, finite, decay, order):
    return jnp.where(finite, optax.tree.update_moment(grad, old, decay, order), old)


@jax.jit
def _direction(first, second, count, b1, b2, eps):
    first, second = (optax.tree.bias_correction(m, b, count) for m, b in ((first, b1), (second, b2)))
    return first / (jnp.sqrt(second) + eps)


def norm(tree: Tree) -> jax.Array:
    """Returns the norm of all leaves together, as `optax.tree.norm`; small leaves of a shape are one sum.

    Of these a network has many: a CPU's program of ViT-S has three kernels for each such shape, not for each of 100
    leaves, and each shape is traced once.
    """
    # Without it, the squares are those of Adam's second moment, too, and XLA's CPU compiler writes them to memory.
    leaves = jax.lax.optimization_barrier(jax.tree.leaves(tree))
    alike: dict[Hashable, list[jax.Array]] = {}
    for number, leaf in enumerate(leaves):
        alike.setdefault(leaf.shape if leaf.size <= _SMALL else number, []).append(leaf)
    return jnp.sqrt(reduce(jax.lax.add, map(_squares, alike.values())))


@jax.jit
def _squares(leaves):
    return jnp.sum(jnp.square(jnp.stack(leaves)))


def _clip(limit: float) -> Transformation:
    """Returns a clip by the norm of all together, to at most `limit` (1211.5063); what is within it keeps its bits.

    As `optax.clip_by_global_norm`, but with one factor for all, as PyTorch has it: a quotient for each element is dear
    enough to XLA that it writes the clipped gradients to memory.
    """

    def update(grads, state, params=None):
        factor = limit / jnp.maximum(norm(grads), limit)
        return jax.tree.map(lambda grad: grad * factor, grads), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _adamw(config: OptimConfig, decay: Transformation) -> Transformation:
    """Adam's direction (1412.6980), the weights decayed beside it (1711.05101)."""
    return optax.chain(_adam(**_betas(config)), decay)


def _sgd(config: OptimConfig, decay: Transformation) -> Transformation:
    """Momentum; the decay, as in PyTorch, is part of the gradient."""
    return optax.chain(decay, _still(optax.trace(decay=config.momentum), lambda state: state.trace))


def _adafactor(config: OptimConfig, decay: Transformation) -> Transformation:
    """1804.04235 without momentum; steps are relative to each parameter's own size."""
    sizes = optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
    return optax.chain(_still(optax.scale_by_factored_rms()), *sizes, decay)


def _lamb(config: OptimConfig, decay: Transformation) -> Transformation:
    """1904.00962."""
    return optax.chain(_adam(eps=1e-6, **_betas(config)), decay, optax.scale_by_trust_ratio())


def _lion(config: OptimConfig, decay: Transformation) -> Transformation:
    """2302.06675; it wants a learning rate three to ten times lower than AdamW's."""
    return optax.chain(_still(optax.scale_by_lion(**_betas(config))), decay)


def _muon(config: OptimConfig, decay: Transformation) -> Transformation:
    """Muon (Jordan 2024) for the matrices between input and head, AdamW for all else."""
    as_matrices = partial(jax.tree.map, lambda _: contrib.MuonDimensionNumbers())
    direction = _still(contrib.scale_by_muon(weight_dimension_numbers=as_matrices))
    muon = optax.chain(direction, optax.stateless_with_tree_map(_muon_scale), decay)
    return optax.multi_transform({"muon": muon, "adam": optax.chain(_adam(), decay)}, _muon_labels)


def _muon_scale(update: jax.Array, _) -> jax.Array:
    """Muon's own adjustment for matrices [in, out] that are not square."""
    return update * max(1.0, update.shape[1] / update.shape[0]) ** 0.5


def _muon_labels(params: Tree) -> Tree:
    def label(path, leaf):
        inside = path.startswith("backbone/block_") and isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        return "muon" if inside and leaf.ndim == 2 and path.endswith("kernel") else "adam"

    paths = flatten_dict(params, sep="/")
    return unflatten_dict({path: label(path, leaf) for path, leaf in paths.items()}, sep="/")


def _betas(config: OptimConfig) -> dict[str, float]:
    return {name: value for name in ("b1", "b2") if (value := getattr(config, name)) is not None}


def from_reference(config: OptimConfig, decay: Transformation) -> Transformation:
    """Returns the optimizer that a user's function `(learning_rate, **optim.args)` gives, as those of optax do.

    It is made for a learning rate of 1, as schedule and multipliers scale its update afterwards; and turned round, for
    the step is taken away. `optim.weight_decay` acts beside it, as in AdamW; 0 leaves it to the optimizer's own.

    Args:
        config: its name and its arguments, which were checked when the config was read.
        decay: the weight decay.
    """
    function = resolve_reference(config.name, "optim.name")
    return optax.chain(_still(function(1.0, **config.args)), optax.scale(-1.0), decay)


OPTIMIZERS: dict[str, Callable[[OptimConfig, Transformation], Transformation]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lamb": _lamb,
    "lion": _lion,
    "muon": _muon,
}


def _cosine(peak: float, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, steps)


def _linear(peak: float, steps: int) -> optax.Schedule:
    return optax.linear_schedule(peak, 0.0, steps)


def _constant(peak: float, steps: int) -> optax.Schedule:
    return optax.constant_schedule(peak)


SCHEDULES = {"cosine": _cosine, "linear": _linear, "constant": _constant}


def schedule(
    name: str, peak: float, warmup_steps: int, steps: int, arguments: Mapping[str, Any] = {}
) -> optax.Schedule:
    """Returns a warm-up from 0 by a line, then half a cosine or a line to 0, or a constant (transformers' own).

    Args:
        name: a row of `SCHEDULES`; or `module:name` of a function that gives the part of the peak at a step.
        peak: the highest rate.
        warmup_steps, steps: the warm-up's length, and the whole's.
        arguments: of such a function, checked when the config was read.

    Raises:
        InputError: a warm-up not shorter than the whole, or one that the function does not take.
    """
    if not 0 <= warmup_steps < steps:
        raise InputError(f"optim.warmup_steps is {warmup_steps}, the whole run or phase only {steps} steps")
    if is_reference(name):
        function = resolve_reference(name, "optim.schedule")
        part = partial(function, **arguments, **schedule_arguments(name, function, steps, warmup_steps))
        return lambda step: peak * part(step)
    after = SCHEDULES[name](peak, steps - warmup_steps)
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def optimizer(
    config: OptimConfig,
    multipliers: Tree,
    since: Tree | None = None,
    weight_decay: Float[Array, ""] | None = None,
) -> Transformation:
    """Returns masked clip → direction and weight decay → multiplier; a step is that times minus the learning rate.

    Its `update` takes `finite`, by default true; where it is not, the state stays what it was.

    Made for trees in which `masks.partition` has masked the frozen leaves, so that the clip's norm is that of the
    trainable ones; `set_to_zero` keeps a frozen leaf still even where a caller passes its gradient.

    Args:
        config: the optimizer and its settings.
        multipliers: of each leaf.
        since: the phase in which each leaf began to train. Leaves that began together share a counter, as an
            optimizer that corrects its moments by their age needs it; all began together if None.
        weight_decay: traced, in place of the config's, where heads that differ in it train side by side.
    """
    since = jax.tree.map(lambda _: 0, multipliers) if since is None else since
    decay = optax.add_decayed_weights(config.weight_decay if weight_decay is None else weight_decay, decay_mask)
    began = jax.tree.map(lambda m, phase: f"since {phase}" if m else FROZEN, multipliers, since)
    make = from_reference if is_reference(config.name) else OPTIMIZERS[config.name]
    directions = {label: make(config, decay) for label in jax.tree.leaves(began)}
    scales = {_label(m): _scale(m) for m in jax.tree.leaves(multipliers)}
    parts = [_clip(config.clip_norm)] if config.clip_norm else []
    parts += [optax.multi_transform(directions | {FROZEN: optax.set_to_zero()}, began)]
    parts += [optax.multi_transform(scales, jax.tree.map(_label, multipliers))]
    return optax.chain(*parts)


def carry_over(old: optax.OptState, new: optax.OptState) -> optax.OptState:
    """Returns `new`, a fresh state, with what `old` has under the same path: moments and counters of leaves that stay.

    Paths hold the phase since which a leaf trains, so a leaf that was frozen in between starts afresh.
    """
    old_leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old)}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: old_leaves.get(jax.tree_util.keystr(path), leaf), new)


def decay_mask(params: Tree) -> Tree:
    """Returns True for the kernels that weight decay acts on: no bias, norm, token or position embedding."""
    paths = flatten_dict(params, sep="/")
    return unflatten_dict({path: path.split("/")[-1] not in _NOT_DECAYED for path in paths}, sep="/")


def _scale(multiplier: float) -> Transformation:
    if multiplier == 1:
        return optax.identity()
    return optax.scale(multiplier) if multiplier else optax.set_to_zero()


def _label(multiplier: float) -> str:
    return f"x{multiplier!r}" if multiplier else FROZEN
