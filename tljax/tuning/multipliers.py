"""A tuning strategy is a tree of learning-rate multipliers over the parameters; 0 means frozen.

The optimizer's labels, what is differentiated, which BatchNorms move and what a run costs all follow from that tree.
"""

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from tljax.errors import InputError
from tljax.peft.config import ADAPTERS, AdapterConfig
from tljax.tuning.strategies import STRATEGIES, Layout, compiled, first_match

Tree = Any  # a nested dict of arrays (or of what stands for them)


def takes(function: Callable[..., Any]) -> dict[str, bool]:
    """The names of a strategy's or recipe's arguments: whether each must be given."""
    parameters = inspect.signature(function).parameters.values()
    return {found.name: found.default is found.empty for found in parameters if found.kind is found.KEYWORD_ONLY}


def arguments_of(strategy: str) -> dict[str, bool]:
    """The names of a strategy's arguments, those of what it adds among them: whether each must be given.

    Raises:
        InputError: there is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"no tuning.strategy {strategy!r}; there are: {', '.join(STRATEGIES)}")
    adds = [field.name for field in dataclasses.fields(ADAPTERS[strategy])] if strategy in ADAPTERS else []
    return takes(STRATEGIES[strategy]) | dict.fromkeys(adds, False)


def check_arguments(strategy: str, arguments: Mapping[str, Any], wanted: Mapping[str, bool]) -> None:
    """Raises InputError where an argument is missing, or not one that is taken."""
    for name in arguments:
        if name not in wanted:
            raise InputError(f"{strategy} takes no tuning.{name}; it takes: {', '.join(wanted) or 'nothing'}")
    for name, required in wanted.items():
        if required and name not in arguments:
            raise InputError(f"{strategy} needs --config.tuning.{name}=…")


def addition(strategy: str, arguments: Mapping[str, Any]) -> AdapterConfig | None:
    """What a strategy adds to the network, if it does.

    Raises:
        InputError: an argument is unknown, or out of range.
    """
    check_arguments(strategy, arguments, arguments_of(strategy))
    if strategy not in ADAPTERS:
        return None
    return ADAPTERS[strategy](**arguments)


def multipliers(
    strategy: str,
    arguments: Mapping[str, Any],
    layout: Layout,
    group_rates: Sequence[tuple[str, float]] = (),
) -> Tree:
    """The strategy's tree of multipliers, in the parameters' own structure.

    Args:
        strategy, arguments: a row of `STRATEGIES` and what it takes.
        layout: the parameters' names and groups.
        group_rates: ((regex, factor), …) over group names; the first that matches multiplies the strategy's value.

    Raises:
        InputError: the strategy or one of its arguments is unknown, missing or unusable, or nothing would train.
    """
    check_arguments(strategy, arguments, arguments_of(strategy))
    function = STRATEGIES[strategy]
    by_path = function(layout, **{name: value for name, value in arguments.items() if name in takes(function)})
    if set(by_path) != set(layout.group_of):
        raise InputError(f"{strategy} left out {sorted(set(layout.group_of) - set(by_path))[:3]}")
    factors = _group_factors(layout, group_rates)
    by_path = {path: value * factors[layout.group_of[path]] for path, value in by_path.items()}
    if not any(by_path.values()):
        raise InputError(f"{strategy} freezes everything: no parameter would train")
    if min(by_path.values()) < 0:
        raise InputError(f"{strategy}: a multiplier is below 0")
    return unflatten_dict(by_path, sep="/")


def _group_factors(layout: Layout, group_rates: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The factor of each group; 1 where no expression matches.

    Raises:
        InputError: a bad expression, or one that decides no group.
    """
    rates = compiled("tuning.group_rates", group_rates)
    factors = dict.fromkeys(layout.groups, 1.0)
    used = set()
    for group in layout.groups:
        hit = first_match(rates, group)
        if hit is not None:
            used.add(hit)
            factors[group] = rates[hit][1]
    for i, (regex, _) in enumerate(rates):
        if i not in used:
            groups = ", ".join(layout.groups)
            raise InputError(f"tuning.group_rates: {regex.pattern!r} decides no group; there are: {groups}")
    return factors


def frozen_groups(layout: Layout, multipliers: Tree) -> frozenset[str]:
    """Groups in which nothing trains."""
    moving = {layout.group_of[path] for path, value in flatten_dict(multipliers, sep="/").items() if value}
    return frozenset(layout.groups) - moving


def digest(leaves: Mapping[str, Any]) -> str:
    """SHA-256 over arrays in order of their paths: path, type, shape and bytes of each."""
    sha256 = hashlib.sha256()
    for path, leaf in sorted(leaves.items()):
        array = np.ascontiguousarray(leaf)
        sha256.update(f"{path} {array.dtype} {array.shape}".encode())
        sha256.update(array.data)
    return sha256.hexdigest()
