"""Which features of a TFDS data set are the input and the label."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tljax.config.schema import TaskConfig
from tljax.data.input_spec import INPUTS
from tljax.data.sources import vtab
from tljax.data.sources.columns import inner, with_columns_by_type
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

    derived = None
    if config.label and config.label[0].startswith("vtab:"):
        derived = vtab.LABELS.get(config.label[0].removeprefix("vtab:"))
        if derived is None:
            rows = ", ".join(f"vtab:{label}" for label in vtab.LABELS)
            raise InputError(f"{name}: no task.label {config.label[0]!r}; there are: {rows}")
        config = dataclasses.replace(config, label=(derived.feature,))
    class_labels = [item for item, feature in info.features.items() if isinstance(inner(feature), kinds.ClassLabel)]
    config = with_columns_by_type(config, name, info.features, of_type(kinds.Image), class_labels)
    labels = config.label or ("label",)
    inputs = (config.image,) if config.image else config.text
    if not inputs:
        inputs = tuple(item for item in of_type(kinds.Text) if item not in labels)
        if len(inputs) != 1:
            has = f"could be {' or '.join(sorted(inputs))}" if inputs else f"is none of {known}"
            raise InputError(f"{name}: task.text {has}; set it")
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
    classes = tuple(getattr(inner(info.features[labels[0]]), "names", None) or ()) if len(labels) == 1 else ()
    classes = derived.classes if derived else classes
    return Features(kind, fields, labels, id, classes, derived)
