"""What a run reads: its data set, splits, tokenizer and streams."""

import copy
import functools
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from tljax.config.ranges import INT32
from tljax.config.schema import Experiment
from tljax.core.resolve import Resolved
from tljax.data import registry
from tljax.data.dataset import Split, Task, in_stored_order, shown
from tljax.data.loader import TrainInput
from tljax.data.readers import ExampleReader, Reader
from tljax.data.splits import make_splits
from tljax.data.transforms.tokenize import Tokenizer
from tljax.distributed.mesh import check_batch
from tljax.errors import InputError
from tljax.weights import pretrained


class Inputs:
    """The data of a run; nothing is read before it is asked for.

    Args:
        experiment: which data, how they are cut, and how fast they are read.
        resolved: what of it the data and the weights decided.
        cut: the splits, where `resolve` has just cut them.
        tokenizer: the folder in the workdir; by default what lies beside the weights.
    """

    def __init__(
        self,
        experiment: Experiment,
        resolved: Resolved,
        cut: dict[str, Split] | None = None,
        tokenizer: Path | None = None,
    ):
        self.experiment, self.resolved = experiment, resolved
        self._cut, self._tokenizer = cut, tokenizer

    @functools.cached_property
    def task(self) -> Task:
        """The prepared data set.

        Raises:
            InputError: it is not the one that the run was made for.
        """
        if self._cut:
            return self._cut["train"].task
        task = registry.load(self.experiment.task)
        task = in_stored_order(task, self.resolved.classes, self.resolved.data)
        if task.fingerprint != self.resolved.data:
            difference = _difference(task, self.resolved)
            raise InputError(
                f"{self.experiment.task.dataset} is not the data that this run was trained on: {difference};"
                " bring it back, or train in another --workdir"
            )
        return task

    @functools.cached_property
    def splits(self) -> dict[str, Split]:
        """The splits by name: `train`, and `validation` and `test` where the config has them."""
        return self._cut or make_splits(self.task, self.experiment.task)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a network that reads texts; None of one that reads images.

        Raises:
            InputError: it is not the one that the run was made with.
        """
        if not self.resolved.tokenizer:
            return None
        path = self._tokenizer or pretrained.tokenizer(self.resolved.pretrained, self.experiment.task.tokenizer)
        tokenizer = Tokenizer(path)
        if tokenizer.sha256 != self.resolved.tokenizer:
            raise InputError(f"{path} is not the tokenizer that this run was trained with")
        return tokenizer

    def with_experiment(self, experiment: Experiment) -> "Inputs":
        """Returns the same data in the order, and with the crops and augmentations, of another seed."""
        other = copy.copy(self)
        other.experiment = experiment
        return other

    def batch_size(self, mesh: Mesh) -> int:
        """Returns the training examples of a step.

        Raises:
            InputError: the devices cannot share them evenly, or would have more values of them at a time than are
                counted in 32 bits. Only training asks: evaluation pads.
        """
        parts, size = self.experiment.optim.accumulate, self.experiment.task.batch_size
        largest = INT32 // self.resolved.input_spec.values * mesh.size * parts
        if size > largest:
            raise InputError(
                f"task.batch_size={size} is too large: {largest} have {INT32} values on each device; use fewer, or"
                " more optim.accumulate"
            )
        return check_batch(size, mesh, "task.batch_size", parts)

    def reader(self, split: Split, passes: float = 1.0, training: bool = False) -> ExampleReader:
        """Returns what reads examples of a split.

        Args:
            split: whose examples.
            passes: how often each example is going to be read; above 1, images are decoded once where disk allows.
            training: whether images are cut and augmented for training.
        """
        return self.resolved.input_spec.reader(
            split,
            self.experiment.task,
            tokenizer=self.tokenizer,
            training=training,
            seed=self.experiment.seed,
            cache_bytes=self.experiment.input.cache_gb * 1e9 if passes > 1 else 0,
            workers=self.experiment.input.workers,
        )

    def train_input(self, batch_size: int, part: tuple[int, int] = (0, 1), read: Reader | None = None) -> TrainInput:
        """Returns the training stream.

        Args:
            batch_size: examples per step, over all processes.
            part: the number of this process, and of how many: its share of each batch.
            read: reads the examples; as pictures or tokens by default.
        """
        train, config = self.splits["train"], self.experiment.task
        weights = np.ones(len(train), np.float32)
        if self.resolved.class_weights:
            weights = np.array(self.resolved.class_weights, np.float32)[train.labels]
        return TrainInput(
            read or self.reader(train, self.resolved.steps * batch_size / len(train), training=True),
            self.scaled(train.labels),
            weights,
            batch_size,
            self.experiment.seed,
            train.labels if config.balance == "sampling" else None,
            self.experiment.input.workers,
            part,
            self.resolved.class_weights,
        )

    def scaled(self, labels: np.ndarray) -> np.ndarray:
        """Returns labels as the network learns them: a regression's in float32, of mean 0 and standard deviation 1."""
        if not self.resolved.targets:
            return labels
        mean, spread = np.array(self.resolved.targets).T
        return ((labels - mean) / spread).astype(np.float32)

    def unscaled(self, logits: np.ndarray) -> np.ndarray:
        """Returns what the network says in the labels' own units: values in float64; logits as they are."""
        if not self.resolved.targets:
            return logits
        mean, spread = np.array(self.resolved.targets).T
        return logits * spread + mean


def _difference(task: Task, resolved: Resolved) -> str:
    """Says in what a data set differs from the one that a run was trained on."""
    if sorted(task.classes) != sorted(resolved.classes):
        return f"its classes are {shown(task.classes)}, and were {shown(resolved.classes)}"
    return "an example or a label was added, removed or changed"
