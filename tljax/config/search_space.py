"""What a config's `sweep()` returns: for each run, the values that it has otherwise than the config, by dotted key.

    def sweep():
        seeds = grid({"seed": (0, 1, 2)})
        probes = grid({"tuning.strategy": ("linear_probe",), "optim.learning_rate": (1e-3, 1e-2)})
        rates = {"optim.learning_rate": log_uniform(1e-5, 1e-3)}
        deeper = random(8, 0, {"tuning.strategy": choice("full", "lora"), **rates})
        return product(probes + deeper, seeds)

All are lists of dicts, so that `+` puts one after another, `product` each with each, and a comprehension leaves some
out. A generator of such dicts does as well.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

from tljax.config.ranges import shown
from tljax.errors import InputError

Overrides = dict[str, Any]  # value by dotted key
Distribution = Callable[[Random], Any]


def grid(values: Mapping[str, Any]) -> list[Overrides]:
    """Returns every combination, the last key varying fastest.

    Raises:
        InputError: a key has one value in place of several.
    """
    _check_several(values)
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


def zipped(values: Mapping[str, Any]) -> list[Overrides]:
    """Returns the first value of every key, then the second of each, and so on.

    Raises:
        InputError: one key has more of them than another, or one value in place of several.
    """
    _check_several(values)
    if len({len(options) for options in values.values()}) > 1:
        counts = {key: len(options) for key, options in values.items()}
        raise InputError(f"zipped needs as many values of each key: {counts}")
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def product(*parts: Iterable[Mapping[str, Any]]) -> list[Overrides]:
    """Returns each of the first with each of the second, and so on; of a key that both have, the later value counts."""
    return [{key: value for overrides in row for key, value in overrides.items()} for row in itertools.product(*parts)]


def random(count: int, seed: int, distributions: Mapping[str, Any]) -> list[Overrides]:
    """Returns values drawn independently: the same on every machine and in every Python for the same seed.

    A draw depends on the seed, its key and its place alone: with a larger count, or another key, what was drawn before
    stays, and so do the runs that it named.

    Args:
        count: of draws.
        seed: of the generator.
        distributions: key -> `uniform`, `log_uniform` or `choice`.

    Raises:
        InputError: the count is below 0, or a key has a value in place of a distribution.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise InputError(f"random draws a count of runs, 0 or more, not {shown(count)}")
    for key, distribution in distributions.items():
        if not callable(distribution):
            raise InputError(f"random needs a distribution of {key}, as uniform(0, 1), not {shown(distribution)}")
    return [
        {key: draw(Random(f"{seed} {place} {key}")) for key, draw in distributions.items()} for place in range(count)
    ]


def uniform(low: float, high: float) -> Distribution:
    """Returns a distribution between two values, to four digits.

    Raises:
        InputError: a value is not finite, or the first is above the second.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise InputError(f"uniform needs low <= high, both finite, not {low} and {high}")
    return lambda rng: _rounded(low + (high - low) * rng.random())


def log_uniform(low: float, high: float) -> Distribution:
    """Returns a distribution between two values above 0, each factor as likely wherever it is, to four digits.

    Raises:
        InputError: a value is 0 or below, or not finite, or the first is above the second.
    """
    if not 0 < low <= high < math.inf:
        raise InputError(f"log_uniform needs 0 < low <= high, both finite, not {low} and {high}")
    return lambda rng: _rounded(low * math.exp(math.log(high / low) * rng.random()))


def choice(*values: Any) -> Distribution:
    """Returns a distribution of which each value is as likely.

    Raises:
        InputError: there are none.
    """
    if not values:
        raise InputError("choice needs values to choose from")
    return lambda rng: values[int(rng.random() * len(values))]


def _check_several(values: Mapping[str, Any]) -> None:
    for key, several in values.items():
        if isinstance(several, str) or not isinstance(several, Iterable):
            raise InputError(f"{key} needs a list of values, not {shown(several)}")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
