"""Frozen dataclasses from plain values and back: every key and type is checked."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections.config_dict import placeholder

from tljax.errors import InputError


def to_dict(value: Any) -> dict[str, Any]:
    """A frozen config as plain nested dicts, as `config.json` holds it."""
    return dataclasses.asdict(value)


def unknown_key(key: str, path: str, known: Iterable[str]) -> InputError:
    """The error for a key that is not there, with the nearest one that is."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"did you mean {path}.{near[0]}?" if near else f"there are: {', '.join(known)}"
    return InputError(f"no key {path}.{key}: {hint}")


def template(value: Any) -> dict[str, Any]:
    """Its fields as nested dicts for a ConfigDict, with a typed placeholder where one is None."""
    hints = typing.get_type_hints(type(value))
    made = {}
    for name, item in vars(value).items():
        if dataclasses.is_dataclass(item):
            made[name] = template(item)
        elif item is None:
            made[name] = placeholder(typing.get_args(hints[name])[0])
        else:
            made[name] = item
    return made


def build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """A frozen dataclass from a dict, every key and type checked; `path` is its name in errors."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in values:
            raise InputError(f"{path} has no {field.name}")
    for key in values:
        if key not in hints:
            raise unknown_key(key, path, hints)
    return cls(**{key: _coerce(value, hints[key], f"{path}.{key}") for key, value in values.items()})


def with_values(values: Mapping[str, Any], overrides: Mapping[str, Any], path: str = "config") -> dict[str, Any]:
    """A nested dict with other values, by dotted key.

    Raises:
        InputError: there is no such section.
    """
    found = dict(values)
    for key, value in overrides.items():
        section, _, rest = key.partition(".")
        if rest:
            if not isinstance(found.get(section), Mapping):
                raise unknown_key(section, path, found)
            value = with_values(found[section], {rest: value}, f"{path}.{section}")
        found[section] = value
    return found


def _coerce(value: Any, kind: Any, path: str) -> Any:
    if isinstance(kind, types.UnionType):
        return None if value is None else _coerce(value, typing.get_args(kind)[0], path)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise InputError(f"{path} must have keys, and is {type(value).__name__} {value!r}")
        return build(kind, value, path)
    plain = typing.get_origin(kind) or kind
    if plain is tuple and isinstance(value, list | tuple):
        return tuple(_coerce(item, tuple, path) if isinstance(item, list | tuple) else item for item in value)
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, plain) or isinstance(value, bool) != (plain is bool):
        raise InputError(f"{path} must be {plain.__name__}, not {type(value).__name__} {value!r}")
    return value
