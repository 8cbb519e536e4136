"""Odd values for every key of a config, by a seed: for tests, and for a longer search."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np

from tljax.config.schema import Experiment, default
from tljax.config.serialization import with_values
from tljax.errors import InputError

Overrides = dict[str, Any]  # value by dotted key

# Whose argument a key is; those of other strategies would be refused for that alone.
_STRATEGIES = {
    **dict.fromkeys(("rank", "alpha", "dropout", "rslora", "targets"), "lora"),
    **dict.fromkeys(("bottleneck", "parallel", "scale"), "adapter"),
    **dict.fromkeys(("tokens", "deep"), "prompt"),
    **dict.fromkeys(("share", "probe_rate"), "lp_ft"),
    **dict.fromkeys(("every", "by", "direction"), "gradual_unfreezing"),
    **{"k": "last_k", "groups": "surgical", "decay": "layer_decay", "factor": "discriminative", "hidden": "mlp_head"},
    **{"norm_with": "layer_decay", "patterns": "pattern", "freeze_epochs": "fine_tune", "phases": "phases"},
}
_PHASE_KEYS = ("strategy", "k", "rank", "steps", "epochs", "share", "learning_rate", "schedule", "warmup_steps", "?", 3)
_NUMBERS = (
    *(0, 1, 2, 3, 7, 16, -1, -8, 2**31 - 1, 2**31, 2**32, 2**63, -(2**63), 10**30, 10**400, 10**5000),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -0.1, 1e-45, 1e-320, 1e30, 1e38, 1e39, 1e308, math.nan, math.inf, -math.inf),
    *(True, False, np.int64(3), np.float32(0.5), np.float64(math.nan), np.array([1, 2]), 1j),
)
_TEXTS = (
    *("", " ", "é", "日本語", "\0", "a\0b", "a\nb", "\ud800", "\x1b[31m", "\u202e", "a" * 10_000, "'", '"', "file:///"),
    *("0", "nan", "None", "[", "(", "(?P<", ".*", "full", "adamw", "train", "train[", "train[:0%]"),
    *("train[5%:3%]", "train+", "vtab:", "..", "/", "~", "-", "%s", "{}", "[red]"),
    *("csv:", "folder:", "hf:", "tfds:", "csv:/dev/null", "folder:/no/such", "hf://", "pypi://"),
    *("s3:", "float16", "Cosine", "flipp", "last-k", "a/b"),
)
_TUPLES = (
    *((), (None,), ((),), (1,), (-1.0, 1.0), (math.nan,), ("",), ("flip",) * 50, ("flip", 3), (True, False)),
    *(((".*", 1.0),), (("[", 1.0),), ((".*", math.nan),), ((".*", "a"),), ((".*",),), (((((),),),),), [1, [2, [3]]]),
    *([], ({},), ({"strategy": "full"},), ("text",), ("\0",), ("a", "a"), (1.0, 1.0), (0.0, 0.0), (1e38, 1e38)),
    tuple(range(1000)),
)
_OTHERS = (None, {}, {"a": 1}, {1: 2}, b"bytes", object(), set(), frozenset({1}), range(3), len, Ellipsis, int)
_VALUES = (_NUMBERS, _TEXTS, _TUPLES, _OTHERS)


def keys(section: Any = None, prefix: str = "") -> list[str]:
    """Returns the dotted keys of a config, those of its sections among them."""
    if prefix == "tuning.":
        return [f"tuning.{name}" for name in ("strategy", *_STRATEGIES, "group_rates")]
    names = []
    for name, value in vars(Experiment() if section is None else section).items():
        names += keys(value, f"{prefix}{name}.") if dataclasses.is_dataclass(value) else [f"{prefix}{name}"]
        names += [f"{prefix}{name}"] if dataclasses.is_dataclass(value) else []
    return names


def odd_values(seed: int, count: int) -> Iterator[tuple[str, Overrides]]:
    """Yields a key, and overrides in which it has an odd value: the first `count` of an endless row.

    Args:
        seed: of the row.
        count: how many; a larger one begins with the same.
    """
    rng, known = Random(seed), keys()
    for _ in range(count):
        key = rng.choice(known)
        value = rng.choice(rng.choice(_VALUES))
        section, _, name = key.rpartition(".")
        overrides: Overrides = {}
        if section == "tuning" and name in _STRATEGIES:
            overrides["tuning.strategy"] = _STRATEGIES[name]
        if key == "tuning.phases" and rng.random() < 0.7:
            value = ({"strategy": "linear_probe", "share": 0.5, rng.choice(_PHASE_KEYS): value}, {"strategy": "full"})
        yield key, {**overrides, key: value}


def outcome(key: str, overrides: Overrides, check: Callable[[dict[str, Any]], None], base: dict[str, Any]) -> str:
    """Returns `accepted` or `refused` of a config; or what is wrong with how it was refused.

    Args:
        key: the one with the odd value.
        overrides: of `base`.
        check: all that is asked of a config before a run begins; given the config's values.
        base: a config that is accepted, as nested dicts.
    """
    try:
        check(with_values(base, overrides))
    except InputError as error:
        message = str(error)
        if "\n" in message or not message.isprintable():
            return f"not a printable line: {message!r}"
        return "refused" if _names(message, key) else f"does not name {key}: {message}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return "accepted"


def _names(message: str, key: str) -> bool:
    """Whether an error says which key it is about, or which part of it."""
    name = key.rsplit(".", 1)[-1]
    return name in message.replace("image size", "image_size") or (name in ("steps", "epochs") and "length" in message)


def base() -> dict[str, Any]:
    """Returns a config of six steps as nested dicts, with neither data nor a network."""
    return default().to_dict() | {"steps": 6}
