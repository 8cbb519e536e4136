"""One training step and one evaluation step: pure functions of State and batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float

from tljax.config.schema import OptimConfig, RegularizeConfig
from tljax.data import mixup
from tljax.problems import base
from tljax.tuning import optimizers
from tljax.tuning.multipliers import combine, partition

Batch = dict[str, Any]  # as `data.pipeline.HostBatch`
Forward = Callable[..., Any]  # (params, batch_stats, input, key) -> logits [batch, classes], batch_stats
TracedHparams = dict[str, Any]  # scalars: learning_rate (the peak), weight_decay, seed and, if not 0, label_smoothing


@struct.dataclass
class State:
    """All that a run carries from step to step; the input needs no state, it is a function of `step`.

    Attributes:
        step: steps taken, a scalar int32.
        params, batch_stats: nested dicts of arrays.
        opt_state: of the leaves that train in the phase of the last step.
        average: {params, batch_stats} of those leaves, where `optim.average` is set; else empty.
        anchor: the values that leaves started at, and 0 for new ones, which L2-SP pulls them to; else empty.
        skipped: steps that were not finite and left everything as it was, a scalar int32.
    """

    step: Any
    params: Any
    opt_state: Any
    batch_stats: Any
    average: Any
    anchor: Any
    skipped: Any


@dataclass(frozen=True)
class TrainStep:
    """A compiled training step of a phase: (State, batch) -> State, metrics.

    The leaves of the old State that move are donated. Those that rest are the same arrays in the new one: the program
    reads them and returns none, so that a frozen leaf cannot change, nor costs a step anything but its use.

    Attributes:
        program: (leaves that move, leaves that rest, batch, traced_hparams) -> leaves that moved, metrics.
        traced_hparams: this run's.
        rests: of each leaf of a State, whether it does.
    """

    program: jax.stages.Compiled
    traced_hparams: TracedHparams
    rests: tuple[bool, ...]

    def __call__(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        leaves, form = jax.tree.flatten(state)
        moving, resting = parted(leaves, self.rests)
        moved, found = self.program(moving, resting, batch, self.traced_hparams)
        return form.unflatten(joined(moved, resting, self.rests)), found


def parted(leaves: Sequence[Any], rests: Sequence[bool]) -> tuple[list[Any], list[Any]]:
    """Those that move, and those that rest."""
    pairs = list(zip(leaves, rests, strict=True))
    return [leaf for leaf, rest in pairs if not rest], [leaf for leaf, rest in pairs if rest]


def joined(moving: Sequence[Any], resting: Sequence[Any], rests: Sequence[bool]) -> list[Any]:
    """Such leaves in their order."""
    left, right = iter(moving), iter(resting)
    return [next(right if rest else left) for rest in rests]


@dataclass(frozen=True)
class Rules:
    """What does not change within a phase.

    Attributes:
        forward: the network in training.
        tx: the optimizer, without the learning rate.
        schedule: step -> learning rate.
        multipliers: of each leaf; 0 is frozen.
        optim, regularize: the config's.
        smoothing: of labels; traced where heads that differ in it train side by side.
        pull: L2-SP's weight of each leaf.
        average_from: the step at which `swa` starts.
        seed: of dropout, stochastic depth and the mixing of images; an integer.
        problem: a row of `metrics.JUDGED`.
        class_weights: of each class, [classes], where a label's loss may be of several of them, as those of smoothed
            and of mixed labels; else None: a batch has the weight of each example.
    """

    forward: Forward
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    multipliers: Any
    optim: OptimConfig
    regularize: RegularizeConfig
    smoothing: float | Float[Array, ""]
    pull: Any
    average_from: int
    seed: Any
    problem: str = "single_label"
    class_weights: Float[Array, " classes"] | None = None


def train_step(state: State, batch: Batch, rules: Rules) -> tuple[State, dict[str, jax.Array]]:
    """Differentiates the trainable leaves alone and moves them; a step that is not finite moves nothing.

    Nothing here may read a frozen leaf's gradient: XLA would then compute the whole backward pass again.

    Returns:
        The next state, and `loss`, what `metrics.JUDGED` says of the problem, `grad_norm` (over trainable leaves,
        before the clip), `learning_rate`, `skipped_steps` (up to now).
    """
    trainable = partition(state.params, rules.multipliers)[0]
    loss, scores, batch_stats, grads, norm, finite = gradients(state, batch, rules)
    rate = rules.schedule(state.step)
    updates, opt_state = rules.tx.update(grads, state.opt_state, trainable, finite=finite)
    moved = jax.tree.map(lambda w, u: _moved(w, u, rate, finite), trainable, updates)
    where_finite = partial(jax.tree.map, partial(jnp.where, finite))
    batch_stats = where_finite(batch_stats, state.batch_stats)
    average = where_finite(_averaged(state, moved, batch_stats, rules), state.average)
    params = combine(moved, state.params)
    skipped = state.skipped + jnp.where(finite, 0, 1)
    trained = base.JUDGED[rules.problem].trained
    found = {"loss": loss, trained: scores / jnp.sum(batch["mask"]), "grad_norm": norm}
    found |= {"learning_rate": rate, "skipped_steps": skipped}
    return State(state.step + 1, params, opt_state, batch_stats, average, state.anchor, skipped), found


def gradients(state: State, batch: Batch, rules: Rules) -> tuple[Any, Any, Any, Any, Any, Any]:
    """What a step computes of the network, before its optimizer.

    Returns:
        The loss, scores and batch statistics; of the trainable leaves the gradients to go down by, and the norm of
        those at the weights themselves (SAM's are another place's); whether all are finite.
    """
    trainable = partition(state.params, rules.multipliers)[0]
    key = jax.random.fold_in(jax.random.key(rules.seed), state.step)
    batch = mixup.mixed(batch, jax.random.fold_in(key, mixup.KEY), rules.regularize.mixup, rules.regularize.cutmix)
    loss, scores, batch_stats, grads = _gradients(trainable, state, batch, rules)
    norm = optimizers.norm(grads)
    # A reduction: XLA puts anything less into each leaf's update anew, 1,500 of a ViT-S step's 21,400 instructions.
    finite = jnp.all(jnp.isfinite(jnp.stack((loss, norm))))
    if rules.optim.sam_rho:
        climbed = jax.tree.map(lambda w, g: w + g * (rules.optim.sam_rho / (norm + 1e-12)), trainable, grads)
        _, _, _, grads = _gradients(climbed, state, batch, rules)
        finite &= jnp.isfinite(optimizers.norm(grads))
    return loss, scores, batch_stats, grads, norm, finite


def _gradients(trainable: Any, state: State, batch: Batch, rules: Rules) -> tuple[Any, Any, Any, Any]:
    """Loss, scores, batch statistics and gradients of a batch, computed in `accumulate` parts, one after another."""
    parts = rules.optim.accumulate
    weight = jnp.sum(batch["weight"])
    if rules.class_weights is not None:
        weight = base.total(mixup.weights(batch), batch["mask"])
    weight = jnp.where(weight > 0, weight, 1)  # else of a batch whose classes all weigh nothing
    step_key = jax.random.fold_in(jax.random.key(rules.seed), state.step)

    def objective(trainable, batch_stats, part, key):
        params = combine(trainable, state.params)
        logits, batch_stats = rules.forward(params, batch_stats, part["input"], key)
        losses = mixup.loss(part, partial(_losses, logits, rules))
        scores = base.total(base.score(rules.problem, logits, part["label"]), part["mask"])
        counted = part["weight"] if rules.class_weights is None else part["mask"]
        return base.total(losses, counted) / weight, (scores, batch_stats)

    def of(weights, batch_stats, part, number):
        value = jax.value_and_grad(objective, has_aux=True)
        (loss, (scores, batch_stats)), grads = value(weights, batch_stats, part, jax.random.fold_in(step_key, number))
        return loss, scores, batch_stats, grads

    def add(carry, numbered):
        loss, scores, batch_stats, grads = carry
        part, number = numbered
        # Without it, what comes of the weights alone, as a convolution's taps, is computed before the loop and kept.
        weights, part = jax.lax.optimization_barrier((trainable, part))
        more, found, batch_stats, new = of(weights, batch_stats, part, number)
        return (loss + more, scores + found, batch_stats, jax.tree.map(jnp.add, grads, new)), None

    if parts == 1:
        found = of(trainable, state.batch_stats, batch, 0)
    else:
        # Strided, so that each part has its share of every device's rows and nothing moves between them.
        split = jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0), batch)
        carry = jnp.zeros(()), jnp.zeros(()), state.batch_stats, jax.tree.map(jnp.zeros_like, trainable)
        found = jax.lax.scan(add, carry, (split, jnp.arange(parts)))[0]
    if not state.anchor:
        return found
    loss, scores, batch_stats, grads = found
    penalty, pulls = _pull(trainable, state.anchor, rules)
    return loss + penalty, scores, batch_stats, jax.tree.map(jnp.add, grads, pulls)


@jax.jit
def _moved(leaf, update, rate, finite):
    return jnp.where(finite, leaf - rate * update, leaf)


def _losses(logits: jax.Array, rules: Rules, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the loss of each example, weighted already where there are class weights."""
    if rules.class_weights is None:
        return base.loss(rules.problem, logits, labels, rules.smoothing)
    return base.weighted_cross_entropy(logits, labels, weights, rules.class_weights, rules.smoothing)


def _pull(trainable: Any, anchor: Any, rules: Rules) -> tuple[jax.Array, Any]:
    """L2-SP (1802.01483): half the sum of pull · (w - anchor)², and its gradient."""
    moved = jax.tree.map(jnp.subtract, trainable, partition(anchor, rules.multipliers)[0])
    grads = jax.tree.map(lambda pull, leaf: pull * leaf, partition(rules.pull, rules.multipliers)[0], moved)
    return optax.tree.vdot(grads, moved) / 2, grads


def _averaged(state: State, trainable: Any, batch_stats: Any, rules: Rules) -> Any:
    """The next average of what trains and of the batch statistics.

    `ema`: old · d + new · (1 - d), with d the lower of `average_decay` and (1 + step) / (10 + step), so that the
    start is forgotten; `swa` (1803.05407): the mean of all since `average_from`, until then the values themselves.
    """
    if not rules.optim.average:
        return state.average
    if rules.optim.average == "ema":
        weight = 1 - jnp.minimum(rules.optim.average_decay, (1 + state.step) / (10 + state.step))
    else:
        weight = 1 / (1 + jnp.maximum(0, state.step - rules.average_from))
    new = {"params": trainable, "batch_stats": batch_stats}
    return jax.tree.map(lambda mean, leaf: mean + weight * (leaf - mean), state.average, new)


def eval_step(params: Any, batch_stats: Any, x: Any, *, forward: Forward, flip: bool = False) -> jax.Array:
    """Logits [batch, classes] in float32; with `flip`, the mean of each image's and its mirror image's."""
    logits, _ = forward(params, batch_stats, x)
    if flip:
        logits = (logits + forward(params, batch_stats, x[:, :, ::-1])[0]) / 2
    return logits.astype(jnp.float32)
