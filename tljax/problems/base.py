"""What each kind of problem is trained on and judged by. Sums run under a mask: a padded batch counts examples once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Num

from tljax.errors import InputError

LESS_IS_BETTER = frozenset({"loss", "brier", "ece", "mae", "rmse"})


@dataclass(frozen=True)
class Judgement:
    """How a kind of problem is judged.

    Attributes:
        trained: what the log says of a training batch, beside its loss.
        best: the metric of `scores.summarize` that chooses among checkpoints, and that a result is reported by.
    """

    trained: str
    best: str

    def quality(self, metrics: Mapping[str, Any]) -> float:
        """Returns how good what `scores.summarize` gave is: more is better.

        Raises:
            InputError: the metric is not there, or is not a number; JSON has null for it.
        """
        value = metrics.get(self.best)
        if value is None or not math.isfinite(value):
            what = "is not a number" if self.best in metrics else "is not among the metrics"
            raise InputError(f"{self.best} {what}, so that nothing is best by it")
        return -value if self.best in LESS_IS_BETTER else value


JUDGED = {
    "single_label": Judgement("accuracy", "accuracy"),
    "multi_label": Judgement("label_accuracy", "mean_average_precision"),
    "regression": Judgement("scaled_mae", "mae"),
}


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], smoothing: float | Float[Array, ""] = 0.0
) -> Float[Array, " batch"]:
    """Softmax cross-entropy of each example, in nats; `smoothing` of the target is uniform (1512.00567)."""
    # Over the first axis: the logits of `heads` come from a product that way round, and so are never copied.
    log_probs = jax.nn.log_softmax(logits.T, axis=0)
    right = jnp.arange(logits.shape[-1])[:, None] == labels
    found = jnp.sum(jnp.where(right, log_probs, 0), axis=0)
    if not isinstance(smoothing, float) or smoothing:
        found = (1 - smoothing) * found + smoothing * jnp.mean(log_probs, axis=0)
    return -found


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


def loss(
    problem: str,
    logits: Float[Array, "batch classes"],
    labels: Num[Array, "batch ..."],
    smoothing: float | Float[Array, ""] = 0.0,
) -> Float[Array, " batch"]:
    """What each example is trained on.

    `single_label`: `cross_entropy`. `multi_label`: the mean over classes of the binary cross-entropy of each logit's
    sigmoid; smoothing draws its targets to a half. `regression`: the mean over values of the squared error.
    """
    if problem == "single_label":
        return cross_entropy(logits, labels, smoothing)
    if problem == "multi_label":
        targets = labels * (1 - smoothing) + smoothing / 2
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)
    return jnp.mean(jnp.square(logits - labels), axis=-1)


def score(
    problem: str, logits: Float[Array, "batch classes"], labels: Num[Array, "batch ..."]
) -> Float[Array, " batch"]:
    """`Judgement.trained` of each example: a hit, the part of classes that are right, or the mean absolute error.

    The last is in standard deviations of the training targets, as which the network sees them.
    """
    if problem == "single_label":
        return correct(logits, labels)
    if problem == "multi_label":
        return jnp.mean(((logits > 0) == (labels > 0)).astype(jnp.float32), axis=-1)
    return jnp.mean(jnp.abs(logits - labels), axis=-1)


def correct(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """1 where the highest logit is the label's, else 0."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def total(values: Float[Array, " batch"], mask: Float[Array, " batch"]) -> Float[Array, ""]:
    """The sum over the examples whose mask, or weight, is above 0, whatever the others hold."""
    return jnp.sum(jnp.where(mask > 0, values, 0) * mask)
