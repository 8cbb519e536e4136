"""What a strategy may add to a network, as data; `models.additions` builds it."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Lora:
    """Low-rank updates beside frozen linear layers (2106.09685): y = layer(x) + scale · (x A) B.

    Attributes:
        rank: columns of A.
        alpha: scale is alpha / rank.
        dropout: of x before A, in training.
        rslora: scale is alpha / √rank instead (2312.03732).
        targets: expressions of whole module paths in the backbone (`block_.*/attention/qkv`); empty takes the
            backbone's own `lora_targets`.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    targets: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclass(frozen=True)
class Adapter:
    """Bottlenecks that start as the identity.

    Attributes:
        bottleneck: units between down and up projection.
        parallel: beside the MLP (AdaptFormer, 2205.13535) instead of behind each residual branch (1902.00751).
        scale: of what they add; AdaptFormer's own is 0.1.
    """

    bottleneck: int = 64
    parallel: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """Learned tokens among a transformer's own (VPT, 2203.12119).

    Attributes:
        tokens: how many.
        deep: new ones before each block, instead of some that pass through all.
    """

    tokens: int = 10
    deep: bool = False


@dataclass(frozen=True)
class MlpHead:
    """A hidden layer with GELU in the head.

    Attributes:
        hidden: its units.
    """

    hidden: int = 512


Addition = Lora | Adapter | Prompt | MlpHead

# Strategy -> what it adds.
ADDITIONS: dict[str, type] = {"lora": Lora, "adapter": Adapter, "prompt": Prompt, "mlp_head": MlpHead}

_LEAVES = re.compile(r"lora_[ab]|adapter_(down|up)(_bias)?|prompt")


def is_added(path: str) -> bool:
    """Whether a parameter of the backbone was added to it."""
    return _LEAVES.fullmatch(path.split("/")[-1]) is not None
