"""Losses of an example, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], smoothing: float | Float[Array, ""] = 0.0
) -> Float[Array, " batch"]:
    """Returns the softmax cross-entropy of each example, in nats.

    Args:
        logits: of each class.
        labels: the class of each example.
        smoothing: how much of the target is uniform (1512.00567).
    """
    # Over the first axis: the logits of `heads` come from a product that way round, and so are never copied.
    log_probs = jax.nn.log_softmax(logits.T, axis=0)
    is_label = jnp.arange(logits.shape[-1])[:, None] == labels
    likelihood = jnp.sum(jnp.where(is_label, log_probs, 0), axis=0)
    if not isinstance(smoothing, float) or smoothing:
        likelihood = (1 - smoothing) * likelihood + smoothing * jnp.mean(log_probs, axis=0)
    return -likelihood


def weighted_cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    weights: Float[Array, " batch"],
    class_weights: Float[Array, " classes"],
    smoothing: float | Float[Array, ""] = 0.0,
) -> Float[Array, " batch"]:
    """Returns the softmax cross-entropy of each example, each class of its target by its own weight.

    As torch's `CrossEntropyLoss(weight, label_smoothing)`, whose mean is their sum over that of `weights`.

    Args:
        logits: of each class.
        labels: the class of each example.
        weights: of each example's own class.
        class_weights: of all of them, by which the uniform part of a smoothed target is weighed.
        smoothing: how much of the target is uniform.
    """
    losses = weights * cross_entropy(logits, labels)
    if isinstance(smoothing, float) and not smoothing:
        return losses
    uniform = jnp.mean(class_weights[:, None] * jax.nn.log_softmax(logits.T, axis=0), axis=0)
    return (1 - smoothing) * losses - smoothing * uniform


def masked_sum(values: Float[Array, " batch"], mask: Float[Array, " batch"]) -> Float[Array, ""]:
    """Returns the sum over the examples whose mask, or weight, is above 0, whatever the others hold."""
    return jnp.sum(jnp.where(mask > 0, values, 0) * mask)
