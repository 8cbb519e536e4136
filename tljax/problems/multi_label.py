"""Any number of classes for each example, each on or off."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
from jaxtyping import Array, Float, Num

from tljax.errors import InputError
from tljax.metrics import bootstrap, classification
from tljax.metrics.bootstrap import Statistic
from tljax.metrics.classification import Bins
from tljax.problems.base import Problem
from tljax.problems.metric import Metric


class MultiLabel(Problem):
    """Each example has several classes or none; labels are float32 [n, classes] of 0 and 1, outputs logits.

    Probabilities are the sigmoid of the logits; a class is predicted above probability 0.5.
    """

    name = "multi_label"
    headline = Metric("mean_average_precision", is_share=True)
    train_metric = "label_accuracy"
    shares = frozenset({"mean_average_precision", "f1", "micro_f1", "exact_match", "auroc"})
    hf_problem_type = "multi_label_classification"

    @property
    def label_type(self) -> pa.DataType:
        """Returns the type of a list of classes."""
        return pa.list_(pa.int32())

    def checked_label(self, label: Any, classes: int) -> tuple[int, ...]:
        """Returns the classes in their order, each once."""
        is_list = isinstance(label, tuple | list)
        if not is_list or not all(isinstance(place, int | np.integer) and 0 <= place < classes for place in label):
            raise InputError(f"label {label!r} is none of the classes 0 to {classes - 1}")
        return tuple(sorted(set(label)))

    def encode(self, column: Sequence[Any] | np.ndarray, classes: int) -> Float[np.ndarray, "n classes"]:
        """Returns lists of classes as 0 and 1, float32 [n, classes]."""
        labels = np.zeros((len(column), classes), np.float32)
        for i, places in enumerate(column):
            labels[i, places] = 1
        return labels

    def decode(self, labels: Num[np.ndarray, "n classes"]) -> list[np.ndarray]:
        """Returns the classes of each example."""
        return [np.flatnonzero(row) for row in labels]

    def label_spec(self, classes: int) -> tuple[tuple[int, ...], type]:
        """Returns the shape and dtype of 0 and 1 for each class."""
        return (classes,), np.float32

    def renumbered(self, label: Any, places: Sequence[int]) -> tuple[int, ...]:
        """Returns the places of classes among others, in order."""
        return tuple(sorted(places[number] for number in label))

    def tfds_feature(self, classes: Sequence[str]) -> Any:
        """Returns TFDS's sequence of `ClassLabel`."""
        from tensorflow_datasets import features

        return features.Sequence(features.ClassLabel(names=list(classes)))

    def label_text(self, label: Any, classes: Sequence[str]) -> str:
        """Returns the names of the classes that are there, with `|` between."""
        return "|".join(name for name, has in zip(classes, label, strict=True) if has)

    def loss(
        self,
        outputs: Float[Array, "batch classes"],
        labels: Num[Array, "batch classes"],
        smoothing: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, " batch"]:
        """Returns the binary cross-entropy of `outputs`, averaged over classes; `smoothing` draws `labels` to 1/2."""
        targets = labels * (1 - smoothing) + smoothing / 2
        return jnp.mean(optax.sigmoid_binary_cross_entropy(outputs, targets), axis=-1)

    def score(
        self, outputs: Float[Array, "batch classes"], labels: Num[Array, "batch classes"]
    ) -> Float[Array, " batch"]:
        """Returns the part of the classes that are right."""
        return jnp.mean(((outputs > 0) == (labels > 0)).astype(jnp.float32), axis=-1)

    def metrics(self, outputs: Float[np.ndarray, "n classes"], labels: Num[np.ndarray, "n classes"]) -> dict[str, Any]:
        """Returns `mean_average_precision`, averaged over the classes that occur, 0 if none does, and these.

        `f1`, `micro_f1`: F1, averaged over classes (0 of one that neither occurs nor is predicted), and of all
        predictions together. `exact_match`: all classes of an example are right. `loss`: binary cross-entropy in nats,
        averaged over classes. `brier`: the probabilities' squared error, averaged over classes. `ece`: `Bins.ece` of
        each class's probability, all classes together.
        """
        has, predicted, probabilities = labels > 0, outputs > 0, _sigmoid(outputs)
        _, is_exact = self.hits(outputs, labels)
        return {
            "mean_average_precision": np.mean(classification.average_precisions(has, outputs) or 0.0),
            **bootstrap.f1((has & predicted).sum(axis=0), has.sum(axis=0) + predicted.sum(axis=0)),
            "exact_match": is_exact.mean(),
            "exact_match_95": bootstrap.interval_of_hits(is_exact),
            "loss": _losses(outputs, labels).mean(),
            "brier": np.mean(classification.brier_of_columns(has, probabilities)),
            "ece": classification.bins_of(probabilities, has).ece,
        }

    def ranking_metrics(
        self, outputs: Float[np.ndarray, "n classes"], labels: Num[np.ndarray, "n classes"]
    ) -> dict[str, Any]:
        """Returns `auroc`, averaged over the classes that some, and not all, examples have; none without such."""
        areas = classification.aurocs(labels > 0, outputs)
        return {"auroc": np.mean(areas)} if areas else {}

    def statistics(
        self, outputs: Float[np.ndarray, "n classes"], labels: Num[np.ndarray, "n classes"], full: bool = True
    ) -> list[Statistic]:
        """Returns what gives all metrics of resamples but the exact match, whose interval is in `metrics`.

        Args:
            outputs, labels: as `metrics` takes them.
            full: whether of all metrics; else of none.
        """
        if not full:
            return []
        has, probabilities = labels > 0, _sigmoid(outputs)
        means = {"loss": _losses(outputs, labels), "brier": np.square(has - probabilities).mean(axis=-1)}
        return [
            bootstrap.means_of(means),
            bootstrap.by_label(has, outputs > 0),
            bootstrap.calibration_error(probabilities, has),
            *bootstrap.rankings(has, outputs, "mean_average_precision", skip_constant=False),
        ]

    def hits(
        self, outputs: Float[np.ndarray, "n classes"], labels: Num[np.ndarray, "n classes"]
    ) -> tuple[str, np.ndarray]:
        """Returns where all classes of an example are right."""
        return "exact_match", ((outputs > 0) == (labels > 0)).all(axis=-1)

    def calibration(self, outputs: Float[np.ndarray, "n classes"], labels: Num[np.ndarray, "n classes"]) -> Bins:
        """Returns how each class's probability comes true, all classes together."""
        return classification.calibration(outputs, labels)

    def answer(self, outputs: Float[np.ndarray, " classes"], classes: Sequence[str]) -> dict[str, float]:
        """Returns each class's own probability, the most probable first."""
        probabilities = _sigmoid(outputs)
        return {classes[i]: float(probabilities[i]) for i in np.argsort(-probabilities, kind="stable")}

    def decision(self, answer: dict[str, float]) -> list[str]:
        """Returns the classes that are more probable than not."""
        return [name for name, probability in answer.items() if probability > 0.5]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(logits)


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return (np.logaddexp(0, logits) - labels * logits).mean(axis=-1)
