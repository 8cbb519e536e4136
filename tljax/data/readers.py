"""From examples of a split to what a network takes: a batch of pictures, or of token ids."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from tljax import console
from tljax.config.schema import TaskConfig
from tljax.data import array_cache
from tljax.data.dataset import Split
from tljax.data.keyed_random import generators
from tljax.data.preprocessing import Preprocessing
from tljax.data.transforms import image
from tljax.data.transforms.augment import version_of
from tljax.data.transforms.tokenize import Tokenizer


@runtime_checkable
class Reader(Protocol):
    """Reads examples of one split."""

    def __call__(self, places: Sequence[int], epochs: Sequence[int] | None = None, among: Sequence[int] = ()) -> Any:
        """Reads the examples at `places` as one input.

        Args:
            places: in the split.
            epochs: in which each is seen, for training; None for evaluation.
            among: the places of the whole batch, where `places` are one process's share of it.
        """
        ...


@dataclass(frozen=True, eq=False)
class ImageReader:
    """Reads uint8 [n, size, size, channels].

    Attributes:
        split: whose examples.
        preprocessing: of the weights.
        config: how training images are decoded, cut and augmented.
        training: whether these are training images.
        decoded: what `images.source_view` gives of each, where that is kept.
        seed: of crops and augmentation.
    """

    split: Split
    preprocessing: Preprocessing
    config: TaskConfig
    training: bool
    decoded: array_cache.ArrayCache | None = None
    seed: int = 0

    def __call__(
        self, places: Sequence[int], epochs: Sequence[int] | None = None, among: Sequence[int] = ()
    ) -> np.ndarray:
        del among
        cut = self._cut()
        rngs = None
        if epochs is not None:
            views = (self.config.view(epoch) for epoch in epochs)
            rngs = generators(self.seed, list(zip(views, places, strict=True)))
        if self.decoded is not None:
            sources = [self.decoded[place] for place in places]
            if rngs is None:
                return np.stack(sources)
            views = (self._train(source, rng) for source, rng in zip(sources, rngs, strict=True))
            return np.stack(list(views))
        examples = self.split.__getitems__(places)
        if rngs is None:
            views = [
                image.source_view(example["image"], example["id"], self.preprocessing, **cut) for example in examples
            ]
        else:
            views = [
                image.training_view_of(
                    example["image"], example["id"], self.preprocessing, **cut, augment=self.config.augment, rng=rng
                )
                for example, rng in zip(examples, rngs, strict=True)
            ]
        return np.stack(views)

    def keep(self, budget: float, workers: int) -> "ImageReader":
        """Returns the same reader with each image decoded once, if disk allows or that is done.

        Args:
            budget: bytes of disk that all such caches may take.
            workers: threads that decode.
        """
        cut = self._cut()
        if not image.cacheable(**cut):
            return self
        folder = array_cache.folder_of("decoded", self.split.key, self.preprocessing, cut)
        if not folder.exists() and not (budget and array_cache.make_room(folder, self._bytes, budget)):
            return self

        def view(place: int) -> np.ndarray:
            example = self.split[place]
            return image.source_view(example["image"], example["id"], self.preprocessing, **cut)

        def views() -> Iterator[np.ndarray]:
            options = grain.ReadOptions(num_threads=max(workers, 1), prefetch_buffer_size=16)
            with console.progress(f"decoding {self.split.name}, once", 0, len(self.split), "images") as report:
                pictures = grain.MapDataset.source(range(len(self.split))).map(view).to_iter_dataset(options)
                for number, example in enumerate(pictures, 1):
                    yield example
                    report(number)

        return replace(self, decoded=array_cache.get_or_create(folder, views(), {}, view))

    @functools.cached_property
    def _bytes(self) -> int:
        """The bytes that `keep` takes."""
        cut = self._cut()
        size = functools.partial(image.source_size, resize=cut["resize"], crop=cut["crop"])
        pixels = 0
        sizes, counts = np.unique(self.split.sizes, axis=0, return_counts=True)
        for (height, width), count in zip(sizes.tolist(), counts.tolist(), strict=True):
            rows, columns = size(height, width, self.preprocessing)
            pixels += rows * columns * count
        return pixels * self.preprocessing.inputs

    @property
    def recipe(self) -> tuple:
        """Returns all that decides what is read, beside the split's examples."""
        return (self.preprocessing, *self._cut().values(), *self._chance)

    @property
    def _chance(self) -> tuple:
        if not (self.training and self.config.varies):
            return ()
        return tuple(map(version_of, self.config.augment)), self.seed, self.config.views

    def length(self, places: Sequence[int]) -> int:
        """Returns the tokens that a batch of examples is padded to: 0 of images."""
        del places
        return 0

    def with_features(self, rows: Sequence[np.ndarray], places: Sequence[int], among: Sequence[int] = ()) -> np.ndarray:
        """Returns one batch of activations of some examples, as a backbone's later groups take it.

        Args:
            rows: the activations of each.
            places: of the examples in the split.
            among: as in `Reader`.
        """
        del places, among
        return np.stack(rows)

    def _train(self, source: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return image.training_view(
            source,
            self.preprocessing,
            crop=self.config.crop,
            augment=self.config.augment,
            rng=rng,
            decode=self.config.decode,
        )

    def _cut(self) -> dict[str, Any]:
        if not self.training:
            return {"decode": "exact", "resize": 0, "crop": "center"}
        return {"decode": self.config.decode, "resize": self.config.resize, "crop": self.config.crop}


@dataclass(frozen=True, eq=False)
class TextReader:
    """Reads `input_ids`, `attention_mask` and `token_type_ids`, each int32 [n, length].

    Attributes:
        tokens: of each example, as `transforms.tokenize.tokenized` or `Tokenizer.encode` gives them.
        tokenizer: that made them.
        multiple: `length` is the longest text's of the whole batch, rounded up to a multiple of this.
        longest: `length` is at most this, or the tokenizer's own limit.
    """

    tokens: Sequence[np.ndarray]
    tokenizer: Tokenizer
    multiple: int
    longest: int

    def __call__(
        self, places: Sequence[int], epochs: Sequence[int] | None = None, among: Sequence[int] = ()
    ) -> dict[str, np.ndarray]:
        del epochs
        return self.tokenizer.pad([self.tokens[place] for place in places], self.length(among or places))

    @property
    def recipe(self) -> tuple:
        """Returns all that decides what is read, beside the split's examples."""
        return self.tokenizer.sha256, self.tokenizer.cut(self.longest)

    def length(self, places: Sequence[int]) -> int:
        """Returns the tokens that a batch of examples is padded to."""
        return self.padded(max(self.tokens[place].shape[1] for place in places))

    def with_features(self, rows: Sequence[np.ndarray], places: Sequence[int], among: Sequence[int] = ()) -> Any:
        """Returns one batch of activations of some examples, as a backbone's later groups take it.

        Args:
            rows: the activations of each: pooled, or [tokens, width].
            places: of the examples in the split.
            among: as in `Reader`.
        """
        if rows[0].ndim == 1:
            return np.stack(rows)
        mask = self(places, among=among)["attention_mask"]
        hidden = np.zeros((*mask.shape, rows[0].shape[-1]), rows[0].dtype)
        for padded, row in zip(hidden, rows, strict=True):
            padded[: len(row)] = row[: len(padded)]
        return {"hidden": hidden, "attention_mask": mask}

    def padded(self, tokens: int) -> int:
        """Returns the length of a batch whose longest text has that many tokens."""
        return min(-(-tokens // self.multiple) * self.multiple, self.tokenizer.cut(self.longest))


ExampleReader = ImageReader | TextReader
