"""One class for each example."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Float, Int

from tljax.errors import InputError
from tljax.metrics import bootstrap, classification
from tljax.metrics.bootstrap import Statistic
from tljax.metrics.classification import Bins
from tljax.problems.base import Problem
from tljax.problems.losses import cross_entropy, weighted_cross_entropy
from tljax.problems.metric import Metric


class SingleLabel(Problem):
    """Each example has one class; labels are int32 [n], outputs the classes' logits.

    Probabilities are the softmax of the logits; from them scikit-learn's functions give the same numbers (`log_loss`,
    `brier_score_loss` and `top_k_accuracy_score`, with all classes in `labels`).
    """

    name = "single_label"
    headline = Metric("accuracy", is_share=True)
    train_metric = "accuracy"
    one_class = True
    shares = frozenset({"accuracy", "top_5", "balanced_accuracy", "macro_f1", "auroc", "average_precision"})
    hf_problem_type = "single_label_classification"

    @property
    def label_type(self) -> pa.DataType:
        """Returns the type of a class, an integer."""
        return pa.int32()

    def checked_label(self, label: Any, classes: int) -> int:
        """Returns a class as an integer."""
        if not isinstance(label, int | np.integer) or not 0 <= label < classes:
            raise InputError(f"label {label!r} is none of the classes 0 to {classes - 1}")
        return int(label)

    def encode(self, column: Sequence[Any] | np.ndarray, classes: int) -> Int[np.ndarray, " n"]:
        """Returns classes as int32 [n]."""
        return np.asarray(column, np.int32)

    def decode(self, labels: Int[np.ndarray, " n"]) -> list[int]:
        """Returns the classes as a list."""
        return labels.tolist()

    def label_spec(self, classes: int) -> tuple[tuple[int, ...], type]:
        """Returns the shape and dtype of a class."""
        return (), np.int32

    def renumbered(self, label: Any, places: Sequence[int]) -> int:
        """Returns the place of a class among others."""
        return places[label]

    def tfds_feature(self, classes: Sequence[str]) -> Any:
        """Returns TFDS's `ClassLabel`."""
        from tensorflow_datasets import features

        return features.ClassLabel(names=list(classes))

    def label_text(self, label: Any, classes: Sequence[str]) -> str:
        """Returns the name of a class."""
        return classes[label]

    def loss(
        self,
        outputs: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        smoothing: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, " batch"]:
        """Returns the softmax cross-entropy of `outputs` and `labels`; `smoothing` of the target is uniform."""
        return cross_entropy(outputs, labels, smoothing)

    def weighted_loss(self, outputs, labels, weights, class_weights, smoothing=0.0) -> Float[Array, " batch"]:
        """Returns the softmax cross-entropy by class weights; another loss, of a user's own, by the example's weight.

        Args:
            outputs, labels, smoothing: as `loss` takes them.
            weights, class_weights: as `weighted_cross_entropy` takes them.
        """
        if self.custom_loss is not None or type(self).loss is not SingleLabel.loss:
            return super().weighted_loss(outputs, labels, weights, class_weights, smoothing)
        return weighted_cross_entropy(outputs, labels, weights, class_weights, smoothing)

    def score(self, outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """Returns 1 where the highest logit is the label's, else 0."""
        return (jnp.argmax(outputs, axis=-1) == labels).astype(jnp.float32)

    def metrics(self, outputs: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> dict[str, Any]:
        """Returns `accuracy` and these.

        `top_5`: the label is among the 5 highest logits; only with more than 5 classes. `balanced_accuracy`: recall,
        averaged over the classes that occur: what Pets, Flowers and VTAB call mean per-class accuracy. `macro_f1`: F1,
        averaged over the classes that occur or are predicted. `loss`: the negative log-likelihood in nats; `log_loss`,
        but for an example to whose label a probability below 2e-16 is given, which that counts as 36 nats. `brier`: the
        squared error of the probabilities, summed over classes (0 to 2) with more than two of them; of the second class
        (0 to 1) with two. `ece`: `Bins.ece` of the highest probability.
        """
        from sklearn.metrics import f1_score

        classes, predicted = outputs.shape[-1], outputs.argmax(axis=-1)
        probabilities, is_right = _softmax(outputs), predicted == labels
        points = {"accuracy": is_right.mean(), "accuracy_95": bootstrap.interval_of_hits(is_right)}
        points |= {name: values.mean() for name, values in self._means(outputs, probabilities, labels).items()}
        points["ece"] = classification.bins_of(probabilities.max(axis=-1), is_right).ece
        # As balanced_accuracy_score has it, which makes a table of classes × classes: of 20,000, some gigabytes.
        occur, right = (np.bincount(members, minlength=classes) for members in (labels, labels[is_right]))
        points["balanced_accuracy"] = np.mean(right[occur > 0] / occur[occur > 0])
        with warnings.catch_warnings():  # that a class is predicted and does not occur, or that there are many for few
            warnings.simplefilter("ignore", UserWarning)
            points["macro_f1"] = f1_score(labels, predicted, average="macro", zero_division=0)
        return points

    def ranking_metrics(self, outputs: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> dict[str, Any]:
        """Returns `auroc` and `average_precision`, by the second class's probability of two.

        Of more classes, one against the rest, averaged over those that some, and not all, examples have; there are
        none where there is no such class.
        """
        has, scores = _one_against_rest(_softmax(outputs), labels)
        if not has.shape[1]:
            return {}
        auroc, precision = classification.aurocs(has, scores), classification.average_precisions(has, scores)
        return {"auroc": np.mean(auroc), "average_precision": np.mean(precision)}

    def statistics(
        self, outputs: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], full: bool = True
    ) -> list[Statistic]:
        """Returns what gives all metrics of resamples but the accuracy, whose interval is in `metrics`.

        Args:
            outputs, labels: as `metrics` takes them.
            full: whether of all metrics; else of none.
        """
        if not full:
            return []
        predicted, probabilities = outputs.argmax(axis=-1), _softmax(outputs)
        confidence, is_right = probabilities.max(axis=-1), predicted == labels
        statistics = [
            bootstrap.means_of(self._means(outputs, probabilities, labels)),
            bootstrap.by_class(labels, predicted, outputs.shape[-1]),
            bootstrap.calibration_error(confidence[:, None], is_right[:, None]),
        ]
        has, scores = _one_against_rest(probabilities, labels)
        if has.shape[1]:
            statistics += bootstrap.rankings(has, scores, "average_precision", skip_constant=True)
        return statistics

    def hits(self, outputs: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> tuple[str, np.ndarray]:
        """Returns where the highest logit is the label's."""
        return "accuracy", outputs.argmax(axis=-1) == labels

    def calibration(self, outputs: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> Bins:
        """Returns how the highest probability comes true."""
        return classification.calibration(outputs, labels)

    def confusion(self, outputs: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> np.ndarray:
        """Returns how many examples of each class (row) are taken for each (column)."""
        return classification.confusion_counts(outputs, labels)

    def answer(self, outputs: Float[np.ndarray, " classes"], classes: Sequence[str]) -> dict[str, float]:
        """Returns the probability of each class, the most probable first."""
        probabilities = _softmax(outputs)
        return {classes[i]: float(probabilities[i]) for i in np.argsort(-probabilities, kind="stable")}

    def _means(self, outputs: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Returns, of each example, the metrics that are means over examples."""
        means = {
            "loss": classification.negative_log_likelihood(outputs, probabilities, labels),
            "brier": classification.brier(probabilities, labels),
        }
        if outputs.shape[-1] > 5:
            means["top_5"] = classification.classes_above_label(outputs, labels) < 5
        return means


def _softmax(logits: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    return softmax(logits, axis=-1)


def _one_against_rest(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which examples have each class that can be ranked, and its probability, both [n, such classes]."""
    classes = probabilities.shape[-1]
    columns = [1] if classes == 2 else range(classes)  # of two, the first's ranking is the second's reversed
    columns = [k for k in columns if 0 < (labels == k).sum() < len(labels)]
    has = labels[:, None] == np.array(columns, int)
    return has, probabilities if len(columns) == classes else probabilities[:, columns]  # a copy only where need be
