"""From the columns of tables to a `Source`, wherever the tables are from."""

import difflib
import functools
import hashlib
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tljax import console
from tljax.config.schema import TaskConfig
from tljax.data.dataset import Item, Source, shown
from tljax.data.labels import Labels, differing_in_case, infer
from tljax.data.sources.folder import SPLITS, unusable
from tljax.errors import InputError
from tljax.io import checksums
from tljax.problems.registry import problem_of

# What columns are called where `config.task` does not say, by what they hold.
USUAL = {
    "images": (("image",), ("file",), ("path",), ("file_name",), ("img",)),
    "texts": (("text",), ("sentence",)),
    "pairs of texts": (
        *(("sentence1", "sentence2"), ("premise", "hypothesis")),
        *(("question", "sentence"), ("question1", "question2")),
    ),
}


@dataclass(frozen=True)
class Columns:
    """The columns of a table by what they hold.

    Attributes:
        kind: `image` or `text`.
        inputs: of the image, the text, or the two texts.
        labels: one or more.
        split, id: empty for none.
    """

    kind: str
    inputs: tuple[str, ...]
    labels: tuple[str, ...]
    split: str = ""
    id: str = ""

    @property
    def all(self) -> tuple[str, ...]:
        """All columns that are read."""
        return tuple(dict.fromkeys(name for name in (*self.inputs, *self.labels, self.split, self.id) if name))


@dataclass(frozen=True)
class Table:
    """Rows of examples.

    Attributes:
        name: in errors.
        columns: name -> values. Images are a list of paths, or any other sequence of bytes or {bytes, path}, which is
            looked at when an image is read.
        where: of each row, in errors.
        folder: that paths of images start from.
        split: of all rows, where no column says.
        faults: row -> why it cannot be used.
        classes: names, where labels are numbers of them.
    """

    name: str
    columns: Mapping[str, Sequence[Any]]
    where: Sequence[str]
    folder: Path
    split: str = "train"
    faults: Mapping[int, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def with_columns_by_type(
    config: TaskConfig, name: str, columns: Collection[str], images: Sequence[str], labels: Sequence[str]
) -> TaskConfig:
    """Returns `config` with the label and the image that are such by their type, where it says none.

    Args:
        config: may say which.
        name: what errors call the data set.
        columns: all that there are; one called `label` is it.
        images: those whose type is that of images.
        labels: those whose type is that of classes.

    Raises:
        InputError: several could be meant.
    """
    lacking = {"label": not config.label and "label" not in columns, "image": not (config.image or config.text)}
    for key, candidates in (("label", labels), ("image", images)):
        if lacking[key] and len(candidates) > 1:
            raise InputError(f"{name}: has the {key}s {', '.join(sorted(candidates))}: set task.{key} to one of them")
        if lacking[key] and candidates:
            config = replace(config, **{key: tuple(candidates) if key == "label" else candidates[0]})
    return config


def inner(feature: Any) -> Any:
    """Returns what a list of values is of, as TFDS and Hugging Face describe it, or else the feature itself."""
    return getattr(feature, "feature", feature)


def choose(names: Sequence[str], config: TaskConfig, name: str) -> Columns:
    """Chooses the columns that `config` names, or else those with the usual names.

    Args:
        names: of all columns.
        config: may say which.
        name: what errors call the table.

    Raises:
        InputError: one is not there, or several could be meant.
    """
    inputs = (config.image,) if config.image else config.text
    if not inputs:
        images, texts, pairs = ([group for group in groups if set(group) <= set(names)] for groups in USUAL.values())
        usual = images + (pairs or texts)
        if len(usual) != 1:
            problem = f"could be read from {' or '.join(map('+'.join, usual))}" if usual else "are in no column"
            raise InputError(f"{name}: inputs {problem}: set task.image or task.text; it has {', '.join(names)}")
        (inputs,) = usual
    if len(inputs) > 2:
        raise InputError(f"{name}: task.text={inputs}: an example has one text or two")
    kind = "image" if config.image or (not config.text and inputs in USUAL["images"]) else "text"
    split = config.split or ("split" if "split" in names else "")
    columns = Columns(kind, inputs, config.label or ("label",), split, "id" if "id" in names else "")
    for column in columns.all:
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            hint = hint or ("set task.label; " if column == "label" and not config.label else "")
            raise InputError(f"{name}: no column {column!r}; {hint}it has {', '.join(names)}")
    if len(columns.labels) > 1 and problem_of(config.problem).one_class:
        raise InputError(f"{name}: task.label={columns.labels}: task.problem={config.problem} takes one column")
    return columns


def to_source(tables: Sequence[Table], columns: Columns, config: TaskConfig, key: str) -> Source:
    """Returns all rows as items.

    Args:
        tables: with the same columns.
        columns: what they hold.
        config: how labels and damaged rows are treated.
        key: of the tables' content, to which that of the images' files is added.

    Raises:
        InputError: two rows have one id, a split has no known name, or with `on_error=stop` a row cannot be used.
    """
    first = tables[0]
    labels = _read_labels(tables, columns, config)
    blank = _blank(tables, columns, config.on_error)
    items: dict[str, list[Item]] = {}
    stats: list[tuple[int, ...]] = []
    for table in tables:
        splits = _splits(table, columns)
        ids = _ids(table, columns, splits)
        for row, values in enumerate(_labels(table, columns)):
            split, id = splits[row], ids[row]
            try:
                if row in table.faults or isinstance(id, InputError):
                    raise InputError(table.faults.get(row) or str(id))
                if table.where[row] in blank:
                    raise InputError("the text is empty")
                content, stamp = _input(table, columns, row)
                item = Item(id, labels.encode(values), content)
                stats.append(stamp)
            except InputError as error:
                where = table.where[row]
                item = unusable(f"{where}", f"{where}: {error}; mend or remove it", config.on_error)
            items.setdefault(split, []).append(item)
    say(first.name, labels, columns.labels, _usable(tables, columns))
    if columns.split and not config.split:
        counts = ", ".join(f"{split} {len(rows)}" for split, rows in items.items())
        console.console.print(f"{first.name}: column {columns.split!r} names each row's split: {counts}")
    digest = hashlib.sha256(repr((key, str(first.folder.absolute()), stats)).encode()).hexdigest()
    pairs = len(columns.inputs) == 2
    return Source(digest, columns.kind, config.problem, labels.classes, items, pairs)


def _read_labels(tables: Sequence[Table], columns: Columns, config: TaskConfig) -> Labels:
    name, names = tables[0].name, tables[0].classes
    if names and config.classes:
        raise InputError(f"{name}: the data name the classes ({shown(names)}); leave task.classes empty")
    try:
        rows = _usable(tables, columns)
        return infer(config.problem, columns.labels, rows, names or config.classes, numbered=bool(names))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _usable(tables: Sequence[Table], columns: Columns) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yields the place and the label's values of each row that can be used."""
    for table in tables:
        for row, values in enumerate(_labels(table, columns)):
            if row not in table.faults:
                yield _place(table, row), values


def _place(table: Table, row: int) -> str:
    """Returns where a row is in its table."""
    return table.where[row].removeprefix(f"{table.name}, ")


def say(name: str, labels: Labels, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[Any]]]) -> None:
    """Prints how labels are read, with the first example that has one, and which classes differ in case alone.

    Args:
        name: of the data set.
        labels: how they are read.
        columns: their names.
        rows: where each example is, and its values.
    """
    for where, values in rows:
        try:
            has_label = labels.encode(values) != ()
        except InputError:  # named when the example is read
            continue
        if has_label:
            console.console.print(f"{name}: {labels.describe(columns, where, values)}")
            break
    if problem_of(labels.problem).has_classes and (warning := differing_in_case(labels.classes)):
        console.console.print(f"{name}: labels: {warning}")


def _blank(tables: Sequence[Table], columns: Columns, on_error: str) -> set[str]:
    """Returns the places of rows with an empty text, and prints how many there are.

    Raises:
        InputError: with `on_error=stop`.
    """
    if columns.kind != "text":
        return set()
    blank = [
        (table, row)
        for table in tables
        for row, texts in enumerate(zip(*(table.columns[name] for name in columns.inputs), strict=True))
        if row not in table.faults and any(isinstance(text, str) and not text.strip() for text in texts)
    ]
    if blank:
        total = sum(len(table.where) for table in tables)
        places = ", ".join(_place(table, row) for table, row in blank[:3])
        line = f"{tables[0].name}: {len(blank)} of {total} texts are empty: {places}{' …' if len(blank) > 3 else ''}"
        if on_error == "stop":
            raise InputError(f"{line}; fill or remove them, or set task.on_error=skip")
        console.console.print(line)
    return {table.where[row] for table, row in blank}


def _labels(table: Table, columns: Columns) -> Iterator[tuple[Any, ...]]:
    return zip(*(table.columns[name] for name in columns.labels), strict=True)


def _splits(table: Table, columns: Columns) -> list[str]:
    """Returns the split of each row; a row that cannot be used anyway and names none goes with the first."""
    if not columns.split:
        return [table.split] * len(table.where)
    names = [str(split or "").strip() for split in table.columns[columns.split]]
    for row, split in enumerate(names):
        if split.lower() not in SPLITS and row not in table.faults:
            known = ", ".join(SPLITS)
            raise InputError(f"{table.where[row]}: split {split!r} is none of {known}; mend it, or set task.split")
    splits = [SPLITS.get(split.lower(), "") for split in names]
    fallback = next(filter(None, splits), "train")
    return [split or fallback for split in splits]


def _ids(table: Table, columns: Columns, splits: Sequence[str]) -> list[str | InputError]:
    """Returns the column `id`, or the row's number, of the image's file followed by its path.

    Unlike a row's number alone, eight digits sort as numbers do, and stay what they are when rows are added.
    """
    if not columns.id:
        paths = table.columns[columns.inputs[0]] if columns.kind == "image" else ()
        has_paths = isinstance(paths, list)
        return [f"{row:08d}/{paths[row]}" if has_paths else f"{row:08d}" for row in range(len(table.where))]
    seen: dict[tuple[str, str], int] = {}
    ids: list[str | InputError] = []
    for row, value in enumerate(table.columns[columns.id]):
        id = str(value if value is not None else "").strip()
        if not id:
            ids.append(InputError("the id is empty"))
        elif (before := seen.setdefault((splits[row], id), row)) != row:
            ids.append(InputError(f"has the id {id!r}, as has {table.where[before]}"))
        else:
            ids.append(id)
    return ids


def _input(table: Table, columns: Columns, row: int) -> tuple[Path | Callable[[], Any], tuple[int, ...]]:
    """Returns the content of the example's item, and the stamp of its file."""
    values = table.columns[columns.inputs[0]]
    if columns.kind == "text":
        texts = tuple(table.columns[name][row] for name in columns.inputs)
        for name, text in zip(columns.inputs, texts, strict=True):
            if not isinstance(text, str):
                raise InputError(f"{name} is {text!r:.40}, which is no text")
        return functools.partial(_same, texts if len(texts) == 2 else texts[0]), (0, 0)
    if not isinstance(values, list):
        return functools.partial(_embedded, values, row, table), (0, 0)
    path = _path(values[row], table.folder)
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is no file")
    return path, checksums.stamp(path)


def _path(value: Any, folder: Path) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise InputError("names no image")
    return folder / value


def _embedded(values: Sequence[Any], row: int, table: Table) -> bytes:
    """Reads an image that is in the table, or whose path is."""
    value = values[row]
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    try:
        return _path(value, table.folder).read_bytes()
    except InputError as error:
        raise InputError(f"{table.where[row]}: {error}; mend or remove it") from error


def _same(value: Any) -> Any:
    return value


def read_input(table: Table, columns: Columns, row: int) -> bytes | str | tuple[str, str]:
    """Reads the encoded image, the text or the two texts of a row.

    Args:
        table: the rows.
        columns: what they hold.
        row: its number.

    Raises:
        InputError: there is none.
        OSError: the image's file cannot be read.
    """
    return Item("", 0, _input(table, columns, row)[0]).read()
