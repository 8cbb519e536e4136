"""Batches as a pure function of (seed, step): nothing to save, and no worker count or restart changes them."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from tljax.data.dataset import Split
from tljax.data.keyed_random import philox
from tljax.data.readers import Reader

# input: what a `Reader` gives; label [batch] int32, or [batch, classes] float32; mask and weight [batch] float32
HostBatch = dict[str, Any]

_CLASSES, _TURNS = 1 << 63, 1 << 62  # counters that no example's place reaches


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns a permutation of range(count), keyed by (seed, epoch).

    It sorts raw Philox words, which NumPy keeps stable across versions, unlike its own `permutation`.

    Args:
        seed: of the run.
        epoch: which pass over the data.
        count: of examples.
    """
    return _permutation(philox(seed, epoch, 0), count)


@dataclass(frozen=True, eq=False)
class TrainInput:
    """The endless training stream.

    Attributes:
        read: reads examples of the training split.
        labels: of each example.
        weights: of each example in the loss, float32 [n].
        batch_size: over all processes.
        seed: of the order.
        balanced: the class of each example, if each class is to come as often as any other: in every round of as many
            examples as there are classes, each once, and in each class one example as often as another. Without,
            every epoch has each example once.
        workers: threads that work ahead; 0 for none.
        part: (number of this process, of how many): which share of each batch is made here.
        class_weights: of each class in the loss, from which `weights` come; empty for equal ones.
    """

    read: Reader
    labels: np.ndarray
    weights: np.ndarray
    batch_size: int
    seed: int
    balanced: np.ndarray | None = None
    workers: int = 2
    part: tuple[int, int] = (0, 1)
    class_weights: tuple[float, ...] = ()

    def indices(self, step: int) -> list[tuple[int, int]]:
        """Returns (epoch, example) of each row of step `step`'s batch (from 0), over all processes."""
        draw = self._draw if self.balanced is None else self._draw_balanced
        return [draw(step * self.batch_size + row) for row in range(self.batch_size)]

    def order(self, steps: int) -> Int[np.ndarray, "steps batch 2"]:
        """Returns `indices` of steps 0 to `steps` - 1 in one array; a thousand times faster where not balanced."""
        if self.balanced is not None:
            return np.array([self.indices(step) for step in range(steps)], np.int32)
        count = len(self.labels)
        epochs = range(-(-steps * self.batch_size // count))
        places = np.concatenate([epoch_order(self.seed, epoch, count) for epoch in epochs])
        rows = np.stack([np.repeat(epochs, count), places], axis=-1)[: steps * self.batch_size]
        return rows.reshape(steps, self.batch_size, 2).astype(np.int32)

    def batch(self, step: int) -> HostBatch:
        """Returns this process's share of the batch of step `step`."""
        rows = self.indices(step)
        share = len(rows) // self.part[1]
        local_rows = rows[self.part[0] * share : (self.part[0] + 1) * share]
        places = [index for _, index in local_rows]
        examples = self.read(places, [epoch for epoch, _ in local_rows], among=[index for _, index in rows])
        ones = np.ones(len(local_rows), np.float32)
        return {"input": examples, "label": self.labels[places], "mask": ones, "weight": self.weights[places]}

    def batches(self, start: int, stop: int) -> Iterator[HostBatch]:
        """Returns the batches of steps start … stop - 1, made ahead."""
        return ahead(self.batch, range(start, stop), self.workers)

    def _draw(self, place: int) -> tuple[int, int]:
        epoch, place = divmod(place, len(self.labels))
        return epoch, int(epoch_order(self.seed, epoch, len(self.labels))[place])

    def _draw_balanced(self, place: int) -> tuple[int, int]:
        turn, place = divmod(place, len(self._members))
        number = _permutation(philox(self.seed, turn, _TURNS), len(self._members))[place]
        members = self._members[number]
        epoch, place = divmod(turn, len(members))
        return epoch, int(members[_class_order(self.seed, epoch, int(number), len(members))[place]])

    @cached_property
    def _members(self) -> list[np.ndarray]:
        """The examples of each class that has any."""
        return [np.flatnonzero(self.balanced == number) for number in np.unique(self.balanced)]


def evaluation_batches(
    split: Split, read: Reader, batch_size: int, workers: int = 2, part: tuple[int, int] = (0, 1)
) -> Iterator[HostBatch]:
    """Yields the `input` of every example once, in stored order.

    The last batch, or what a process has of it, is padded; what is said of rows past the split's end is to be dropped.

    Args:
        split: whose examples.
        read: reads them.
        batch_size: over all processes.
        workers: threads that work ahead; 0 for none.
        part: (number of this process, of how many): which share of each batch is read here.
    """
    share = batch_size // part[1]

    def batch(start: int) -> HostBatch:
        places = range(start, min(start + batch_size, len(split)))
        # A process whose share lies past the end reads one row all the same: the others compute with it.
        local_rows = places[part[0] * share : (part[0] + 1) * share] or places[:1]
        return {"input": padded(read(list(local_rows), among=list(places)), share)}

    return ahead(batch, range(0, len(split), batch_size), workers)


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yields `size` items at a time, and at the end those that are left."""
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def padded(batch: Any, size: int) -> Any:
    """Repeats each array's first row at its end, up to `size` rows."""
    if isinstance(batch, dict):
        return {name: padded(array, size) for name, array in batch.items()}
    return np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])


def length_of(batch: HostBatch) -> int:
    """Returns the tokens that each text of a batch is padded to, 0 of images; each length is a program of its own."""
    return batch["input"]["attention_mask"].shape[1] if isinstance(batch["input"], dict) else 0


def ahead(make: Callable[[int], HostBatch], places: Sequence[int], workers: int) -> Iterator[HostBatch]:
    """Returns `make(place)` of each place, in order, made by threads while the one before is used.

    Args:
        make: makes a batch.
        places: in order.
        workers: how many threads; 0 to make each when it is asked for.
    """
    if not workers:
        return map(make, places)
    dataset = grain.MapDataset.source(places).map(make)
    # Threads suffice: decoding releases the interpreter lock. Whole batches are mapped, so order cannot change.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers + 2)))


@lru_cache(maxsize=4096)
def _class_order(seed: int, epoch: int, number: int, count: int) -> np.ndarray:
    return _permutation(philox(seed, epoch, _CLASSES + number), count)


def _permutation(words: np.random.Philox, count: int) -> np.ndarray:
    return np.argsort(words.random_raw(count), kind="stable")
