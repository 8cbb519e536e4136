"""Frozen dataclasses from plain values and back: every key and type is checked."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections.config_dict import ConfigDict, placeholder

from tljax.config.ranges import coerce, shown
from tljax.errors import InputError

RENAMED = {"regularise": "regularize"}
_RENAMED_VALUES = {"centre": "center", "colour_jitter": "color_jitter"}

_LEFT_OUT_IF_EMPTY = ("dataset_args", "loss", "loss_args", "metrics")  # which earlier versions had not


def with_present_names(config: Any) -> Any:
    """Returns a config that an earlier version wrote with the keys and values as they are called now."""
    if isinstance(config, Mapping):
        return {RENAMED.get(key, key): with_present_names(value) for key, value in config.items()}
    if isinstance(config, list):
        return [with_present_names(value) for value in config]
    return _RENAMED_VALUES.get(config, config) if isinstance(config, str) else config


def to_dict(value: Any) -> dict[str, Any]:
    """A frozen config as plain nested dicts, as `config.json` holds it."""
    sections = {key: to_dict(item) for key, item in vars(value).items() if dataclasses.is_dataclass(item)}
    plain = {key: item for key, item in dataclasses.asdict(value).items() if item or key not in _LEFT_OUT_IF_EMPTY}
    return plain | sections


def unknown_key(key: str, path: str, known: Iterable[str]) -> InputError:
    """The error for a key that is not there, with the nearest one that is."""
    if key in RENAMED:
        return InputError(f"no key {path}.{key}: it is called {path}.{RENAMED[key]} now")
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
            kind = typing.get_args(hints[name])[0]
            made[name] = placeholder(typing.get_origin(kind) or kind)
        else:
            made[name] = item
    return made


def build(cls: type, values: Any, path: str) -> Any:
    """Returns a frozen dataclass from a dict, with every key, type and range checked.

    Args:
        cls: the dataclass; a field's constraints stand in its annotation (`ranges`).
        values: of its fields; of one that is a dataclass itself, a dict again.
        path: its name in errors.

    Raises:
        InputError: a key that does not exist, or a value that the field cannot have.
    """
    values = values.to_dict() if isinstance(values, ConfigDict) else values
    if not isinstance(values, Mapping):
        raise InputError(f"{path} must be a section of keys and values, not {shown(values)}")
    kinds = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in values:
            raise InputError(f"{path} has no {field.name}")
    for key in values:
        if key not in kinds:
            raise unknown_key(str(key), path, kinds)
    return cls(**{key: _build_value(value, kinds[key], f"{path}.{key}") for key, value in values.items()})


def _build_value(value: Any, kind: Any, path: str) -> Any:
    return build(kind, value, path) if dataclasses.is_dataclass(kind) else coerce(value, kind, path)


def with_values(values: Mapping[str, Any], overrides: Mapping[Any, Any], path: str = "config") -> dict[str, Any]:
    """A nested dict with other values, by dotted key.

    Raises:
        InputError: there is no such section.
    """
    found = dict(values)
    for key, value in overrides.items():
        section, _, rest = str(key).partition(".")
        if rest:
            nested = found.get(section, {} if section in _LEFT_OUT_IF_EMPTY else None)
            if not isinstance(nested, Mapping):
                raise unknown_key(section, path, found)
            value = with_values(nested, {rest: value}, f"{path}.{section}")
        found[section] = value
    return found
