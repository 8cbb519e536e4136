"""One training step and one evaluation step: pure functions of State and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from tljax import metrics, tuning

Batch = dict[str, jax.Array]  # image [batch, height, width, 3] uint8, label [batch] int32, mask [batch] float32
Forward = Callable[..., Any]  # (params, batch_stats, image, train) -> logits [batch, classes], batch_stats


@struct.dataclass
class State:
    """All that a run carries from step to step; the input needs no state, it is a function of `step`.

    Attributes:
        step: steps taken, a scalar int32.
        params, batch_stats: nested dicts of arrays.
        opt_state: of the trainable leaves.
    """

    step: Any
    params: Any
    opt_state: Any
    batch_stats: Any


def train_step(
    state: State, batch: Batch, *, forward: Forward, tx: optax.GradientTransformation, multipliers: Any
) -> tuple[State, dict[str, jax.Array]]:
    """Differentiates the trainable leaves alone and moves them.

    Nothing here may read a frozen leaf's gradient: XLA would then compute the whole backward pass again.

    Returns:
        The next state, and `loss`, `accuracy`, `grad_norm` (over trainable leaves, before the clip).
    """

    def objective(trainable):
        params = tuning.merge(trainable, state.params, multipliers)
        logits, batch_stats = forward(params, state.batch_stats, batch["image"], train=True)
        loss_sum, count = metrics.total(metrics.cross_entropy(logits, batch["label"]), batch["mask"])
        return loss_sum / count, (logits, batch_stats)

    trainable = tuning.select(state.params, multipliers)
    (loss, (logits, batch_stats)), grads = jax.value_and_grad(objective, has_aux=True)(trainable)
    updates, opt_state = tx.update(grads, state.opt_state, trainable)
    params = tuning.merge(optax.apply_updates(trainable, updates), state.params, multipliers)
    hits, count = metrics.total(metrics.correct(logits, batch["label"]), batch["mask"])
    return (
        State(state.step + 1, params, opt_state, batch_stats),
        {"loss": loss, "accuracy": hits / count, "grad_norm": optax.tree.norm(grads)},
    )


def eval_step(params: Any, batch_stats: Any, image: jax.Array, *, forward: Forward) -> jax.Array:
    """Logits [batch, classes] in float32."""
    logits, _ = forward(params, batch_stats, image, train=False)
    return logits.astype(jnp.float32)
