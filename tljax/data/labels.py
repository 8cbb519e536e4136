"""From the values of label columns, of any source, to the labels of examples."""

import ast
import collections
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np

from tljax.data import dataset
from tljax.data.dataset import Label, shown
from tljax.errors import InputError
from tljax.problems.registry import problem_of

FORMS = {
    "values": "values",
    "names": "class names",
    "numbers": "numbers of classes",
    "columns": "a column of 0 and 1 for each class",
    "flag": "one label, on or off",
    "multi-hot": "multi-hot",
}
_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
_BOOLEANS = ("False", "True")
# As other programs write that there is no value. `None` and `NA` are not here: data sets have such classes.
_MISSING = frozenset(("nan", "NaN", "NAN", "null", "NULL", "None", "NA", "<NA>", "#N/A", "N/A", "n/a"))
_NUMBERS = re.compile(r"[\[(]?\s*\d+(\.0*)?([\s,;]+\d+(\.0*)?)*\s*,?\s*[\])]?", re.ASCII)


@dataclass(frozen=True)
class Labels:
    """How the values of one example's label columns become its label.

    Attributes:
        problem, classes: as in `Source`.
        form: one of `FORMS`.
    """

    problem: str
    classes: tuple[str, ...]
    form: str = "names"

    def encode(self, values: Sequence[Any]) -> Label:
        """Returns the label.

        Raises:
            InputError: they give none; the message says why and leaves it to the caller to name the example.
        """
        if self.form == "values":
            return tuple(_number(value, name) for value, name in zip(values, self.classes, strict=True))
        if self.form in ("columns", "flag"):
            flags = [_flag(value, name) for value, name in zip(values, self.classes, strict=True)]
            return tuple(i for i, has in enumerate(flags) if has)
        if self.form == "multi-hot":
            return self._places(values[0])
        if not problem_of(self.problem).one_class:
            return tuple(sorted({self._class(value) for value in _several(values[0])}))
        return self._class(values[0])

    def _places(self, value: Any) -> tuple[int, ...]:
        flags = _several(value)
        if len(flags) != len(self.classes) or not all(map(_is_binary, flags)):
            raise InputError(f"label {value!r:.80} is no list of 0 and 1 for the {len(self.classes)} classes")
        return tuple(i for i, flag in enumerate(flags) if _flag(flag, self.classes[i]))

    def _class(self, value: Any) -> int:
        if self.form == "numbers":
            if isinstance(value, int | np.integer) and 0 <= value < len(self.classes):
                return int(value)
            raise InputError(f"label {value!r:.80} is none of the classes 0 to {len(self.classes) - 1}")
        if isinstance(value, dict | list | tuple):
            raise InputError(f"label {value!r:.80} is no name of a class")
        name = as_name(value)
        if name in self._numbers:
            return self._numbers[name]
        if name.capitalize() in _BOOLEANS and set(self.classes) == set(_BOOLEANS):
            return self._numbers[name.capitalize()]
        if not name:
            raise InputError("the label is empty")
        if name in _MISSING:
            raise InputError(f"label {name!r} stands for a missing one; if it is a class, list all in task.classes")
        raise InputError(f"label {name!r:.80} is none of task.classes ({shown(self.classes)})")

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {name: i for i, name in enumerate(self.classes)}

    def describe(self, columns: Sequence[str], where: str, values: Sequence[Any]) -> str:
        """Returns a line that says how the columns are read, with one example that has a label.

        Args:
            columns: their names.
            where: what the example is called.
            values: in its label columns.
        """
        label = self.encode(values)
        if not problem_of(self.problem).has_classes:
            classes, names = "", ", ".join(map(str, label))
        else:
            count = f"{len(self.classes)} {'class' if len(self.classes) == 1 else 'classes'}"
            classes = f", {count} ({shown([repr(name) if {*',;'} & {*name} else name for name in self.classes])})"
            numbers = label if isinstance(label, tuple) else (label,)
            names = shown([self.classes[number] for number in numbers]) or "none"
        columns_are = ("column " if len(columns) == 1 else "columns ") + shown([repr(name) for name in columns])
        value = shown([f"{value!r:.80}" for value in values])
        return f"labels: {columns_are} read as {FORMS[self.form]}{classes}; {where} {value} -> {names}"


def infer(
    problem: str,
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[Any]]],
    classes: Sequence[str] = (),
    numbered: bool = False,
) -> Labels:
    """Returns how label columns are to be read, by what is in them.

    Args:
        problem: a name that `problem_of` knows.
        columns: the label columns' names.
        rows: of each example that can be used its place (`line 3`), and its values.
        classes: names in label order; by default those that occur, in natural order.
        numbered: whether the values are numbers of `classes` by their type, not names.

    Raises:
        InputError: the values can be read in two ways, or not at all; the ways out are named.
    """
    classes = tuple(map(normalized, classes))
    dataset.numbered(classes, "the data" if numbered else "task.classes")
    if not problem_of(problem).has_classes:
        if classes and not numbered:
            raise InputError("task.classes names classes, and a regression has none; leave it empty")
        return Labels(problem, tuple(map(normalized, columns)), "values")
    if len(columns) > 1:
        _check_count(classes, len(columns), "label columns")
        return Labels(problem, classes or tuple(map(normalized, columns)), "columns")
    if problem_of(problem).one_class:
        if numbered:
            return Labels(problem, classes, "numbers")
        return Labels(problem, classes or in_order(_names(columns[0], rows)))
    return _several_labels(problem, columns[0], _Cells(rows), classes, numbered)


def _names(column: str, rows: Iterable[tuple[str, Sequence[Any]]]) -> set[str]:
    """Returns the distinct class names in a column that has one in each cell."""
    names: set[str] = set()
    for where, (value,) in rows:
        if isinstance(value, list | tuple | np.ndarray):
            raise _is_several(f"{where}: {column} is {value!r:.40}")
        if not isinstance(value, dict):
            names.add(as_name(value))
    names -= {"", *_MISSING}
    if names and all(map(_is_multi_hot, names)) and len({len(_several(name)) for name in names}) == 1:
        raise _is_several(f"{column} has lists of 0 and 1 ({min(names)!r:.40})")
    return _as_booleans(names)


def _is_several(column: str) -> InputError:
    return InputError(
        f"{column}, and with task.problem=single_label an example has one class: set task.problem=multi_label, or "
        "write the name of its class"
    )


class _Cells:
    """What the cells of one column of several labels hold.

    Attributes:
        names: all entries, as names.
        lists: (where, cell) of the first list of each length.
        scalars: whether a cell is no list.
        binary: whether all entries are 0 or 1, as numbers.
        repeats: (where, cell) of a list that has a number twice, or None.
    """

    def __init__(self, rows: Iterable[tuple[str, Sequence[Any]]]):
        self.names: set[str] = set()
        self.lists: dict[int, tuple[str, Any]] = {}
        self.scalars, self.binary, self.repeats = False, True, None
        for where, (value,) in rows:
            if as_name(value) in ("", *_MISSING):
                continue
            entries = _several(value)
            if _is_list(value):
                self.lists.setdefault(len(entries), (where, value))
            else:
                self.scalars = True
                self.binary &= len(entries) == 1  # with | between, they are names
            names = [as_name(entry) for entry in entries if not isinstance(entry, dict | list)]
            if len(set(names)) < len(names) and all(name.isdecimal() for name in names):
                self.repeats = self.repeats or (where, value)
            self.binary &= all(map(_is_binary, entries))
            self.names.update(names)
        self.names -= {"", *_MISSING}


def _several_labels(problem: str, column: str, cells: _Cells, classes: tuple[str, ...], numbered: bool) -> Labels:
    """Returns how one column of several labels is to be read."""
    one_length = len(cells.lists) == 1 and not cells.scalars
    length = max(cells.lists, default=0)
    if numbered:
        hot = cells.binary and one_length and length == len(classes) > 1
        return Labels(problem, classes, "multi-hot" if hot else "numbers")
    are_names = bool(classes) and cells.names <= set(classes)
    if cells.binary and cells.lists and not cells.scalars and length > 0:
        if (one_length and length > 1) or (len(classes) in cells.lists and not are_names):
            _check_count(classes, length if one_length else len(classes), f"places in the lists of {column}")
            names = classes or tuple(f"class_{i}" for i in range(length))
            return Labels(problem, names, "multi-hot")
        if not are_names:
            raise _doubtful(column, cells)
    elif cells.binary and cells.scalars and not cells.lists and not are_names:
        _check_count(classes, 1, f"column of 0 and 1, {column}")
        return Labels(problem, classes or (normalized(column),), "flag")
    elif one_length and length > 1 and cells.repeats and not are_names:
        where, value = cells.repeats
        raise InputError(
            f"{where}: {column} is {value!r:.80}: in a list of class numbers none is there twice, and a multi-hot one "
            "has only 0 and 1; mend it, or list all names in task.classes"
        )
    if not (classes or cells.names):
        raise InputError(f"{column}: no example has a label; set task.label to another column")
    if not classes and (several := _several_in_one(cells.names)):
        raise InputError(
            f"{column}: {several!r:.80} is one class as it stands: write the names of several with | between, or list"
            " all names in task.classes"
        )
    return Labels(problem, classes or in_order(cells.names))


def _several_in_one(names: Iterable[str]) -> str:
    """Returns a name that seems to be several with commas or semicolons between: a part of it is in another, too."""
    parts = {name: {part.strip() for part in re.split("[,;]", name)} for name in names}
    counts = collections.Counter(part for labels in parts.values() for part in labels)
    return next((name for name in sorted(parts) if len(parts[name]) > 1 and max(map(counts.get, parts[name])) > 1), "")


def _doubtful(column: str, cells: _Cells) -> InputError:
    """Returns the error for lists of 0 and 1 that can be class numbers, or multi-hot."""
    (where, value), *others = (cells.lists[length] for length in sorted(cells.lists) if length)
    other = f", and {others[0][0]}: {others[0][1]!r:.40}" if others else ""
    return InputError(
        f"{where}: {column} is {value!r:.40}{other}: class numbers, or multi-hot? To have the classes 0 and 1, set "
        "task.classes=\"('0','1')\"; for multi-hot, give all lists one length, or name their places in task.classes"
    )


def _check_count(classes: Sequence[str], count: int, what: str) -> None:
    if classes and len(classes) != count:
        raise InputError(f"task.classes has {len(classes)} names ({shown(classes)}), and there are {count} {what}")


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sorts class names as people do: 2 before 10, also within a name (img2, img10); all numbers by their value."""
    names = list(names)
    if all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names):
        return tuple(sorted(names, key=lambda name: (Decimal(name), name)))
    return tuple(sorted(names, key=lambda name: (_natural(name), name)))


def _natural(name: str) -> list[Any]:
    parts = re.split(r"(\d+)", name)  # every second one is of digits
    return [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else part for i, part in enumerate(parts)]


def by_class(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups names that are one class: NFC, and where all are `true` and `false` in some case, `True` and `False`.

    Returns:
        Class name, in natural order -> names of it.
    """
    names = list(names)
    booleans = len(_as_booleans({normalized(name) for name in names}) - set(_BOOLEANS)) == 0
    classes = collections.defaultdict(list)
    for name in names:
        classes[normalized(name).capitalize() if booleans else normalized(name)].append(name)
    return {name: classes[name] for name in in_order(classes)}


def _as_booleans(names: set[str]) -> set[str]:
    alike = {name.capitalize() for name in names}
    return alike if alike <= set(_BOOLEANS) else names


def differing_in_case(classes: Sequence[str]) -> str:
    """Returns a warning that names classes which differ in case alone; empty if none do."""
    alike = collections.defaultdict(list)
    for name in classes:
        alike[name.casefold()].append(repr(name))
    groups = [" and ".join(names) for names in alike.values() if len(names) > 1]
    return f"{shown(groups)} differ in case alone, and are different classes" if groups else ""


def normalized(name: str) -> str:
    """Returns a name in Unicode's NFC, so that é is one letter however it was typed."""
    return unicodedata.normalize("NFC", name)


_BLANK = " \t\n\r\v\f\u00a0\u200b\u2060\ufeff"  # what nobody sees at the ends of a name


def as_name(value: Any) -> str:
    """Returns a class's name as text, without the white space around it; empty where there is none.

    A column of integers with a gap in it has been read as floats by some library before: 3.0 is the class 3.
    """
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else f"{value:.0f}" if float(value).is_integer() else str(value)
    return "" if value is None else normalized(str(value).strip(_BLANK))


def is_missing(values: Sequence[Any]) -> bool:
    """Tells whether these are what data sets have in place of labels that they keep to themselves: nothing, or -1."""
    return all(value is None or (isinstance(value, int | np.integer) and value == -1) for value in values)


def _is_list(value: Any) -> bool:
    """Tells whether a cell is a list, or text that can only be one."""
    return _listed(value) is not None if isinstance(value, str) else isinstance(value, list | tuple | np.ndarray)


def _listed(text: str) -> list[Any] | None:
    """Returns the list that a text is, as in `[0, 1]`, `0 1 0`, `0,1` and `['a', 'b']`; None if it is no list."""
    text = text.strip()
    if _NUMBERS.fullmatch(text) and re.search(r"[\s,;\[(]", text):
        return re.findall(r"(\d+)(?:\.0*)?", text)
    if text.startswith("[") and text.endswith("]"):
        try:
            entries = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # a name in brackets
            return None
        if isinstance(entries, list) and all(isinstance(entry, str | int) for entry in entries):
            return entries
    return None


def _is_multi_hot(text: str) -> bool:
    entries = _listed(text)
    return entries is not None and len(entries) > 1 and all(map(_is_binary, entries))


def _several(value: Any) -> Sequence[Any]:
    if value is None:
        raise InputError("the label is empty")
    if isinstance(value, str):
        entries = _listed(value)
        return [name for name in value.split("|") if name.strip()] if entries is None else entries
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def _is_binary(value: Any) -> bool:
    """Tells whether an entry is 0 or 1 as a number or a boolean is."""
    return as_name(value).lower() in _FLAGS and not isinstance(value, dict | list)


def _number(value: Any, column: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{column} is {value!r}, which is no finite number")
    return number


def _flag(value: Any, column: str) -> bool:
    flag = _FLAGS.get(str(value).strip().lower())
    if flag is None:
        raise InputError(f"{column} is {value!r}, neither 0 nor 1")
    return flag
