"""Batches as a pure function of (seed, step): nothing to save, and no worker count or restart changes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grain
import numpy as np

from tljax.config import Preprocessing
from tljax.data import images
from tljax.errors import InputError

Examples = Sequence[dict[str, Any]]
# image [batch, size, size, channels] uint8, label [batch] int32, mask [batch] float32
HostBatch = dict[str, np.ndarray]


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of range(count), keyed by (seed, epoch).

    It sorts raw Philox words, which NumPy keeps stable across versions, unlike its own `permutation`.
    """
    return np.argsort(_words(seed, epoch, 0).random_raw(count), kind="stable")


@dataclass(frozen=True)
class TrainInput:
    """The endless training stream: epoch after epoch, each example once per epoch.

    Attributes:
        examples: of the training split.
        preprocessing, augment: how each becomes a picture.
        batch_size: over all devices.
        seed: of order and augmentation.

    Raises:
        InputError: an augmentation that does not exist.
    """

    examples: Examples
    preprocessing: Preprocessing
    augment: tuple[str, ...]
    batch_size: int
    seed: int

    def __post_init__(self):
        for name in self.augment:
            if name not in images.AUGMENTATIONS:
                known = ", ".join(images.AUGMENTATIONS)
                raise InputError(f"no augmentation {name!r} in task.augment; there are: {known}")

    def indices(self, step: int) -> list[tuple[int, int]]:
        """(epoch, example) of each row of the batch that step `step` (from 0) trains on."""
        count = len(self.examples)
        places = (divmod(step * self.batch_size + row, count) for row in range(self.batch_size))
        return [(epoch, int(epoch_order(self.seed, epoch, count)[place])) for epoch, place in places]

    def batch(self, step: int) -> HostBatch:
        """The batch of step `step`."""
        rows = self.indices(step)
        found = self.examples.__getitems__([index for _, index in rows])
        pictures = []
        for (epoch, index), example in zip(rows, found, strict=True):
            rng = np.random.Generator(_words(self.seed, epoch, index + 1))
            image = images.decode(example["image"], str(example["id"]), self.preprocessing.channels)
            pictures.append(images.training_view(image, self.preprocessing, self.augment, rng))
        return _stack(pictures, [example["label"] for example in found], self.batch_size)

    def batches(self, start: int, stop: int) -> Iterator[HostBatch]:
        """The batches of steps start … stop - 1, made ahead by threads."""
        return _ahead(self.batch, range(start, stop))


def evaluation_batches(examples: Examples, preprocessing: Preprocessing, batch_size: int) -> Iterator[HostBatch]:
    """Every example once, in stored order; the last batch is padded and masked."""

    def batch(start: int) -> HostBatch:
        found = examples.__getitems__(list(range(start, min(start + batch_size, len(examples)))))
        decoded = (images.decode(example["image"], str(example["id"]), preprocessing.channels) for example in found)
        pictures = [images.evaluation_view(image, preprocessing) for image in decoded]
        return _stack(pictures, [example["label"] for example in found], batch_size)

    return _ahead(batch, range(0, len(examples), batch_size))


def _stack(pictures: list[np.ndarray], labels: list[int], batch_size: int) -> HostBatch:
    """Padded with the first example again; the mask leaves the padding out."""
    padding = batch_size - len(pictures)
    return {
        "image": np.stack(pictures + [pictures[0]] * padding),
        "label": np.array(labels + [labels[0]] * padding, np.int32),
        "mask": np.array([1] * len(pictures) + [0] * padding, np.float32),
    }


def _ahead(make: Any, places: range) -> Iterator[HostBatch]:
    dataset = grain.MapDataset.source(places).map(make)
    # Threads suffice: decoding releases the interpreter lock. Whole batches are mapped, so order cannot change.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def _words(seed: int, epoch: int, place: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, 0, place], np.uint64))
