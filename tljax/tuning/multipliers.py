"""A tuning strategy is a tree of learning-rate multipliers over the parameters; 0 means frozen.

The optimizer's labels, what is differentiated, which BatchNorms move and what a run costs all follow from that tree.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from tljax.config.ranges import shown
from tljax.config.references import error_in, is_reference, resolve_reference
from tljax.errors import InputError
from tljax.peft.config import ADAPTERS
from tljax.tuning.strategies import STRATEGIES, Layout, compile_patterns, first_match

Tree = Any  # a nested dict of arrays (or of what stands for them)


def multiplier_tree(
    strategy: str,
    arguments: Mapping[str, Any],
    layout: Layout,
    group_rates: Sequence[tuple[str, float]] = (),
) -> Tree:
    """Returns a strategy's multipliers, in the parameters' own structure.

    Args:
        strategy, arguments: a row of `STRATEGIES`, or `module:name`, and what it is given, checked (`TuningConfig`).
        layout: the parameters' names and groups.
        group_rates: ((regex, factor), …) over group names; the first that matches multiplies the strategy's value.

    Raises:
        InputError: the strategy does not suit the network or gives no multipliers, or nothing would train.
    """
    function = resolve_reference(strategy, "tuning.strategy") if is_reference(strategy) else STRATEGIES[strategy]
    try:
        by_path = function(layout, **({} if strategy in ADAPTERS else arguments))
    except Exception as error:
        if isinstance(error, InputError) or not is_reference(strategy):
            raise
        raise error_in(strategy, "tuning.strategy", error) from error
    if not isinstance(by_path, Mapping):
        raise InputError(f"{strategy} must return a dict of a multiplier for each path, not {shown(by_path)}")
    if missing := sorted(set(layout.group_of) - set(by_path)):
        raise InputError(f"{strategy} gives {len(missing)} parameters no multiplier, such as {missing[0]}")
    if extra := set(by_path) - set(layout.group_of):
        raise InputError(f"{strategy} gives {min(extra, key=str)} a multiplier, and there is no such parameter")
    factors = _group_factors(layout, group_rates)
    try:
        by_path = {path: float(by_path[path]) * factors[group] for path, group in layout.group_of.items()}
    except (TypeError, ValueError) as error:
        raise InputError(f"{strategy}: a multiplier must be a number ({error})") from error
    if not any(by_path.values()):
        raise InputError(f"{strategy} freezes everything: no parameter would train")
    for path, value in by_path.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{strategy}: a multiplier must be 0 or more and finite, not {value} as that of {path}")
    return unflatten_dict(by_path, sep="/")


def _group_factors(layout: Layout, group_rates: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Returns the factor of each group; 1 where no expression matches.

    Raises:
        InputError: a bad expression, or one that decides no group.
    """
    rates = compile_patterns("tuning.group_rates", group_rates)
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
    """Returns the groups in which nothing trains."""
    trained = {layout.group_of[path] for path, value in flatten_dict(multipliers, sep="/").items() if value}
    return frozenset(layout.groups) - trained


def digest(leaves: Mapping[str, Any]) -> str:
    """Returns the SHA-256 over arrays in order of their paths: path, type, shape and bytes of each."""
    sha256 = hashlib.sha256()
    for path, leaf in sorted(leaves.items()):
        array = np.ascontiguousarray(leaf)
        sha256.update(f"{path} {array.dtype} {array.shape}".encode())
        sha256.update(array.reshape(-1).view(np.uint8).data)  # bfloat16 has no buffer of its own
    return sha256.hexdigest()
