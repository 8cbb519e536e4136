"""What each kind of problem is trained on and judged by. Sums run under a mask: a padded batch counts examples once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Num

LESS_IS_BETTER = frozenset({"loss", "brier", "ece", "mae", "rmse"})


@dataclass(frozen=True)
class Judgement:
    """How a kind of problem is judged.

    Attributes:
        trained: what the log says of a training batch, beside its loss.
        best: the metric of `scores.summarise` that chooses among checkpoints, and that a result is reported by.
    """

    trained: str
    best: str

    def quality(self, found: Mapping[str, Any]) -> float:
        """Of what `scores.summarise` gave: more is better."""
        return -found[self.best] if self.best in LESS_IS_BETTER else found[self.best]


JUDGED = {
    "single_label": Judgement("accuracy", "accuracy"),
    "multi_label": Judgement("label_accuracy", "mean_average_precision"),
    "regression": Judgement("mae", "mae"),
}


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], smoothing: float = 0.0
) -> Float[Array, " batch"]:
    """Softmax cross-entropy of each example, in nats; `smoothing` of the target is uniform (1512.00567)."""
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing))


def loss(
    problem: str, logits: Float[Array, "batch classes"], labels: Num[Array, "batch ..."], smoothing: float = 0.0
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
    """`Judgement.trained` of each example: a hit, the part of classes that are right, or the mean absolute error."""
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


def summarise(problem: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float | int | list[float]]:
    """A split's metrics from the logits [n, classes] and labels of all of its examples, in the labels' own units.

    Sums run over the whole split in float64 on the host, so that batch size and device count change nothing but
    the last bits of single logits.

    Returns:
        `count`; `loss` (mean over examples); and, each with a 95% percentile bootstrap interval over examples,
        `single_label`: `accuracy`; `multi_label`: `exact_match` (of all classes of an example, at probability 0.5),
        and `mean_average_precision` (macro over classes that occur) and `f1` (macro, at 0.5) without one;
        `regression`: `mae`, and `rmse` and `r2` (mean over values) without one.
    """
    logits = logits.astype(np.float64)
    judged = {"single_label": _single_label, "multi_label": _multi_label, "regression": _regression}[problem]
    return {**judged(logits, labels), "count": len(labels)}


def _single_label(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | list[float]]:
    from scipy.special import log_softmax

    hits = (logits.argmax(-1) == labels).astype(np.float64)
    losses = -log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]
    return {"accuracy": float(hits.mean()), "accuracy_95": _interval_of_hits(hits), "loss": float(losses.mean())}


def _multi_label(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | list[float]]:
    from sklearn.metrics import average_precision_score, f1_score

    there = labels.any(axis=0)
    said = logits > 0
    exact = (said == (labels > 0)).all(axis=-1).astype(np.float64)
    losses = np.logaddexp(0, logits) - labels * logits
    precision = average_precision_score(labels[:, there], logits[:, there], average="macro") if there.any() else 0.0
    return {
        "mean_average_precision": float(precision),
        "f1": float(f1_score(labels > 0, said, average="macro", zero_division=0)),
        "exact_match": float(exact.mean()),
        "exact_match_95": _interval_of_hits(exact),
        "loss": float(losses.mean()),
    }


def _regression(values: np.ndarray, labels: np.ndarray) -> dict[str, float | list[float]]:
    from sklearn.metrics import r2_score

    errors = np.abs(values - labels).mean(axis=-1)
    rng = np.random.Generator(np.random.PCG64(0))
    count = len(errors)
    draws = np.array([errors[rng.integers(0, count, count)].mean() for _ in range(1000)])
    squared = float(np.square(values - labels).mean())
    return {
        "mae": float(errors.mean()),
        "mae_95": _interval(draws),
        "rmse": float(np.sqrt(squared)),
        "r2": float(r2_score(labels, values)) if count > 1 else float("nan"),
        "loss": squared,
    }


def _interval_of_hits(hits: np.ndarray) -> list[float]:
    from scipy import stats

    # Resampling n hits with replacement draws a binomial count: the same bootstrap, without n × 10,000 numbers.
    return _interval(stats.binom.rvs(len(hits), hits.mean(), size=10_000, random_state=0) / len(hits))


def _interval(draws: np.ndarray) -> list[float]:
    return [float(edge) for edge in np.quantile(draws, (0.025, 0.975))]
