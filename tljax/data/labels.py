"""From the values of label columns, of any source, to the labels of examples."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tljax.data.examples import Label
from tljax.errors import InputError

_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclass(frozen=True)
class Labels:
    """How the values of one example's label columns become its label.

    Attributes:
        problem, classes: as in `Source`.
        numbered: whether the values are numbers of classes, not their names.
        flags: whether there is a column of 0 and 1 for each class.
    """

    problem: str
    classes: tuple[str, ...]
    numbered: bool = False
    flags: bool = False

    def of(self, values: Sequence[Any]) -> Label:
        """The label.

        Raises:
            InputError: they give none; the message says why and leaves it to the caller to name the example.
        """
        if self.problem == "regression":
            return tuple(_number(value, name) for value, name in zip(values, self.classes, strict=True))
        if self.flags:
            found = [_flag(value, name) for value, name in zip(values, self.classes, strict=True)]
            return tuple(i for i, has in enumerate(found) if has)
        if self.problem == "multi_label":
            return tuple(sorted({self._class(value) for value in _several(values[0])}))
        return self._class(values[0])

    def _class(self, value: Any) -> int:
        if self.numbered:
            if isinstance(value, int | np.integer) and 0 <= value < len(self.classes):
                return int(value)
            raise InputError(f"label {value!r} is none of the classes 0 to {len(self.classes) - 1}")
        if name := as_name(value):
            return self._numbers[name]
        raise InputError("the label is empty")

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {name: i for i, name in enumerate(self.classes)}


def infer(problem: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Labels:
    """What the values of the label columns say themselves: classes are their sorted distinct names."""
    if problem == "regression":
        return Labels(problem, tuple(columns))
    if problem == "multi_label" and len(columns) > 1:
        return Labels(problem, tuple(columns), flags=True)
    names: set[str] = set()
    for values in rows:
        if problem == "single_label":
            if isinstance(values[0], list | tuple):
                raise InputError(f"{columns[0]} has lists of labels: set task.problem=multi_label")
            names.add(as_name(values[0]))
        elif values[0] is not None:
            names.update(as_name(value) for value in _several(values[0]))
    return Labels(problem, in_order(names - {""}))


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sorted: as numbers where all of them are, so that 10 comes after 9."""
    names = list(names)
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def as_name(value: Any) -> str:
    """A class's name as text, without the white space around it; empty where there is none.

    A column of integers with a gap in it has been read as floats by some library before: 3.0 is the class 3.
    """
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else f"{value:.0f}" if value == int(value) else str(value)
    return "" if value is None else str(value).strip()


def is_missing(values: Sequence[Any]) -> bool:
    """Whether these are what data sets have in place of the labels that they keep to themselves: nothing, or -1."""
    return all(value is None or (isinstance(value, int | np.integer) and value == -1) for value in values)


def _several(value: Any) -> Sequence[Any]:
    if value is None:
        raise InputError("the label is empty")
    if isinstance(value, str):
        return [name for name in value.split("|") if name.strip()]
    return value if isinstance(value, list | tuple) else [value]


def _number(value: Any, column: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{column} is {value!r}, which is no finite number")
    return number


def _flag(value: Any, column: str) -> bool:
    found = _FLAGS.get(str(value).strip().lower())
    if found is None:
        raise InputError(f"{column} is {value!r}, neither 0 nor 1")
    return found
