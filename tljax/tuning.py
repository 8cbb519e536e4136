"""A tuning strategy is a tree of learning-rate multipliers over the parameters; 0 means frozen.

A strategy sees only names: the parameters' paths and the ordered groups that they belong to (`Layout`). It gives
every path a multiplier. The optimizer's labels, what is differentiated, which BatchNorms move and what a run costs
all follow from that tree.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from tljax.errors import InputError

Tree = Any  # a nested dict of arrays (or of what stands for them)
HEAD = "head"


@dataclass(frozen=True)
class Layout:
    """A model's parameters by name.

    Attributes:
        groups: from the input to the output; the last is the head.
        group_of: parameter path (`backbone/block_0/mlp/fc1/kernel`) -> its group.
    """

    groups: tuple[str, ...]
    group_of: Mapping[str, str]

    @classmethod
    def of(cls, params: Tree, groups: Sequence[str]) -> "Layout":
        """The layout of a classifier's `params`, whose backbone publishes `groups`."""
        paths = flatten_dict(params, sep="/")
        group_of = {path: HEAD if path.startswith(f"{HEAD}/") else path.split("/")[1] for path in paths}
        return cls((*groups, HEAD), group_of)

    def by_group(self, multiplier: Callable[[str], float]) -> dict[str, float]:
        """One multiplier per group, given to each of its paths."""
        return {path: float(multiplier(group)) for path, group in self.group_of.items()}


def linear_probe(layout: Layout) -> dict[str, float]:
    """Only the head trains."""
    return layout.by_group(lambda group: group == HEAD)


def full(layout: Layout) -> dict[str, float]:
    """Everything trains alike."""
    return layout.by_group(lambda group: 1)


def last_k(layout: Layout, *, k: int) -> dict[str, float]:
    """The head and the `k` groups below it train; a final norm comes along with the block under it.

    Raises:
        InputError: the backbone has fewer groups, or `k` is below 1.
    """
    blocks = [group for group in layout.groups[:-1] if group != "norm"]
    if not 1 <= k <= len(blocks):
        raise InputError(f"tuning.k must be between 1 and {len(blocks)}, not {k}; without a block use linear_probe")
    trained = {*blocks[-k:], "norm", HEAD}
    return layout.by_group(lambda group: group in trained)


def layer_decay(layout: Layout, *, decay: float) -> dict[str, float]:
    """Each layer learns `decay` times as fast as the one above: decay^(L+1-id) (BEiT, 2106.08254).

    Ids: stem 0, block i -> i+1, head L+1. The final norm has the last block's, as in timm
    (`param_groups_layer_decay`); BEiT's own code gives it the head's.

    Raises:
        InputError: `decay` is not in (0, 1].
    """
    if not 0 < decay <= 1:
        raise InputError(f"tuning.decay must be above 0 and at most 1, not {decay}")
    blocks = [group for group in layout.groups[:-1] if group != "norm"]
    depth = {group: len(blocks) - i for i, group in enumerate(blocks)} | {"norm": 1, HEAD: 0}
    return layout.by_group(lambda group: decay ** depth[group])


def pattern(layout: Layout, *, patterns: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Ordered (regex, multiplier) pairs over whole parameter paths; the first that matches counts.

    Raises:
        InputError: a pattern that decides no parameter, a parameter that no pattern covers, or a bad expression.
    """
    multipliers, used = {}, set()
    try:
        compiled = [(re.compile(regex), float(multiplier)) for regex, multiplier in patterns]
    except (re.error, TypeError, ValueError) as error:
        raise InputError(f"tuning.patterns must be ((regex, multiplier), …): {error}") from error
    for path in layout.group_of:
        hit = next((i for i, (regex, _) in enumerate(compiled) if regex.fullmatch(path)), None)
        if hit is None:
            raise InputError(f"tuning.patterns: no pattern covers {path}; end with ('.*', 0.0) to freeze the rest")
        used.add(hit)
        multipliers[path] = compiled[hit][1]
    unused = [regex.pattern for i, (regex, _) in enumerate(compiled) if i not in used]
    if unused:
        some = ", ".join(list(layout.group_of)[:: max(1, len(layout.group_of) // 3)][:3])
        raise InputError(f"tuning.patterns: {unused[0]!r} decides no parameter; paths look like {some}")
    return multipliers


STRATEGIES: dict[str, Callable[..., dict[str, float]]] = {
    "linear_probe": linear_probe,
    "last_k": last_k,
    "full": full,
    "layer_decay": layer_decay,
    "pattern": pattern,
}


def takes(strategy: str) -> list[str]:
    """The names of a strategy's arguments.

    Raises:
        InputError: there is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"no tuning.strategy {strategy!r}; there are: {', '.join(STRATEGIES)}")
    return list(inspect.signature(STRATEGIES[strategy]).parameters)[1:]


def multipliers(strategy: str, arguments: Mapping[str, Any], layout: Layout) -> Tree:
    """The strategy's tree of multipliers, in the parameters' own structure.

    Raises:
        InputError: the strategy or one of its arguments is unknown, missing or unusable, or nothing would train.
    """
    wanted = takes(strategy)
    for name in arguments:
        if name not in wanted:
            raise InputError(f"{strategy} takes no tuning.{name}; it takes: {', '.join(wanted) or 'nothing'}")
    for name in wanted:
        if name not in arguments:
            raise InputError(f"{strategy} needs --config.tuning.{name}=…")
    by_path = STRATEGIES[strategy](layout, **arguments)
    if set(by_path) != set(layout.group_of):
        raise InputError(f"{strategy} left out {sorted(set(layout.group_of) - set(by_path))[:3]}")
    if not any(by_path.values()):
        raise InputError(f"{strategy} freezes everything: no parameter would train")
    if min(by_path.values()) < 0:
        raise InputError(f"{strategy}: a multiplier is below 0")
    return unflatten_dict(by_path, sep="/")


def frozen_groups(layout: Layout, multipliers: Tree) -> frozenset[str]:
    """Groups in which nothing trains."""
    moving = {layout.group_of[path] for path, value in flatten_dict(multipliers, sep="/").items() if value}
    return frozenset(layout.groups) - moving


def select(params: Tree, multipliers: Tree) -> Tree:
    """`params` with `optax.MaskedNode`, which has no leaves, in place of each frozen leaf."""
    return jax.tree.map(lambda m, leaf: leaf if m else optax.MaskedNode(), multipliers, params)


def merge(trainable: Tree, params: Tree, multipliers: Tree) -> Tree:
    """The inverse of `select`: frozen leaves come from `params`, untouched."""
    return jax.tree.map(lambda m, new, old: new if m else old, multipliers, trainable, params)
