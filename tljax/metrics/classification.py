"""What metrics of classes are made of, on the host in float64: calibration, ranking, confusion."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from tljax.metrics import bootstrap


@dataclass(frozen=True)
class Bins:
    """Predictions in 15 bins of equal width by confidence, each open below and closed above (Guo 2017, 1706.04599).

    Attributes:
        count: predictions in each.
        confidence: their mean probability; NaN in an empty bin.
        accuracy: the part of them that came true; NaN in an empty bin.
    """

    count: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]

    @property
    def ece(self) -> float:
        """The expected calibration error: how far accuracy and confidence are apart, averaged over predictions."""
        apart = np.abs(self.accuracy - self.confidence)
        return float(np.where(self.count, self.count * apart, 0).sum() / self.count.sum())


def calibration(logits: Float[np.ndarray, "n classes"], labels: Num[np.ndarray, "n ..."]) -> Bins:
    """How confidence, the highest probability for labels [n], or each class's for labels [n, classes], comes true."""
    from scipy.special import expit, softmax

    if labels.ndim == 1:
        return bins_of(softmax(logits.astype(np.float64), axis=-1).max(axis=-1), logits.argmax(axis=-1) == labels)
    return bins_of(expit(logits.astype(np.float64)), labels)


def bins_of(confidence: np.ndarray, is_right: np.ndarray) -> Bins:
    """Returns the bins of confidences, and of which of them came true, both of any one shape."""
    places = bootstrap.bin_of(confidence).ravel()
    count = np.bincount(places, minlength=bootstrap.BINS)
    sums = (np.bincount(places, values.ravel(), minlength=bootstrap.BINS) for values in (confidence, is_right))
    return Bins(count, *(np.divide(sum_, count, out=np.full(bootstrap.BINS, np.nan), where=count > 0) for sum_ in sums))


def confusion_counts(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> Int[np.ndarray, "classes classes"]:
    """Returns how many examples of each class (row) are taken for each (column)."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, logits.argmax(axis=-1), labels=range(logits.shape[-1]))


def negative_log_likelihood(
    logits: Float[np.ndarray, "n classes"], probabilities: Float[np.ndarray, "n classes"], labels: np.ndarray
) -> Float[np.ndarray, " n"]:
    """Returns the negative log-likelihood of each example in nats.

    Args:
        logits: of each class.
        probabilities: their softmax.
        labels: int [n].
    """
    from scipy.special import log_softmax

    own, least = probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).eps
    losses = -np.log(np.clip(own, least, 1 - least))  # as log_loss has it, to the last digit
    rare = own < least
    losses[rare] = -np.take_along_axis(log_softmax(logits[rare], axis=-1), labels[rare][:, None], axis=-1)[:, 0]
    return losses


def brier(probabilities: Float[np.ndarray, "n classes"], labels: np.ndarray) -> Float[np.ndarray, " n"]:
    """Returns the squared error of each example's probabilities, summed over classes; of two, half of that."""
    errors = np.empty(len(labels))
    step = max(1, 2**22 // probabilities.shape[-1])
    for rows in (slice(start, start + step) for start in range(0, len(labels), step)):  # a part at a time is copied
        apart, own = probabilities[rows].copy(), labels[rows]
        apart[np.arange(len(own)), own] -= 1
        errors[rows] = np.square(apart, out=apart).sum(axis=-1)
    return errors * (0.5 if probabilities.shape[-1] == 2 else 1)


def classes_above_label(logits: Float[np.ndarray, "n classes"], labels: np.ndarray) -> Int[np.ndarray, " n"]:
    """Returns how many classes come before each label's.

    Of equal logits the last comes first, as in `top_k_accuracy_score`.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=-1)
    later = np.arange(logits.shape[-1]) > labels[:, None]
    return ((logits > own) | ((logits == own) & later)).sum(axis=-1)


def aurocs(has: Bool[np.ndarray, "n classes"], scores: Float[np.ndarray, "n classes"]) -> list[float]:
    """Returns the AUROC of each class that at least one, and not every, example has."""
    from sklearn.metrics import roc_auc_score

    return of_columns(roc_auc_score, has, scores, has.any(axis=0) & ~has.all(axis=0))


def average_precisions(has: Bool[np.ndarray, "n classes"], scores: Float[np.ndarray, "n classes"]) -> list[float]:
    """Returns the average precision of each class that occurs."""
    from sklearn.metrics import average_precision_score

    return of_columns(average_precision_score, has, scores, has.any(axis=0))


def brier_of_columns(has: Bool[np.ndarray, "n classes"], probabilities: Float[np.ndarray, "n classes"]) -> list[float]:
    """Returns the mean squared error of each class's probability."""
    from sklearn.metrics import brier_score_loss

    return of_columns(partial(brier_score_loss, pos_label=True), has, probabilities)


def of_columns(
    metric: Callable[..., float], has: np.ndarray, scores: np.ndarray, among: np.ndarray | None = None
) -> list[float]:
    """Returns a metric of each column.

    Args:
        metric: of (labels, scores) of a column.
        has, scores: both [n, columns].
        among: a boolean for each column that says whether it counts; by default all do.
    """
    columns = range(has.shape[1]) if among is None else np.flatnonzero(among).tolist()
    # Most of the time is NumPy sorting, during which another thread can sort, too.
    with ThreadPoolExecutor() as pool:
        # To start threads takes longer than a few short sorts.
        map_columns = pool.map if has.size > bootstrap.LARGE else map
        return list(map_columns(lambda k: metric(has[:, k], scores[:, k]), columns))
