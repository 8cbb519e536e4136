"""Frozen dataclasses from plain values and back: every key and type is checked."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any

from ml_collections.config_dict import ConfigDict, placeholder

from tljax.config import synonyms
from tljax.config.ranges import coerce, shown
from tljax.errors import InputError

_WRAPPERS = (Annotated, types.UnionType, typing.Union)
RENAMED = {"regularise": "regularize"}
# Keys that earlier versions had not: where they are empty, names of runs are what they were.
_LEFT_OUT_IF_EMPTY = ("loss", "loss_args", "metrics", "dataset_args", "pack", "args", "schedule_args")
_RENAMED_VALUES = {"centre": "center", "colour_jitter": "color_jitter"}


def with_present_names(config: Any) -> Any:
    """Returns a config that an earlier version wrote with the keys and values as they are called now."""
    if isinstance(config, Mapping):
        return {RENAMED.get(key, key): with_present_names(value) for key, value in config.items()}
    if isinstance(config, list):
        return [with_present_names(value) for value in config]
    return _RENAMED_VALUES.get(config, config) if isinstance(config, str) else config


def to_dict(value: Any) -> dict[str, Any]:
    """Returns a frozen config as plain nested dicts, as `config.json` holds it."""
    if hasattr(value, "to_section"):
        return value.to_section()
    items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    sections = {key: to_dict(item) for key, item in items.items() if dataclasses.is_dataclass(item)}
    plain = {key: item for key, item in dataclasses.asdict(value).items() if item or key not in _LEFT_OUT_IF_EMPTY}
    return plain | sections


def unknown_key(key: str, path: str, known: Iterable[str]) -> InputError:
    """Returns the error for a key that is not there: what is called so elsewhere, or the nearest that is there.

    Args:
        key: the key.
        path: of the section that should have it.
        known: the section's keys.
    """
    if key in RENAMED:
        return InputError(f"no key {path}.{key}: it is called {path}.{RENAMED[key]} now")
    known = list(known)
    text = synonyms.advice(key)
    if text and f"{path}.{key}," not in f"{text},":  # an argument of another strategy's is itself
        return InputError(f"no key {path}.{key}: {text}")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"did you mean {path}.{near[0]}?" if near else f"there are: {', '.join(known)}"
    return InputError(f"no key {path}.{key}: {hint}")


def check_key(config: ConfigDict, key: str, free: Collection[str] = ()) -> None:
    """Checks that a config has a key.

    Args:
        config: with every key that there is.
        key: a dotted one.
        free: sections with keys that are somebody else's.

    Raises:
        InputError: it has not; what may have been meant is named.
    """
    section, path = config, "config"
    for part in key.split("."):
        if path.removeprefix("config.") in free:
            return
        if not isinstance(section, ConfigDict) or part not in section:
            known = section.keys() if isinstance(section, ConfigDict) else []
            raise unknown_key(part, path, known)
        section, path = section[part], f"{path}.{part}"


def template(value: Any) -> dict[str, Any]:
    """Returns a dataclass's fields as nested dicts for a ConfigDict, with a typed placeholder for each that is None."""
    hints = typing.get_type_hints(type(value))
    if hasattr(value, "to_section"):
        return {name: item for name, item in value.to_section().items() if item is not None}
    keys = {}
    for name, item in vars(value).items():
        if dataclasses.is_dataclass(item):
            keys[name] = template(item)
        else:
            keys[name] = empty(typing.get_args(hints[name])[0]) if item is None else item
    return keys


def empty(kind: Any) -> Any:
    """Returns a ConfigDict's placeholder of an annotation's plain type."""
    while plain := (typing.get_origin(kind) in _WRAPPERS and typing.get_args(kind)[0]):
        kind = plain
    return placeholder(typing.get_origin(kind) or kind)


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
    if hasattr(kind, "from_section"):
        return kind.from_section(value, path)
    return build(kind, value, path) if dataclasses.is_dataclass(kind) else coerce(value, kind, path)


def with_values(values: Mapping[str, Any], overrides: Mapping[Any, Any], path: str = "config") -> dict[str, Any]:
    """Returns a nested dict with other values.

    Args:
        values: the dict.
        overrides: values by dotted key; a section that is not there is added.
        path: what errors call the dict.

    Raises:
        InputError: what a dotted key has as a section is a value.
    """
    changed = dict(values)
    for key, value in overrides.items():
        section, _, rest = str(key).partition(".")
        if rest:
            if not isinstance(changed.get(section, {}), Mapping):
                raise unknown_key(section, path, changed)
            value = with_values(changed.get(section, {}), {rest: value}, f"{path}.{section}")
        changed[section] = value
    return changed
