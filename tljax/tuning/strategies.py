"""Strategies: which parameters train, and how fast, decided by name alone.

A strategy sees the parameters' paths and the ordered groups that they belong to (`Layout`), and gives every path a
learning-rate multiplier; 0 freezes it. Each is for images and text alike.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from flax.traverse_util import flatten_dict

from tljax.config import choices, ranges
from tljax.errors import InputError
from tljax.peft.config import is_adapter_param

HEAD = "head"
_ENDS = ("norm", "pooler", "conv_head")  # what stands after the blocks goes with the last of them, as in timm
Patterns = Sequence[tuple[re.Pattern, float]]


@dataclass(frozen=True)
class Layout:
    """A model's parameters by name.

    Attributes:
        groups: from the input to the output; the last is the head.
        group_of: parameter path (`backbone/block_0/mlp/fc1/kernel`) -> its group.
        pooled_norm: whether the final norm stands after the pooling (timm's `fc_norm`) and so belongs to the head.
    """

    groups: tuple[str, ...]
    group_of: Mapping[str, str]
    pooled_norm: bool = False

    @classmethod
    def from_params(cls, params: Any, groups: Sequence[str], pooled_norm: bool) -> "Layout":
        """Returns the layout of a classifier.

        Args:
            params: the classifier's.
            groups, pooled_norm: as its backbone publishes them.
        """
        paths = flatten_dict(params, sep="/")
        group_of = {path: HEAD if path.startswith(f"{HEAD}/") else path.split("/")[1] for path in paths}
        return cls((*groups, HEAD), group_of, pooled_norm)

    @property
    def blocks(self) -> list[str]:
        """The groups below the head, without a norm, pooler or convolution after the blocks: it goes with the last."""
        return [group for group in self.groups[:-1] if group not in _ENDS]

    def index(self, group: str) -> int:
        """Returns the place of a group: 0 at the input, the head's the last."""
        return self.groups.index(group)

    def by_group(self, multiplier: Callable[[str], float]) -> dict[str, float]:
        """Returns the multiplier of each path, where a function gives that of its group."""
        return {path: float(multiplier(group)) for path, group in self.group_of.items()}

    def by_path(self, trains: Callable[[str], bool]) -> dict[str, float]:
        """Returns 1 for the head and for each path that `trains`, else 0."""
        return {path: float(group == HEAD or trains(path)) for path, group in self.group_of.items()}


def linear_probe(layout: Layout) -> dict[str, float]:
    """Trains only the head."""
    return layout.by_group(lambda group: group == HEAD)


def full(layout: Layout) -> dict[str, float]:
    """Trains everything alike."""
    return layout.by_group(lambda group: 1)


def last_k(layout: Layout, *, k: ranges.Positive) -> dict[str, float]:
    """Trains the head and the `k` groups below it; what stands between blocks and head comes along with the last block.

    Raises:
        InputError: the backbone has fewer groups.
    """
    trained = {*layout.blocks[-_checked_k(layout, k) :], *_ENDS, HEAD}
    return layout.by_group(lambda group: group in trained)


def first_k(layout: Layout, *, k: ranges.Positive) -> dict[str, float]:
    """Trains the `k` groups nearest the input, and the head.

    Raises:
        InputError: the backbone has fewer groups.
    """
    trained = {*layout.blocks[: _checked_k(layout, k)], HEAD}
    return layout.by_group(lambda group: group in trained)


def _checked_k(layout: Layout, k: ranges.Positive) -> int:
    count = len(layout.blocks)
    if not 1 <= k <= count:
        raise InputError(f"tuning.k must be between 1 and {count}, not {k}; without a block use linear_probe")
    return k


def surgical(layout: Layout, *, groups: Annotated[tuple[str, ...], ranges.NotEmpty()]) -> dict[str, float]:
    """Trains the named groups and the head (surgical fine-tuning, 2210.11466).

    Raises:
        InputError: there is no such group; the nearest is named.
    """
    for group in groups:
        if group not in layout.groups:
            near = difflib.get_close_matches(str(group), layout.groups, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(layout.groups)}"
            raise InputError(f"tuning.groups: no group {group!r}: {hint}")
    return layout.by_group(lambda group: group in {*groups, HEAD})


def layer_decay(layout: Layout, *, decay: ranges.Part, norm_with: choices.NormWith | None = None) -> dict[str, float]:
    """Trains each layer `decay` times as fast as the layer above: decay^(L+1-id) (BEiT, 2106.08254).

    Ids: stem 0, block i -> i+1, head L+1. The final norm (or pooler, or convolution) has that of `norm_with`: the
    `last_block`'s, or the `head`'s as in BEiT's own code. By default it is timm's (`param_groups_layer_decay`): the
    last block's before the pooling, the head's after it. The groups are those of `layout`.
    """
    norm_with = norm_with or ("head" if layout.pooled_norm else "last_block")
    blocks = layout.blocks
    depth = {group: len(blocks) - i for i, group in enumerate(blocks)}
    depth |= dict.fromkeys(_ENDS, int(norm_with != "head")) | {HEAD: 0}
    return layout.by_group(lambda group: decay ** depth[group])


def discriminative(layout: Layout, *, factor: Annotated[float, ranges.Interval(at_least=1)] = 2.6) -> dict[str, float]:
    """Trains each group at the rate of the group above divided by `factor` (ULMFiT, 1801.06146)."""
    return layer_decay(layout, decay=1 / factor)


def bias_only(layout: Layout) -> dict[str, float]:
    """Trains the biases and the head (BitFit, 2106.10199)."""
    return layout.by_path(lambda path: path.split("/")[-1] == "bias")


def norm_only(layout: Layout) -> dict[str, float]:
    """Trains scale and shift of the normalization layers, and the head (as for BatchNorm in 2003.00152).

    Raises:
        InputError: the network has none.
    """
    multipliers = layout.by_path(lambda path: path.split("/")[-2].startswith("norm"))
    if all(not value for path, value in multipliers.items() if layout.group_of[path] != HEAD):
        raise InputError("norm_only: this network has no normalization layers; bias_only trains its biases")
    return multipliers


def adapters_and_head(layout: Layout) -> dict[str, float]:
    """Trains the adapters, and the head; the backbone's own parameters are frozen."""
    return layout.by_path(is_adapter_param)


def pattern(layout: Layout, *, patterns: Annotated[choices.Multipliers, ranges.NotEmpty()]) -> dict[str, float]:
    """Trains by ordered (regex, multiplier) pairs over whole parameter paths; the first that matches counts.

    Raises:
        InputError: a pattern that decides no parameter, a parameter that no pattern covers, or a bad expression.
    """
    multipliers, used = {}, set()
    pairs = compile_patterns("tuning.patterns", patterns)
    for path in layout.group_of:
        hit = first_match(pairs, path)
        if hit is None:
            raise InputError(f"tuning.patterns: no pattern covers {path}; end with ('.*', 0.0) to freeze the rest")
        used.add(hit)
        multipliers[path] = pairs[hit][1]
    unused = [regex.pattern for i, (regex, _) in enumerate(pairs) if i not in used]
    if unused:
        examples = ", ".join(list(layout.group_of)[:: max(1, len(layout.group_of) // 3)][:3])
        raise InputError(f"tuning.patterns: {unused[0]!r} decides no parameter; paths look like {examples}")
    return multipliers


def compile_patterns(key: str, patterns: Sequence[tuple[str, float]]) -> Patterns:
    """Returns (regex, multiplier) pairs of a config, compiled.

    Raises:
        InputError: they are something else; `key` is what the config calls them.
    """
    try:
        return [(re.compile(regex), float(multiplier)) for regex, multiplier in patterns]
    except (re.error, TypeError, ValueError) as error:
        raise InputError(f"{key} must be ((regex, multiplier), …): {error}") from error


def first_match(patterns: Patterns, name: str) -> int | None:
    """Returns the place of the first pattern that matches the whole name."""
    return next((i for i, (regex, _) in enumerate(patterns) if regex.fullmatch(name)), None)


STRATEGIES: dict[str, Callable[..., dict[str, float]]] = {
    "linear_probe": linear_probe,
    "last_k": last_k,
    "first_k": first_k,
    "surgical": surgical,
    "full": full,
    "layer_decay": layer_decay,
    "discriminative": discriminative,
    "bias_only": bias_only,
    "norm_only": norm_only,
    "pattern": pattern,
    "lora": adapters_and_head,
    "adapter": adapters_and_head,
    "prompt": adapters_and_head,
    "mlp_head": linear_probe,
}
