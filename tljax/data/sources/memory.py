"""Examples that a Python program holds, kept in the cache under a name of their content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tljax.config.schema import TaskConfig
from tljax.config.serialization import build
from tljax.data.dataset import Source
from tljax.data.records.array_records import prepare
from tljax.data.sources.columns import Columns, Table, to_source
from tljax.data.sources.reference import check_picture, encoded
from tljax.errors import InputError
from tljax.io.download.fetch import cache_dir

PREFIX = "memory"


class _Pictures(Sequence):
    """Images in any form that a program has them in, each encoded when it is read."""

    def __init__(self, values: Sequence[Any]):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> bytes:
        value = self.values[row]
        if isinstance(value, Path):
            return value.read_bytes()
        return value if isinstance(value, bytes) else encoded(value, "image")


def keep(splits: Mapping[str, Mapping[str, Sequence[Any]]], classes: Sequence[str], problem: str) -> str:
    """Keeps examples in the cache, if they are not there yet; returns their name, for `task.dataset`.

    Args:
        splits: split name -> column (`image`; or `text`, and of pairs `text_pair`; `label`) -> values.
        classes: names in label order, of labels that are numbers or names; by default the labels' own.
        problem: as `task.problem`.

    Raises:
        InputError: an example cannot be used; its place is named.
    """
    digest = hashlib.sha256(json.dumps([problem, list(classes)]).encode())
    for split, columns in splits.items():
        for name, values in columns.items():
            digest.update(json.dumps([split, name, len(values)]).encode())
            for row in range(len(values)):
                digest.update(_content(values[row], f"{name}[{row}] of {split}"))
    name = f"{PREFIX}:{digest.hexdigest()[:16]}"
    if not folder_of(name).is_dir():
        prepare(_source(name, splits, classes, problem), name, folder_of(name), "stop", pack=True)
    return name


def folder_of(name: str) -> Path:
    """Returns the folder in the cache of the examples that are kept under a name."""
    return cache_dir() / "datasets" / name.replace(":", "-")


def _source(
    name: str, splits: Mapping[str, Mapping[str, Sequence[Any]]], classes: Sequence[str], problem: str
) -> Source:
    first = next(iter(splits.values()))
    kind = "image" if "image" in first else "text"
    inputs = tuple(column for column in first if column != "label")
    numbered = classes and all(_is_number(label) for columns in splits.values() for label in columns["label"])
    config = build(TaskConfig, {"problem": problem, "classes": () if numbered else tuple(classes)}, "task")
    tables = []
    for split, columns in splits.items():
        values = {column: list(rows) for column, rows in columns.items()}
        if kind == "image":
            values["image"] = _Pictures(values["image"])
        where = [f"{inputs[0]}[{row}] of {split}" for row in range(len(values["label"]))]
        tables.append(Table(name, values, where, Path("/"), split, classes=tuple(classes) if numbered else ()))
    return to_source(tables, Columns(kind, inputs, ("label",)), config, name)


def _is_number(label: Any) -> bool:
    numbers = label if isinstance(label, list | tuple) else [label]
    return all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)


def _content(value: Any, where: str) -> bytes:
    """Returns bytes that tell a value from any other; of a path those of its file."""
    if isinstance(value, Path):
        try:
            return value.read_bytes()
        except OSError as error:
            raise InputError(f"{where}: {value}: cannot be read ({error.strerror or error})") from error
    if isinstance(value, Image.Image):
        return repr((value.mode, value.size)).encode() + value.tobytes()
    if isinstance(value, np.ndarray):
        try:
            check_picture(value)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        return repr((str(value.dtype), value.shape)).encode() + value.tobytes()
    return value if isinstance(value, bytes) else repr(value).encode()
