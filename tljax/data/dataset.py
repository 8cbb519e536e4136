"""What a data set is: `Source` before it is prepared, `Task` after, and `Split`, the rows of it that a run reads."""

import difflib
import hashlib
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from tljax.errors import InputError
from tljax.problems.base import Label, Problem
from tljax.problems.registry import problem_of


@dataclass(frozen=True, slots=True)
class Item:
    """One example before it is prepared.

    Attributes:
        id: unique within its split; decides its place in the order.
        label: a class; for `multi_label` the classes it has; for `regression` its value or values.
        content: the image's file; or what gives the encoded image, the text, or the two texts; or why there is none.
    """

    id: str
    label: Label
    content: Path | InputError | Callable[[], bytes | str | tuple[str, str]]

    def read(self) -> bytes | str | tuple[str, str]:
        """Returns the encoded image, the text, or the two texts.

        Raises:
            InputError: the example is known to be of no use.
            OSError: its file cannot be read.
        """
        if isinstance(self.content, InputError):
            raise self.content
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content()


@dataclass(frozen=True)
class Source:
    """A data set before it is prepared.

    Attributes:
        key: changes when the content may have.
        kind: `image` or `text`.
        problem: a name that `problem_of` knows.
        classes: names, in label order; for `regression` those of the values.
        splits: split name -> all of its examples.
        pairs: whether a text is two of them.
    """

    key: str
    kind: str
    problem: str
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[Item]]
    pairs: bool = False

    @property
    def in_files(self) -> bool:
        """Whether each example is a file of its own, which can be read where it lies."""
        contents = (item.content for items in self.splits.values() for item in items)
        return all(isinstance(content, Path | InputError) for content in contents)


@runtime_checkable
class Records(Protocol):
    """The inputs of one split as they lie on disk, in any order."""

    def __len__(self) -> int: ...

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Returns `{image: bytes}`, `{text: str}` or `{text: str, text_pair: str}` of each row."""
        ...


@dataclass(frozen=True)
class Base:
    """A whole prepared split.

    Attributes:
        records: the inputs.
        index: a row for each: `id`, `label`, `height`, `width` (upright, in pixels; 0 of a text), `bytes`, `sha256`
            (of the encoded image, or of the text).
    """

    records: Records
    index: pa.Table


@dataclass(frozen=True)
class Task:
    """A prepared data set.

    Attributes:
        name: as `task.dataset` gives it.
        kind, problem, classes, pairs: as in `Source`.
        fingerprint: of all content, wherever it lies.
        bases: split name -> the whole of it.
        skipped: {split, id, reason} of each example that was left out with `task.on_error=skip`.
        notes: {split, id, note} of each that is not read as it is: of an animation, the first frame.
    """

    name: str
    kind: str
    problem: str
    classes: tuple[str, ...]
    fingerprint: str
    bases: Mapping[str, Base]
    pairs: bool = False
    skipped: tuple[Mapping[str, str], ...] = ()
    notes: tuple[Mapping[str, str], ...] = ()


def among(task: Task, classes: Sequence[str]) -> Task:
    """Renumbers a task's labels by name among `classes`: those of another task in another order, or more.

    Of a regression, `classes` are the names of its values, and must be the same.

    Raises:
        InputError: the task has a class that is not among them (the nearest is named), or lacks a value; or a name is
            there twice.
    """
    places, own = numbered(classes, "the run"), numbered(task.classes, task.name)
    unknown = [name for name in own if name not in places]
    if unknown:
        near = difflib.get_close_matches(unknown[0], places, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{task.name} has {shown([*map(repr, unknown)])}, which is not among {shown(classes)}{hint}")
    problem = problem_of(task.problem)
    if not problem.has_classes and len(task.classes) < len(classes):
        lacking = next(name for name in places if name not in own)
        raise InputError(f"{task.name} has no values of {lacking!r}")
    numbers = [places[name] for name in own]
    bases = {}
    for name, base in task.bases.items():
        place, column = base.index.schema.get_field_index("label"), base.index.column("label")
        labels = pa.array([problem.renumbered(label, numbers) for label in column.to_pylist()], column.type)
        bases[name] = Base(base.records, base.index.set_column(place, base.index.schema.field(place), labels))
    return replace(task, classes=tuple(classes), bases=bases)


def numbered(names: Sequence[str], whose: str) -> dict[str, int]:
    """Returns the place of each class by its name in Unicode's composed form (NFC).

    Raises:
        InputError: a name is there twice, so that it names no class.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        if places.setdefault(unicodedata.normalize("NFC", name), place) != place:
            raise InputError(f"{whose} has the class {name!r} twice: classes are found by name; rename one")
    return places


def fingerprint(problem: str, classes: Sequence[str], indices: Mapping[str, pa.Table]) -> str:
    """Returns a hash of a data set's classes and of the id, label and content of each example.

    Args:
        problem: a name that `problem_of` knows.
        classes: in label order.
        indices: split name -> its index, as in `Base`.
    """
    digest = hashlib.sha256(json.dumps([problem, classes]).encode())
    for split in sorted(indices):
        columns = [indices[split].column(name).to_pylist() for name in ("id", "label", "sha256")]
        for row in zip(*columns, strict=True):
            digest.update(json.dumps([split, *row]).encode())
    return digest.hexdigest()


def in_stored_order(task: Task, classes: Sequence[str], stored: str) -> Task:
    """Returns the task with its classes in a run's own order, where it is the data that the run was trained on.

    An order may differ as a newer version sorts names otherwise; numbers of labels are then matched by name.

    Args:
        classes, stored: the run's class names, in label order, and the fingerprint of its data.
    """
    has_classes = problem_of(task.problem).has_classes
    if task.fingerprint == stored or not has_classes or sorted(task.classes) != sorted(classes):
        return task
    ordered = among(task, classes)
    indices = {split: base.index for split, base in ordered.bases.items()}
    known = fingerprint(task.problem, classes, indices)
    return replace(ordered, fingerprint=known) if known == stored else task


def shown(names: Sequence[str]) -> str:
    """Returns the first eight names, cut where they are long, for a line of text."""
    cut = [f"{name[:79]}…" if len(name) > 80 else name for name in names[:8]]
    return ", ".join(cut) + (" …" if len(names) > 8 else "")


@dataclass(frozen=True, eq=False)
class Split(Sequence[dict[str, Any]]):
    """Examples of a task in a fixed order: {image | text, text_pair; label; id; place}.

    Attributes:
        task: whose.
        name: the slicing that made it.
        rows: split name -> rows of it, one after another in this order.
    """

    task: Task
    name: str
    rows: tuple[tuple[str, np.ndarray], ...]

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        examples: list[dict[str, Any]] = [{}] * len(places)
        bases, starts = self._located
        chosen = np.asarray(places, np.int64)
        for number, (name, rows) in enumerate(self.rows):
            positions = np.flatnonzero(bases[chosen] == number)
            if not len(positions):
                continue
            inputs = self.task.bases[name].records.__getitems__(rows[chosen[positions] - starts[number]].tolist())
            for i, fields in zip(positions.tolist(), inputs, strict=True):
                place = int(chosen[i])
                examples[i] = {**fields, "label": self.labels[place], "id": self.ids[place], "place": place}
        return examples

    def take(self, places: np.ndarray, name: str) -> "Split":
        """Selects examples: in the order of `places` among those of one split, splits in the order they have."""
        bases, starts = self._located
        parts = []
        for number, (base, rows) in enumerate(self.rows):
            positions = places[bases[places] == number]
            if len(positions):
                parts.append((base, rows[positions - starts[number]]))
        return Split(self.task, name, tuple(parts))

    @cached_property
    def ids(self) -> list[str]:
        """The id of each example."""
        return self.column("id").to_pylist()

    @cached_property
    def contents(self) -> np.ndarray:
        """What tells an example's image or text from any other: the first 64 bits of its SHA-256, uint64 [n]."""
        return np.array([int(digest[:16], 16) for digest in self.column("sha256").to_pylist()], np.uint64)

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels of all examples, as `labels_of` gives them."""
        return labels_of(self.column("label"), problem_of(self.task.problem), len(self.task.classes))

    @cached_property
    def sizes(self) -> np.ndarray:
        """The height and width of each example in pixels, int32 [n, 2]."""
        return np.stack([values_of(self.column(name)).astype(np.int32) for name in ("height", "width")], axis=1)

    def column(self, name: str) -> pa.ChunkedArray:
        """Returns a column of the index."""
        parts = [self.task.bases[base].index.column(name).take(places_of(rows)) for base, rows in self.rows]
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], parts[0].type)

    @cached_property
    def key(self) -> str:
        """A hash of content and order, which names what is computed from them."""
        digest = hashlib.sha256(self.task.fingerprint.encode())
        for base, rows in self.rows:
            digest.update(base.encode() + rows.astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def _located(self) -> tuple[np.ndarray, np.ndarray]:
        """The part that each place is in, and where each part starts."""
        lengths = [len(rows) for _, rows in self.rows]
        return np.repeat(np.arange(len(lengths)), lengths), np.cumsum([0, *lengths])


# pyarrow's own ways from numpy and back import pandas: .2 s of each start.


def places_of(rows: np.ndarray) -> pa.Array:
    """Converts rows of a table, int64, for its `take`."""
    return pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows, np.int64))])


def values_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Converts a column that has a number in each row to an array."""
    return np.from_dlpack(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)


def labels_of(column: pa.ChunkedArray, problem: Problem, classes: int) -> np.ndarray:
    """Converts an index's labels to the array that the problem's loss and metrics take.

    Args:
        column: of the index.
        problem: what encodes them.
        classes: how many classes there are, or values of a regression.
    """
    is_number = pa.types.is_primitive(column.type)
    return problem.encode(values_of(column) if is_number else column.to_pylist(), classes)
