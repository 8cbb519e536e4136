"""What a value may be: constraints that stand in a key's annotation, `Annotated[float, Interval(at_least=0)]`.

A constraint has `check(path, value)`: it raises InputError, which calls the value `path`, where that does not meet it.
"""

import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from tljax.errors import InputError

INT32 = 2**31 - 1
FLOAT32, LEAST_FLOAT32 = float.fromhex("0x1.fffffep+127"), 2.0**-126  # smaller ones are 0 on some devices


@dataclass(frozen=True)
class Interval:
    """Numbers between two bounds, of which either may be left out.

    Attributes:
        at_least, above: the lower bound, itself allowed or not.
        at_most, below: the upper bound, itself allowed or not.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def check(self, path: str, value: float) -> None:
        """Raises InputError for a number outside."""
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        is_above, is_below = self.above is None or value > self.above, self.below is None or value < self.below
        if not (low <= value <= high and is_above and is_below):
            bounds = [f"{name.replace('_', ' ')} {bound}" for name, bound in vars(self).items() if bound is not None]
            raise InputError(f"{path} must be {' and '.join(bounds)}, not {shown(value)}")


@dataclass(frozen=True, init=False)
class OneOf:
    """One of a few values; the nearest is named for a name that is none of them."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any):
        object.__setattr__(self, "values", values)

    def check(self, path: str, value: Any) -> None:
        """Raises InputError for another value."""
        if value not in self.values:
            raise InputError(no_such(path, value, self.values))


@dataclass(frozen=True)
class Hexadecimal:
    """Nothing, or so many hexadecimal digits."""

    digits: int

    def check(self, path: str, value: str) -> None:
        """Raises InputError for other text."""
        if value and not re.fullmatch(f"[0-9a-fA-F]{{{self.digits}}}", value):
            raise InputError(f"{path} must be {self.digits} hexadecimal digits, not {shown(value)}")


@dataclass(frozen=True)
class NotEmpty:
    """A tuple or a text with something in it."""

    def check(self, path: str, value: Any) -> None:
        """Raises InputError for an empty one."""
        if not value:
            raise InputError(f"{path} is empty: give at least one")


@dataclass(frozen=True)
class Regex:
    """A regular expression."""

    def check(self, path: str, value: str) -> None:
        """Raises InputError for text that is none, with the reason."""
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"{path}: {shown(value)} is no regular expression ({error})") from error


Count = Annotated[int, Interval(at_least=0), Interval(at_most=INT32)]
Positive = Annotated[int, Interval(at_least=1), Interval(at_most=INT32)]
NotNegative = Annotated[float, Interval(at_least=0)]
AboveZero = Annotated[float, Interval(above=0)]
Rate = Annotated[float, Interval(at_least=0, below=1)]  # as of what is dropped
Part = Annotated[float, Interval(above=0, at_most=1)]  # of a whole
Between = Annotated[float, Interval(above=0, below=1)]
RegexStr = Annotated[str, Regex()]


def shown(value: Any) -> str:
    """Returns a value as Python writes it, cut where it is longer than a line of text."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__} of too many digits"
    return text if len(text) <= 200 else f"{text[:200]}…"


def no_such(path: str, name: Any, known: Iterable[Any]) -> str:
    """Returns the message for a name that is not known: the nearest that is, and all of them.

    Args:
        path: the key that has the name.
        name: the name.
        known: the names that there are.
    """
    known = list(known)
    near = difflib.get_close_matches(name, map(str, known), n=1) if isinstance(name, str) else []
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"no {path} {shown(name)}{hint}; there are: {', '.join(str(value) or repr(value) for value in known)}"


def coerce(value: Any, kind: Any, path: str) -> Any:
    """Returns `value` as a plain type that may be annotated, with integers as floats and lists as tuples.

    Args:
        value: from a file, a flag, a sweep or Python.
        kind: a type, `T | None`, `tuple[T, …]` or `tuple[T, ...]`, or one of these with constraints (`Annotated`).
        path: what errors call it.

    Raises:
        InputError: it is of another type, no finite number, or does not meet a constraint.
    """
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else coerce(value, typing.get_args(kind)[0], path)
    if origin is Annotated:
        value = coerce(value, kind.__origin__, path)
        for constraint in kind.__metadata__:
            constraint.check(path, value)
        return value
    plain = origin or kind
    if plain is tuple and isinstance(value, list | tuple):
        return _coerce_tuple(value, typing.get_args(kind), path)
    if plain is dict and isinstance(value, Mapping):
        return _coerce_dict(value, path)
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= FLOAT32 else math.inf if value > 0 else -math.inf
    if not isinstance(value, plain) or isinstance(value, bool) != (plain is bool):
        raise InputError(f"{path} must be {plain.__name__}, not {type(value).__name__} {shown(value)}")
    if plain is float and not (value == 0 or LEAST_FLOAT32 <= abs(value) <= FLOAT32):
        needed = "larger" if abs(value) < LEAST_FLOAT32 else "finite"
        raise InputError(f"{path} must be a {needed} number (of float32), not {shown(value)}")
    if plain is str and "\0" in value:
        raise InputError(f"{path} has a NUL character in it: {shown(value)}")
    return value


def _coerce_tuple(values: list | tuple, kinds: tuple[Any, ...], path: str) -> tuple:
    if not kinds:
        return tuple(_coerce_tuple(item, (), path) if isinstance(item, list | tuple) else item for item in values)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    if len(values) != len(kinds):
        raise InputError(f"{path} must have {len(kinds)} values, not {len(values)}: {shown(values)}")
    return tuple(
        coerce(item, kind, f"{path}[{place}]") for place, (item, kind) in enumerate(zip(values, kinds, strict=True))
    )


def _coerce_dict(values: Mapping[Any, Any], path: str) -> dict[str, Any]:
    """Returns a dict of arguments as `config.json` gives it back, with lists as tuples."""
    arguments = {}
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, str | int | float | list | tuple | Mapping | None):
            raise InputError(f"{path}[{shown(key)}] must be text, a number or a list, not {shown(value)}")
        items = _coerce_tuple(value, (), path) if isinstance(value, list | tuple) else value
        arguments[key] = _coerce_dict(value, f"{path}.{key}") if isinstance(value, Mapping) else items
    return arguments


def check_fields(instance: Any, path: str) -> None:
    """Raises InputError where a dataclass has a value in a field that its annotation does not allow."""
    for name, kind in typing.get_type_hints(type(instance), include_extras=True).items():
        coerce(getattr(instance, name), kind, f"{path}.{name}")
