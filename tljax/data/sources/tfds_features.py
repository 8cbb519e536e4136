"""Which features of a TFDS data set are the input and the label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tljax.config.schema import TaskConfig
from tljax.data.input_spec import INPUTS
from tljax.data.sources import vtab
from tljax.errors import InputError

IDS = ("id", "file_name")


@dataclass(frozen=True)
class Features:
    """The features of a set by what they hold.

    Attributes:
        kind: `image` or `text`.
        inputs: feature -> its name here.
        labels: features.
        id: a feature; empty for the record's number.
        classes: names, where the label is a number of them; empty otherwise.
        derived: how VTAB makes a label of `labels[0]`; None otherwise.
    """

    kind: str
    inputs: Mapping[str, str]
    labels: tuple[str, ...]
    id: str
    classes: tuple[str, ...]
    derived: vtab.Label | None = None

    @property
    def all(self) -> dict[str, str]:
        """All features that an index is made from, by name."""
        return {feature: feature for feature in (*self.inputs, *self.labels, self.id) if feature}

    def values(self, example: Mapping[str, Any]) -> list[Any]:
        """Returns the values of the labels."""
        values = [example[name] for name in self.labels]
        if self.derived:
            return [self.derived.derive(values[0])]
        return [value.tolist() if isinstance(value, np.ndarray | np.generic) else value for value in values]


def choose(info: Any, config: TaskConfig, name: str) -> Features:
    """Chooses the features that `config` names, or else the one there is of each kind.

    Args:
        info: a `tfds.core.DatasetInfo`.
        config: may say which.
        name: what errors call the data set.

    Raises:
        InputError: one is not there, or several could be meant.
    """
    from tensorflow_datasets import features as kinds

    known = ", ".join(sorted(info.features))

    def of_type(kind: type) -> list[str]:
        return [item for item, feature in info.features.items() if isinstance(feature, kind) and item not in IDS]

    def one_of(candidates: Sequence[str], key: str) -> tuple[str, ...]:
        if len(candidates) != 1:
            has = (
                f"could be {' or '.join(sorted(candidates))}"
                if candidates
                else f"is none of {', '.join(sorted(info.features))}"
            )
            raise InputError(f"{name}: task.{key} {has}; set it")
        return tuple(candidates)

    derived = None
    labels = config.label
    if labels and labels[0].startswith("vtab:"):
        derived = vtab.LABELS.get(labels[0].removeprefix("vtab:"))
        if derived is None:
            rows = ", ".join(f"vtab:{label}" for label in vtab.LABELS)
            raise InputError(f"{name}: no task.label {labels[0]!r}; there are: {rows}")
        labels = (derived.feature,)
    elif not labels:
        candidates = [item for item, feature in info.features.items() if isinstance(_inner(feature), kinds.ClassLabel)]
        labels = ("label",) if "label" in info.features else one_of(candidates, "label")
    inputs = (config.image,) if config.image else config.text
    if not inputs:
        texts = [item for item in of_type(kinds.Text) if item not in labels]
        inputs = one_of(of_type(kinds.Image), "image") if of_type(kinds.Image) else one_of(texts, "text")
    for item in (*inputs, *labels):
        if item not in info.features:
            raise InputError(f"{name}: no feature {item!r}; it has {known}")
    kind, feature = (
        ("image", kinds.Image) if isinstance(info.features[inputs[0]], kinds.Image) else ("text", kinds.Text)
    )
    if len(inputs) > 2 or not all(isinstance(info.features[name], feature) for name in inputs):
        raise InputError(f"{name}: {', '.join(inputs)}: an example is one image, one text or two")
    id = next(
        (item for item in IDS if item in info.features and isinstance(info.features[item], kinds.Text)),
        "",
    )
    fields = dict(zip(inputs, INPUTS[kind].fields(pairs=True), strict=False))
    classes = tuple(getattr(_inner(info.features[labels[0]]), "names", None) or ()) if len(labels) == 1 else ()
    classes = derived.classes if derived else classes
    return Features(kind, fields, labels, id, classes, derived)


def _inner(feature: Any) -> Any:
    """Returns what a sequence is of."""
    return getattr(feature, "feature", feature)
