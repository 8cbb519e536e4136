"""One training step and one evaluation step: pure functions of train state and batch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from tljax.config.schema import OptimConfig, RegularizeConfig
from tljax.core.state import TrainState
from tljax.data import mixup
from tljax.problems.base import Problem
from tljax.problems.losses import masked_sum
from tljax.problems.registry import PROBLEMS
from tljax.tuning import optimizers
from tljax.tuning.masks import combine, combine_leaves, partition, partition_leaves
from tljax.tuning.multipliers import Tree

Batch = dict[str, Any]  # as `data.loader.HostBatch`
Metrics = dict[str, jax.Array]
Forward = Callable[..., Any]  # (params, batch_stats, input, key) -> logits [batch, classes], batch_stats
TracedHparams = dict[str, Any]  # scalars: learning_rate (the peak), weight_decay, seed and, if not 0, label_smoothing


@dataclass(frozen=True)
class TrainStep:
    """A compiled training step of a phase: (train state, batch) -> train state, metrics.

    The leaves that the step changes are donated. Frozen ones are the same arrays in the new state: the program reads
    them and returns none, so that a frozen leaf cannot change, nor costs a step anything but its use.

    Attributes:
        program: (changing leaves, frozen leaves, batch, numbers) -> changed leaves, metrics.
        numbers: the traced scalars of this run: peak learning rate, weight decay, seed and label smoothing.
        frozen_mask: of each leaf of the train state, in order, whether the step leaves it unchanged.
    """

    program: jax.stages.Compiled
    numbers: TracedHparams
    frozen_mask: tuple[bool, ...]

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Takes a step; the arrays of `state` that it changes are gone afterwards."""
        leaves, treedef = jax.tree.flatten(state)
        frozen, changing = partition_leaves(leaves, self.frozen_mask)
        changed, metrics = self.program(changing, frozen, batch, self.numbers)
        return treedef.unflatten(combine_leaves(frozen, changed, self.frozen_mask)), metrics


@dataclass(frozen=True)
class StepSpec:
    """What is fixed within a phase.

    Attributes:
        forward: the network in training.
        optimizer: without the learning rate.
        schedule: step -> learning rate.
        trainable_mask: of each parameter, whether it trains; multipliers serve.
        optim, regularize: the config's.
        smoothing: of labels; traced where heads that differ in it train side by side.
        pull: L2-SP's weight of each leaf.
        average_from: the step at which `swa` starts.
        seed: of dropout, stochastic depth and the mixing of images; an integer.
        problem: whose losses and scores are taken.
        class_weights: of each class, [classes], where a label's loss may be of several of them, as those of smoothed
            and of mixed labels; else None: a batch has the weight of each example.
    """

    forward: Forward
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    trainable_mask: Tree
    optim: OptimConfig
    regularize: RegularizeConfig
    smoothing: float | Float[Array, ""]
    pull: Any
    average_from: int
    seed: Any
    problem: Problem = PROBLEMS["single_label"]
    class_weights: Float[Array, " classes"] | None = None


class Gradients(NamedTuple):
    """What a step computes of the network, before its optimizer.

    Attributes:
        loss, scores: of the batch: the mean loss, and the sum of the problem's training metric.
        batch_stats: after the batch.
        grads: of the trainable leaves, to go down by.
        norm: of the gradients at the weights themselves (SAM's `grads` are those of another place).
        is_finite: whether loss and norms are.
    """

    loss: jax.Array
    scores: jax.Array
    batch_stats: Any
    grads: Any
    norm: jax.Array
    is_finite: jax.Array


def train_step(state: TrainState, batch: Batch, spec: StepSpec) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on the trainable parameters; one that is not finite changes nothing but counters.

    Only trainable leaves are differentiated. Nothing here may read a frozen leaf's gradient, or XLA computes the
    whole backward pass again.

    Args:
        state: the train state before the step.
        batch: examples, padded and masked; leaves have shape [batch, ...].
        spec: what is fixed within a phase.

    Returns:
        The next state, and scalar metrics: `loss`, the problem's training metric, `grad_norm` (over trainable leaves,
        before the clip), `learning_rate`, `skipped_steps` (up to now).
    """
    trainable, _ = partition(state.params, spec.trainable_mask)
    loss, scores, batch_stats, grads, grad_norm, is_finite = gradients(state, batch, spec)
    learning_rate = spec.schedule(state.step)
    updates, opt_state = spec.optimizer.update(grads, state.opt_state, trainable, finite=is_finite)
    trainable = jax.tree.map(lambda w, u: _apply_update(w, u, learning_rate, is_finite), trainable, updates)
    if_finite = partial(jax.tree.map, partial(jnp.where, is_finite))
    batch_stats = if_finite(batch_stats, state.batch_stats)
    average = if_finite(_next_average(state, trainable, batch_stats, spec), state.average)
    params = combine(trainable, state.params)
    skipped = state.skipped + jnp.where(is_finite, 0, 1)
    metrics = {"loss": loss, spec.problem.train_metric: scores / jnp.sum(batch["mask"]), "grad_norm": grad_norm}
    metrics |= {"learning_rate": learning_rate, "skipped_steps": skipped}
    return TrainState(state.step + 1, params, opt_state, batch_stats, average, state.anchor, skipped), metrics


def gradients(state: TrainState, batch: Batch, spec: StepSpec) -> Gradients:
    """Computes what a step needs of the network, before its optimizer.

    Args:
        state: the train state before the step.
        batch: examples, padded and masked; leaves have shape [batch, ...].
        spec: what is fixed within a phase.
    """
    trainable, _ = partition(state.params, spec.trainable_mask)
    key = jax.random.fold_in(jax.random.key(spec.seed), state.step)
    batch = mixup.apply_mixup_cutmix(
        batch, jax.random.fold_in(key, mixup.KEY), spec.regularize.mixup, spec.regularize.cutmix
    )
    loss, scores, batch_stats, grads = _loss_and_grads(trainable, state, batch, spec)
    norm = optimizers.norm(grads)
    # A reduction: XLA puts anything less into each leaf's update anew, 1,500 of a ViT-S step's 21,400 instructions.
    is_finite = jnp.all(jnp.isfinite(jnp.stack((loss, norm))))
    if spec.optim.sam_rho:
        climbed = jax.tree.map(lambda w, g: w + g * (spec.optim.sam_rho / (norm + 1e-12)), trainable, grads)
        _, _, _, grads = _loss_and_grads(climbed, state, batch, spec)
        is_finite &= jnp.isfinite(optimizers.norm(grads))
    return Gradients(loss, scores, batch_stats, grads, norm, is_finite)


def _loss_and_grads(trainable: Tree, state: TrainState, batch: Batch, spec: StepSpec) -> tuple[Any, Any, Any, Any]:
    """Returns the loss, scores, batch statistics and gradients of a batch, at `trainable` weights."""
    weight = jnp.sum(batch["weight"])
    if spec.class_weights is not None:
        weight = masked_sum(mixup.weights(batch), batch["mask"])
    weight = jnp.where(weight > 0, weight, 1)  # else of a batch whose classes all weigh nothing
    step_key = jax.random.fold_in(jax.random.key(spec.seed), state.step)

    def loss_fn(trainable, batch_stats, part, key):
        params = combine(trainable, state.params)
        logits, batch_stats = spec.forward(params, batch_stats, part["input"], key)
        losses = mixup.loss(part, partial(_losses, logits, spec))
        scores = spec.problem.counts(logits, part["label"], part["mask"])
        counted = part["weight"] if spec.class_weights is None else part["mask"]
        return masked_sum(losses, counted) / weight, (scores, batch_stats)

    def grads_of(trainable, batch_stats, part, number):
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        key = jax.random.fold_in(step_key, number)
        (loss, (scores, batch_stats)), grads = value_and_grad(trainable, batch_stats, part, key)
        return loss, scores, batch_stats, grads

    if spec.optim.accumulate == 1:
        loss, scores, batch_stats, grads = grads_of(trainable, state.batch_stats, batch, 0)
    else:
        loss, scores, batch_stats, grads = _accumulate(
            grads_of, trainable, state.batch_stats, batch, spec.optim.accumulate
        )
    if state.anchor:
        penalty, pulls = _l2_sp(trainable, state.anchor, spec)
        loss, grads = loss + penalty, jax.tree.map(jnp.add, grads, pulls)
    return loss, scores, batch_stats, grads


def _accumulate(
    grads_of: Callable[..., Any], trainable: Tree, batch_stats: Any, batch: Batch, parts: int
) -> tuple[Any, Any, Any, Any]:
    """Adds up loss, scores and gradients of a batch in `parts`, computed one after another."""

    def add(carry, numbered):
        loss, scores, batch_stats, grads = carry
        part, number = numbered
        # Without it, what comes of the weights alone, as a convolution's taps, is computed before the loop and kept.
        weights, part = jax.lax.optimization_barrier((trainable, part))
        part_loss, part_scores, batch_stats, part_grads = grads_of(weights, batch_stats, part, number)
        return (loss + part_loss, scores + part_scores, batch_stats, jax.tree.map(jnp.add, grads, part_grads)), None

    # Strided, so that each part has its share of every device's rows and nothing moves between them.
    split = jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0), batch)
    carry = jnp.zeros(()), jnp.zeros(()), batch_stats, jax.tree.map(jnp.zeros_like, trainable)
    return jax.lax.scan(add, carry, (split, jnp.arange(parts)))[0]


@jax.jit
def _apply_update(leaf, update, learning_rate, is_finite):
    return jnp.where(is_finite, leaf - learning_rate * update, leaf)


def _losses(logits: jax.Array, spec: StepSpec, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the loss of each example, weighted already where there are class weights."""
    if spec.class_weights is None:
        return spec.problem.example_losses(logits, labels, spec.smoothing)
    return spec.problem.weighted_loss(logits, labels, weights, spec.class_weights, spec.smoothing)


def _l2_sp(trainable: Tree, anchor: Tree, spec: StepSpec) -> tuple[jax.Array, Tree]:
    """Returns L2-SP's penalty (1802.01483), half the sum of pull · (w - anchor)², and its gradient."""
    distance = jax.tree.map(jnp.subtract, trainable, partition(anchor, spec.trainable_mask)[0])
    pull, _ = partition(spec.pull, spec.trainable_mask)
    grads = jax.tree.map(lambda pull, leaf: pull * leaf, pull, distance)
    return optax.tree.vdot(grads, distance) / 2, grads


def _next_average(state: TrainState, trainable: Tree, batch_stats: Any, spec: StepSpec) -> Any:
    """Returns the next average of what trains and of the batch statistics.

    `ema`: old · d + new · (1 - d), with d the lower of `average_decay` and (1 + step) / (10 + step), so that the
    start is forgotten; `swa` (1803.05407): the mean of all since `average_from`, until then the values themselves.
    """
    if not spec.optim.average:
        return state.average
    if spec.optim.average == "ema":
        weight = 1 - jnp.minimum(spec.optim.average_decay, (1 + state.step) / (10 + state.step))
    else:
        weight = 1 / (1 + jnp.maximum(0, state.step - spec.average_from))
    new = {"params": trainable, "batch_stats": batch_stats}
    return jax.tree.map(lambda mean, leaf: mean + weight * (leaf - mean), state.average, new)


def eval_step(params: Any, batch_stats: Any, x: Any, *, forward: Forward, flip: bool = False) -> jax.Array:
    """Returns logits [batch, classes] in float32.

    Args:
        params, batch_stats: to evaluate.
        x: the input of a batch.
        forward: the network in evaluation.
        flip: whether logits are the mean of each image's and its mirror image's.
    """
    logits, _ = forward(params, batch_stats, x)
    if flip:
        logits = (logits + forward(params, batch_stats, x[:, :, ::-1])[0]) / 2
    return logits.astype(jnp.float32)
