"""Data that are in memory, or that another library reads, as a data set that `config.task.dataset` takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tljax.api import session
from tljax.data.sources import memory
from tljax.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def from_arrays(
    *,
    labels: Sequence[Any] | np.ndarray,
    images: Sequence[Any] | np.ndarray | None = None,
    texts: Sequence[str] | None = None,
    text_pairs: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    classes: Sequence[str] = (),
    problem: str = "single_label",
) -> str:
    """Keeps images or texts with their labels as a data set; returns its name, for `config.task.dataset`.

        config.task.dataset = tljax.from_arrays(images=images, labels=labels)

    The name is of the content, so that a run that goes on, or is evaluated by another process, knows its data. They lie
    in the cache (`TLJAX_CACHE`); the same call keeps them again where that was emptied.

    Args:
        labels: of each example: its class, by name or by number; of `multi_label` a list of classes, or of 0 and 1 for
            each class; of `regression` a number or a list.
        images: uint8 [n, height, width, channels], or a list of pictures of any sizes: such arrays, PIL images, paths.
        texts: or texts.
        text_pairs: with `texts`, the second text of each.
        splits: of each example the name of its split; by default all are `train`, to be cut by `config.task.train`.
        classes: names in label order; by default the labels' own, in natural order.
        problem: as `config.task.problem`, which must say the same.

    Raises:
        InputError: lists of different lengths, or an example that cannot be used; its place is named.
    """
    if (images is None) == (texts is None):
        raise InputError("give images or texts, one of the two")
    columns = {"image": images, "text": texts, "text_pair": text_pairs, "label": labels}
    columns = {name: values for name, values in columns.items() if values is not None}
    places: dict[str, list[int]] = {}
    for place, split in enumerate(["train"] * len(labels) if splits is None else map(str, splits)):
        places.setdefault(split, []).append(place)
    lengths = {name: len(values) for name, values in columns.items()} | {"splits": sum(map(len, places.values()))}
    if len(set(lengths.values())) > 1:
        raise InputError(f"lists of different lengths: {', '.join(f'{name} {n}' for name, n in lengths.items())}")
    parts = {
        split: {name: [values[place] for place in rows] for name, values in columns.items()}
        for split, rows in places.items()
    }
    return _kept(parts, classes, problem)


def from_examples(
    examples: "Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame",
    *,
    image: str = "",
    text: str | Sequence[str] = (),
    label: str = "label",
    classes: Sequence[str] = (),
    problem: str = "single_label",
) -> str:
    """Keeps examples of another library as a data set; returns its name, for `config.task.dataset`.

    It takes whatever gives dicts by number (a list, a Hugging Face `Dataset` or `DatasetDict`, a Grain `MapDataset`),
    and a pandas `DataFrame`. See `from_arrays` for what is kept, and where.

    Args:
        examples: split name -> examples; or examples, which are then `train`.
        image: the field of images; by default `image`, where there is one.
        text: that of texts, or of pairs the two; by default `text`.
        label: that of labels.
        classes: names in label order; by default those of a Hugging Face `ClassLabel`, or the labels' own.
        problem: as `config.task.problem`, which must say the same.

    Raises:
        InputError: a field that is not there, or an example that cannot be used; its place is named.
    """
    every = examples if isinstance(examples, Mapping) else {"train": examples}
    parts = {}
    for split, part in every.items():
        classes = classes or _class_names(part, label)
        rows = part.to_dict("records") if hasattr(part, "iterrows") else part
        if not len(rows):
            raise InputError(f"{split} has no examples")
        fields = _fields(rows[0], image, text) | {"label": label}
        if missing := [field for field in fields.values() if field not in rows[0]]:
            raise InputError(f"{split}[0] has no field {missing[0]!r}; it has {', '.join(map(str, rows[0]))}")
        read = [rows[place] for place in range(len(rows))]  # once: another library may compute each
        parts[split] = {name: [row[field] for row in read] for name, field in fields.items()}
    return _kept(parts, classes, problem)


def _fields(first: Mapping[str, Any], image: str, text: str | Sequence[str]) -> dict[str, str]:
    """Returns the names of inputs here -> those of the fields that hold them."""
    if image or (not text and "image" in first):
        return {"image": image or "image"}
    texts = [text] if isinstance(text, str) else list(text) or ["text"]
    return dict(zip(("text", "text_pair"), texts, strict=False))


def _class_names(examples: Any, label: str) -> tuple[str, ...]:
    """Returns the names that a Hugging Face data set has for the numbers of its labels."""
    feature = (getattr(examples, "features", None) or {}).get(label)
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


def _kept(parts: Mapping[str, Mapping[str, list]], classes: Sequence[str], problem: str) -> str:
    session.begin()
    plain = {
        split: {name: [_plain(value, name) for value in values] for name, values in columns.items()}
        for split, columns in parts.items()
    }
    return memory.keep(plain, tuple(map(str, classes)), problem)


def _plain(value: Any, name: str) -> Any:
    """Returns a value without numpy's types, but for pictures; a path as a `Path`."""
    if name == "image":
        return Path(value) if isinstance(value, str) else value
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
