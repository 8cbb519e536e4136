"""`Problem`: what kind of label an example has, and all that follows from it. Each kind is a file beside this one."""

import abc
import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from jaxtyping import Array, Bool, Float, Int, Num

from tljax.errors import InputError
from tljax.metrics import bootstrap
from tljax.metrics.bootstrap import Statistic
from tljax.metrics.classification import Bins
from tljax.problems.custom import CustomLoss, CustomMetric
from tljax.problems.losses import masked_sum
from tljax.problems.metric import Metric

Label = int | float | tuple[int, ...] | tuple[float, ...]
Summary = dict[str, float | int | list[float]]


class Problem(abc.ABC):
    """What kind of label an example has: its loss, its metrics, and how labels and predictions are stored and shown.

    A user's own is a subclass of this, or, which is shorter, of one of the three here, and goes by `module:Name` in
    `config.task.problem`. What is abstract here has to be written; all else has a default.

    Attributes:
        name: as `config.task.problem` has it.
        headline: the metric that chooses among checkpoints and settings, and that a result is reported by.
        train_metric: what the log calls the mean of `score` over a training batch.
        has_classes: whether the names in a task's `classes` are of classes; else they are of values.
        one_class: whether an example has exactly one class, so that classes can be weighed, balanced and counted out.
        mixes_labels: whether a mixed image may be trained on the losses of both of its labels.
        lower_is_better: names of metrics that are losses and errors.
        shares: names of metrics that are parts of a whole, which a report shows in per cent.
        output_dtype: in which outputs are stored.
        hf_problem_type: what transformers calls it; empty where it has no word for it.
        layout_version: of prepared data with such labels; those of another version are prepared anew.
    """

    name: str = ""
    headline: ClassVar[Metric]
    train_metric: ClassVar[str]
    has_classes: bool = True
    one_class: bool = False
    mixes_labels: bool = True
    lower_is_better: frozenset[str] = frozenset({"loss", "brier", "ece", "mae", "rmse"})
    shares: frozenset[str] = frozenset()
    output_dtype: type = np.float32
    hf_problem_type: str = ""
    layout_version: int = 2
    custom_loss: CustomLoss | None = None
    custom_metrics: tuple[CustomMetric, ...] = ()

    # Labels: from the values of a data set to what a batch holds.

    @property
    @abc.abstractmethod
    def label_type(self) -> pa.DataType:
        """The type of the column `label` in an index of examples."""

    @abc.abstractmethod
    def checked_label(self, label: Any, classes: int) -> Label:
        """Returns an example's label as it is stored.

        Raises:
            InputError: it is no label for so many classes or values; the message begins with `label`.
        """

    @abc.abstractmethod
    def encode(self, column: Sequence[Any] | np.ndarray, classes: int) -> Num[np.ndarray, "n ..."]:
        """Returns the stored labels of examples as the array that loss and metrics take."""

    @abc.abstractmethod
    def decode(self, labels: Num[np.ndarray, "n ..."]) -> list[Any]:
        """Returns what `encode` gave as a column of `label_type` again."""

    @abc.abstractmethod
    def label_spec(self, classes: int) -> tuple[tuple[int, ...], type]:
        """Returns the shape and dtype of an example's label in a batch."""

    @abc.abstractmethod
    def renumbered(self, label: Any, places: Sequence[int]) -> Label:
        """Returns a stored label among other classes.

        Args:
            label: as `checked_label` gives it.
            places: of each class, or value, its place among the others.
        """

    @abc.abstractmethod
    def tfds_feature(self, classes: Sequence[str]) -> Any:
        """Returns the feature of TFDS that holds such a label."""

    def label_text(self, label: Any, classes: Sequence[str]) -> Any:
        """Returns an element of what `encode` gave as a person reads it."""
        return label

    def targets(self, labels: np.ndarray, names: Sequence[str]) -> tuple[tuple[float, float], ...]:
        """Returns the mean and standard deviation by which each value is scaled for the network; empty for none.

        Raises:
            InputError: there is no such number; the message begins with the value's name.
        """
        return ()

    # Training, on the device.

    def num_outputs(self, classes: int) -> int:
        """Returns how many outputs the head has."""
        return classes

    @abc.abstractmethod
    def loss(self, outputs: Float[Array, "batch outputs"], labels: Num[Array, "batch ..."]) -> Float[Array, " batch"]:
        """Returns the loss of each example; with `smooths_labels` it takes `smoothing` besides."""

    @abc.abstractmethod
    def score(self, outputs: Float[Array, "batch outputs"], labels: Num[Array, "batch ..."]) -> Float[Array, " batch"]:
        """Returns how good each example of a training batch is; the log has their mean as `train_metric`."""

    def weighted_loss(
        self,
        outputs: Float[Array, "batch outputs"],
        labels: Num[Array, "batch ..."],
        weights: Float[Array, " batch"],
        class_weights: Float[Array, " classes"],
        smoothing: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, " batch"]:
        """Returns the loss of each example by its weight.

        Args:
            outputs, labels: as `loss` takes them.
            weights: of each example's own class.
            class_weights: of all classes, for a target that is of several.
            smoothing: how much of the target is uniform.
        """
        return weights * self.example_losses(outputs, labels, smoothing)

    def example_losses(
        self,
        outputs: Float[Array, "batch outputs"],
        labels: Num[Array, "batch ..."],
        smoothing: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, " batch"]:
        """Returns what the config trains on: its own loss of each example, else the problem's.

        Args:
            outputs, labels: as `loss` takes them.
            smoothing: how much of the target is uniform.

        Raises:
            InputError: it does not give one loss an example.
        """
        if self.custom_loss is not None:
            return self.custom_loss(outputs, labels)
        losses = self.loss(outputs, labels, smoothing) if self.smooths_labels else self.loss(outputs, labels)
        if np.shape(losses) != outputs.shape[:1]:
            raise InputError(
                f"{self.name}.loss gives shape {np.shape(losses)} for outputs of shape {outputs.shape}: give one loss"
                f" an example, shape {outputs.shape[:1]}"
            )
        return losses

    def counts(
        self,
        outputs: Float[Array, "batch outputs"],
        labels: Num[Array, "batch ..."],
        mask: Float[Array, " batch"],
    ) -> Float[Array, ""]:
        """Returns the sum of `score` under a mask, which adds up over the parts of a batch.

        Args:
            outputs, labels: as `score` takes them.
            mask: 1 of an example, 0 of padding, which counts for nothing whatever it holds.
        """
        return masked_sum(self.score(outputs, labels), mask)

    # Metrics of a whole split, on the host in float64, in the labels' own units.

    @abc.abstractmethod
    def metrics(self, outputs: Float[np.ndarray, "n outputs"], labels: Num[np.ndarray, "n ..."]) -> dict[str, Any]:
        """Returns the metrics that are cheap enough for each validation, `headline` among them."""

    def ranking_metrics(
        self, outputs: Float[np.ndarray, "n outputs"], labels: Num[np.ndarray, "n ..."]
    ) -> dict[str, Any]:
        """Returns the metrics that only a whole evaluation has."""
        return {}

    def statistics(
        self, outputs: Float[np.ndarray, "n outputs"], labels: Num[np.ndarray, "n ..."], full: bool = True
    ) -> list[Statistic]:
        """Returns what gives metrics of resamples, for their intervals.

        Args:
            outputs, labels: as `metrics` takes them.
            full: whether of all metrics; else of those that a validation shows an interval of.
        """
        return []

    def hits(
        self, outputs: Float[np.ndarray, "n outputs"], labels: Num[np.ndarray, "n ..."]
    ) -> tuple[str, Bool[np.ndarray, " n"]] | None:
        """Returns which examples are right, after the name of the metric that is their share; None if none can be."""
        return None

    def calibration(self, outputs: Float[np.ndarray, "n outputs"], labels: Num[np.ndarray, "n ..."]) -> Bins | None:
        """Returns how confidence comes true; None where there is none."""
        return None

    def confusion(
        self, outputs: Float[np.ndarray, "n outputs"], labels: Num[np.ndarray, "n ..."]
    ) -> Int[np.ndarray, "classes classes"] | None:
        """Returns how many examples of each class (row) are taken for each (column); None where no class is taken."""
        return None

    # Predictions, as they are shown and written.

    @abc.abstractmethod
    def answer(self, outputs: Float[np.ndarray, " outputs"], classes: Sequence[str]) -> dict[str, float]:
        """Returns what the outputs of an example say: a number by name, in the order in which they are shown."""

    def decision(self, answer: Mapping[str, float]) -> str | list[str]:
        """Returns the class, or the classes, that an answer amounts to."""
        return next(iter(answer))

    # What holds for every problem.

    @property
    def smooths_labels(self) -> bool:
        """Whether what is trained on takes `smoothing`, the part of a target that is uniform."""
        return self.custom_loss is None and "smoothing" in inspect.signature(self.loss).parameters

    def with_parts(self, loss: CustomLoss | None, metrics: Sequence[CustomMetric]) -> "Problem":
        """Returns this problem with a user's own loss, and metrics beside its own."""
        problem = copy.copy(self)
        problem.custom_loss, problem.custom_metrics = loss, tuple(metrics)
        return problem

    def metric(self, name: str) -> Metric:
        """Returns the metric with a name, and which way it is better."""
        if name == self.headline.name:
            return self.headline
        for metric in self.custom_metrics:
            if name in metric.better:
                return Metric(name, metric.better[name])
        return Metric(name, "lower" if name in self.lower_is_better else "higher", name in self.shares)

    def summarize(
        self, outputs: Float[np.ndarray, "n outputs"], labels: Num[np.ndarray, "n ..."], *, full: bool = True
    ) -> Summary:
        """Returns a split's metrics from the outputs and labels of all of its examples, in the labels' own units.

        Sums run over the whole split in float64 on the host, so that batch size and device count change nothing but
        the last bits of single outputs.

        Args:
            outputs, labels: of all examples.
            full: whether with `ranking_metrics` and all intervals; else the only interval is that of the metric that a
                validation shows.

        Returns:
            The metrics, `count`, and `NAME_95` of a metric: its 95% percentile bootstrap interval over examples, from
            1000 resamples that are the same for all metrics, and for all splits of one size; a resample in which a
            metric is undefined does not count for it. The share of hits has it from 10,000 counts of hits, which are
            binomial. The metrics of a ranking have none above a million examples × classes, and those of a user's own
            none. That of `ece` lies high, as each resample adds its own noise to the gaps.

        Raises:
            InputError: an output is not finite, or a user's metric gives something else than numbers.
        """
        broken = np.flatnonzero(~np.isfinite(outputs).all(axis=-1))
        if len(broken):
            raise InputError(
                f"the network's output is not finite for {len(broken)} of {len(outputs)} examples, the first at index"
                f" {broken[0]}: look at the weights, and at that example's input"
            )
        points, statistics = self._points(outputs, labels, full)
        intervals = bootstrap.intervals(statistics, len(labels))
        summary: Summary = {}
        for name, value in points.items():
            summary[name] = value if isinstance(value, list) else float(value)
            if name in intervals:
                summary[f"{name}_95"] = intervals[name]
        return summary | {"count": len(labels)}

    def statistic(
        self, outputs: Float[np.ndarray, "n outputs"], labels: Num[np.ndarray, "n ..."], metric: str
    ) -> Statistic:
        """Returns what gives a metric, under its name, of a split of which each example counts so many times.

        Args:
            outputs, labels: of all examples.
            metric: a name in `summarize`.

        Raises:
            InputError: there is no such metric, or it is one of a ranking, of too many scores to be resampled.
        """
        name, is_right = self.hits(outputs, labels) or ("", None)
        if metric == name:
            return bootstrap.means_of({metric: is_right})
        for custom in self.custom_metrics:
            if metric in custom.values(outputs.astype(np.float64), labels):
                return custom.statistic(outputs.astype(np.float64), labels)
        points, statistics = self._points(outputs, labels, True)
        times = np.ones((len(labels), 1))
        for statistic in statistics:
            if metric in statistic(times):
                return statistic
        if metric in points:
            raise InputError(f"{metric} of {outputs.size:,} scores takes too long to resample: name another metric")
        known = [name for name, value in points.items() if not isinstance(value, list)]
        raise InputError(f"no metric {metric!r}; there are: {', '.join(known)}")

    @property
    def _own_loss(self) -> CustomLoss | None:
        """A user's own loss, which stands in results in place of that of `metrics`."""
        is_ours = type(self).loss.__module__.split(".")[0] == __name__.split(".")[0]
        return self.custom_loss if self.custom_loss or is_ours else CustomLoss(f"{self.name}.loss", self.loss)

    def _points(self, outputs: np.ndarray, labels: np.ndarray, full: bool) -> tuple[dict[str, Any], list[Statistic]]:
        """Returns the metrics, and what gives those of resamples."""
        outputs = outputs.astype(np.float64)
        points = dict(self.metrics(outputs, labels))
        if full:
            points |= self.ranking_metrics(outputs, labels)
        statistics = self.statistics(outputs, labels, full)
        if (loss := self._own_loss) is not None:
            losses = loss.on_host(outputs, labels)
            points["loss"] = losses.mean()
            statistics = [_without_loss(statistic) for statistic in statistics]
            statistics += [bootstrap.means_of({"loss": losses})] * full
        for metric in self.custom_metrics:
            for name, value in metric.values(outputs, labels).items():
                if name in points or name == "count":
                    raise InputError(f"{metric.where} gives {name!r}, which {self.name} has already: rename it")
                points[name] = value
        if self.headline.name not in points:
            raise InputError(f"{self.name}.metrics gives no {self.headline.name!r}, its headline: {', '.join(points)}")
        return points, statistics


def _without_loss(statistic: Statistic) -> Statistic:
    """Returns a statistic without that of the loss, where another loss stands in its place."""

    def rest(times: np.ndarray) -> Mapping[str, np.ndarray]:
        return {name: values for name, values in statistic(times).items() if name != "loss"}

    return rest
