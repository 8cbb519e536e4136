"""One value or several for each example."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Float, Num

from tljax.errors import InputError
from tljax.metrics import bootstrap
from tljax.metrics.bootstrap import Statistic
from tljax.problems.base import Problem
from tljax.problems.metric import Metric


class Regression(Problem):
    """Each example has values; labels and outputs are [n, values].

    The network learns them at mean 0 and standard deviation 1 of the training split, in float32; metrics and answers
    are in their own units, in float64.
    """

    name = "regression"
    headline = Metric("mae", better="lower")
    train_metric = "scaled_mae"
    has_classes = False
    output_dtype = np.float64
    hf_problem_type = "regression"
    layout_version = 3

    @property
    def label_type(self) -> pa.DataType:
        """Returns the type of a list of values."""
        return pa.list_(pa.float64())

    def checked_label(self, label: Any, classes: int) -> tuple[float, ...]:
        """Returns the values, all finite, as floats."""
        values = np.atleast_1d(np.asarray(label, np.float64)).tolist()
        if len(values) != classes or not all(map(math.isfinite, values)):
            raise InputError(f"label {label!r} is not {classes} finite number(s)")
        return tuple(values)

    def encode(self, column: Sequence[Any] | np.ndarray, classes: int) -> Float[np.ndarray, "n values"]:
        """Returns values as float64 [n, values]."""
        return np.array(column, np.float64).reshape(len(column), classes)

    def decode(self, labels: Num[np.ndarray, "n values"]) -> list[np.ndarray]:
        """Returns the values of each example."""
        return list(labels)

    def label_spec(self, classes: int) -> tuple[tuple[int, ...], type]:
        """Returns the shape and dtype of values as the network learns them."""
        return (classes,), np.float32

    def renumbered(self, label: Any, places: Sequence[int]) -> tuple[float, ...]:
        """Returns the values in the order of others of the same names."""
        return tuple(label[places.index(place)] for place in range(len(places)))

    def tfds_feature(self, classes: Sequence[str]) -> Any:
        """Returns TFDS's tensor of float64."""
        from tensorflow_datasets import features

        # TFDS would round other encodings to float32.
        return features.Tensor(shape=(len(classes),), dtype=np.float64, encoding=features.Encoding.BYTES)

    def targets(self, labels: Num[np.ndarray, "n values"], names: Sequence[str]) -> tuple[tuple[float, float], ...]:
        """Returns the mean and standard deviation of each value, 1 of a constant one.

        Raises:
            InputError: float64 has no standard deviation of a value.
        """
        with np.errstate(over="ignore", under="ignore"):
            mean, spread = labels.mean(axis=0), labels.std(axis=0)
        spread[np.ptp(labels, axis=0) == 0] = 1.0  # of equal values, rounding leaves some 1e-17
        for name, deviation in zip(names, spread.tolist(), strict=True):
            if not 0 < deviation < np.inf:
                raise InputError(f"{name} has the standard deviation {deviation:g} in float64; take another unit")
        return tuple(zip(mean.tolist(), spread.tolist(), strict=True))

    def loss(self, outputs: Float[Array, "batch values"], labels: Num[Array, "batch values"]) -> Float[Array, " batch"]:
        """Returns the mean over values of the squared error."""
        return jnp.mean(jnp.square(outputs - labels), axis=-1)

    def score(
        self, outputs: Float[Array, "batch values"], labels: Num[Array, "batch values"]
    ) -> Float[Array, " batch"]:
        """Returns the mean absolute error, in standard deviations of the training targets."""
        return jnp.mean(jnp.abs(outputs - labels), axis=-1)

    def metrics(self, outputs: Float[np.ndarray, "n values"], labels: Num[np.ndarray, "n values"]) -> dict[str, Any]:
        """Returns `mae`, `rmse`, `r2` (NaN where a target is constant) and `loss` (`rmse` squared), over all values."""
        from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

        labels = labels.astype(np.float64)
        squared = mean_squared_error(labels, outputs)
        return {
            "mae": mean_absolute_error(labels, outputs),
            "rmse": np.sqrt(squared),
            "r2": r2_score(labels, outputs) if (labels.max(axis=0) > labels.min(axis=0)).all() else np.nan,
            "loss": squared,
        }

    def statistics(
        self, outputs: Float[np.ndarray, "n values"], labels: Num[np.ndarray, "n values"], full: bool = True
    ) -> list[Statistic]:
        """Returns what gives metrics of resamples.

        Args:
            outputs, labels: as `metrics` takes them.
            full: whether of all metrics; else of `mae` alone.
        """
        labels = labels.astype(np.float64)
        statistics = [bootstrap.means_of({"mae": np.abs(outputs - labels).mean(axis=-1)})]
        return [*statistics, bootstrap.by_target(outputs, labels)] if full else statistics

    def answer(self, outputs: Float[np.ndarray, " values"], classes: Sequence[str]) -> dict[str, float]:
        """Returns the values in their order."""
        return dict(zip(classes, outputs.tolist(), strict=True))

    def decision(self, answer: dict[str, float]) -> list[str]:
        """Returns nothing: values are no classes."""
        return []
