"""A JSON object out of another library's file: each of its keys is read, known to be harmless, or refused by name."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tljax.errors import InputError, message_of
from tljax.io.checked_files import parse_json


def load_json(path: Path, where: str) -> Any:
    """Returns what a JSON file holds, or None where there is no such file.

    Args:
        path: the file.
        where: what errors call it.

    Raises:
        InputError: the file cannot be read, is no JSON, or has a key twice.
    """
    try:
        return parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{where} is damaged ({message_of(error)}); fetch it anew") from error


class Keys:
    """The keys of an object, each checked when it is read; `finish` refuses those that nobody has read.

    A key whose value is null counts as absent, as it does in the libraries that write such files.
    """

    def __init__(self, values: Any, file: str, folder: str = "", harmless: Mapping[str, str] = {}, under: str = ""):
        """Wraps `values`.

        Args:
            values: what the file holds.
            file: its name.
            folder: where it lies, as errors call it.
            harmless: key -> why its value changes nothing here.
            under: the key of the file that holds them, with a dot; empty for the whole file.

        Raises:
            InputError: it is no object.
        """
        self._place = f"{folder}: {file}" if folder else file
        if not isinstance(values, Mapping):
            owner = f"{under.removesuffix('.')} " if under else ""
            raise InputError(f"{self._place}: {owner}must be an object with keys, not {_shown(values)}")
        self._file, self._folder, self._under = file, folder, under
        self._values, self._harmless = values, harmless
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value as it stands."""
        self._read.add(key)
        return self._values[key] if key in self else default

    def is_null(self, key: str) -> bool:
        """Returns whether the key is there, and null."""
        return key in self._values and self._values[key] is None

    def whole(self, key: str, default: Any = None, least: int = 1) -> int:
        """Returns the whole number under `key`, or `default`: at least `least`."""
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.refusal(key, f"must be a whole number, {least} or more")
        return value

    def number(self, key: str, default: Any = None, least: float = 0.0) -> float:
        """Returns the finite number under `key`, or `default`: above `least`."""
        value = self.get(key, default)
        if not _is_number(value) or value <= least:
            raise self.refusal(key, f"must be a number above {least:g}")
        return value

    def wholes(self, key: str, default: Any = None) -> list[int]:
        """Returns a list of whole numbers, each 1 or more."""
        value = self.get(key, default)
        if not isinstance(value, list | tuple) or not value or not all(type(n) is int and n > 0 for n in value):
            raise self.refusal(key, "must be a list of whole numbers, each 1 or more")
        return list(value)

    def flag(self, key: str, default: bool) -> bool:
        """Returns true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, "must be true or false")
        return value

    def text(self, key: str, default: str = "") -> str:
        """Returns a string."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.refusal(key, "must be a text")
        return value

    def texts(self, key: str) -> list[str]:
        """Returns a list of strings; empty where there is none."""
        value = self.get(key, [])
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise self.refusal(key, "must be a list of texts")
        return list(value)

    def square(self, key: str, default: Any = None) -> int:
        """Returns a side in pixels, given as one number or as two equal ones."""
        value = self.get(key, default)
        sides = value if isinstance(value, list | tuple) else [value]
        if not sides or len(sides) > 2 or not all(type(side) is int and side > 0 for side in sides):
            raise self.refusal(key, "must be a whole number of pixels, or two")
        if len(set(sides)) > 1:
            raise self.refusal(key, "is no square, and networks here take squares: use weights of a square size")
        return sides[0]

    def statistics(
        self, mean: str, std: str, defaults: Sequence[Any], one_for_all: bool = False
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns the mean and the standard deviation of each channel, of which there are 1, 3 or 4.

        Args:
            mean, std: their keys.
            defaults: of the two.
            one_for_all: whether one number may stand for three equal ones.
        """
        values = []
        for key, default in zip((mean, std), defaults, strict=True):
            numbers = self.get(key, default)
            numbers = [numbers] * 3 if one_for_all and _is_number(numbers) else numbers
            known = isinstance(numbers, list | tuple) and len(numbers) in (1, 3, 4) and all(map(_is_number, numbers))
            if not known or (key == std and min(numbers) <= 0):
                raise self.refusal(key, f"must be 1, 3 or 4 numbers{' above 0' if key == std else ''}")
            values.append(tuple(map(float, numbers)))
        if len(values[0]) != len(values[1]):
            raise self.refusal(std, f"has {len(values[1])} values, and {mean} {len(values[0])}")
        return values[0], values[1]

    def choice(self, key: str, default: Any, known: Mapping[Any, str]) -> str:
        """Returns what `known` has for the value under `key`, or for `default`."""
        value = self.get(key, default)
        if not isinstance(value, str | int) or isinstance(value, bool) or value not in known:
            raise self.refusal(key, f"is not supported, only {', '.join(map(str, known))}")
        return known[value]

    def only(self, **values: Any) -> None:
        """Raises InputError if a key is there with another value than the network here has."""
        for key, supported in values.items():
            value = self.get(key, supported)
            if value != supported or isinstance(value, bool) != isinstance(supported, bool):
                raise self.refusal(key, f"is not supported, only {json.dumps(supported)}")

    def inside(self, key: str, harmless: Mapping[str, str] = {}, default: Mapping[str, Any] = {}) -> "Keys":
        """Returns the object under `key`, or `default`, with its own keys that are `harmless`."""
        return Keys(self.get(key, default), self._file, self._folder, harmless, f"{self._under}{key}.")

    def origin(self, key: str, otherwise: str) -> str:
        """Returns where a value comes from: this file and key, or what stands in for them."""
        return f"{self._file}: {self._under}{key}" if key in self else otherwise

    def refusal(self, key: str, why: str) -> InputError:
        """Returns the error that names file, key and value."""
        if key not in self._values:
            return InputError(f"{self._place}: {self._under}{key} is missing: it {why}")
        return InputError(f"{self._place}: {self._under}{key}={_shown(self._values[key])} {why}")

    def finish(self) -> None:
        """Raises InputError for the first key that was not read, is not null, and is not known to be harmless."""
        for key in self._values:
            if key in self and key not in self._read and key not in self._harmless:
                why = "is not known here, and may change what the network computes: remove the key if it does not"
                raise self.refusal(key, why)


def _is_number(value: Any) -> bool:
    """Returns whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def with_reason(reasons: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Returns key -> reason, from a table reason -> keys."""
    return {key: reason for reason, keys in reasons.items() for key in keys}


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
