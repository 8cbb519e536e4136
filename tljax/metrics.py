"""Losses and metrics as (sum, count) under a mask, so that a padded batch counts each example once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], smoothing: float = 0.0
) -> Float[Array, " batch"]:
    """Softmax cross-entropy of each example, in nats; `smoothing` of the target is uniform (1512.00567)."""
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing))


def correct(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """1 where the highest logit is the label's, else 0."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def total(values: Float[Array, " batch"], mask: Float[Array, " batch"]) -> Float[Array, ""]:
    """The sum over the examples whose mask is 1, whatever the others hold."""
    return jnp.sum(jnp.where(mask > 0, values, 0) * mask)


def summarise(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | int | list[float]]:
    """A split's metrics from the logits [n, classes] and labels [n] of all of its examples.

    Sums run over the whole split in float64 on the host, so that batch size and device count change nothing but
    the last bits of single logits.

    Returns:
        `accuracy`, its 95% percentile bootstrap interval over examples, `loss` (mean cross-entropy, nats), `count`.
    """
    from scipy import stats
    from scipy.special import log_softmax

    logits = logits.astype(np.float64)
    hits = (logits.argmax(-1) == labels).astype(np.float64)
    losses = -log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]
    # Resampling n hits with replacement draws a binomial count: the same bootstrap, without n × 10,000 numbers.
    draws = stats.binom.rvs(len(hits), hits.mean(), size=10_000, random_state=0) / len(hits)
    interval = np.quantile(draws, (0.025, 0.975))
    return {
        "accuracy": float(hits.mean()),
        "accuracy_95": [float(edge) for edge in interval],
        "loss": float(losses.mean()),
        "count": len(labels),
    }
