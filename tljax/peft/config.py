"""What a strategy may add to a network, as data; `peft.interceptors` applies it."""

import math
from dataclasses import dataclass
from typing import Annotated

from tljax.config.ranges import AboveZero, NotEmpty, Positive, Rate, RegexStr, check_fields

_LEAVES = {"lora_a", "lora_b", "adapter_down", "adapter_down_bias", "adapter_up", "adapter_up_bias", "prompt"}


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (2106.09685): `y = layer(x) + scale * (dropout(x) @ lora_a) @ lora_b`.

    `lora_a` [inputs, rank] starts Kaiming-uniform (a = sqrt 5), `lora_b` [rank, outputs] at zero, as in Microsoft's
    loralib and Hugging Face's peft. Adapts dense layers and 1x1 convolutions (of the pixels that a stride keeps).

    Attributes:
        rank: r, the width in the middle.
        alpha: the scale is `alpha / rank`.
        dropout: the share of the adapter's inputs that noise silences.
        rslora: whether the scale is `alpha / sqrt(rank)` instead (2312.03732).
        targets: regexes of the layers; None is the backbone's own choice, `adapter_targets`.
    """

    rank: Positive = 8
    alpha: AboveZero = 16.0
    dropout: Rate = 0.0
    rslora: bool = False
    targets: Annotated[tuple[RegexStr, ...], NotEmpty()] | None = None

    def __post_init__(self):
        check_fields(self, "tuning")

    @property
    def scale(self) -> float:
        """The factor of the low-rank product: alpha / rank, or alpha / √rank (rsLoRA, 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Adapter:
    """A bottleneck on a residual branch, before the branch is added; `adapter_up` starts at zero, so it adds nothing.

    Houlsby's (1902.00751), after attention and after the MLP: `y + scale * up(gelu(down(y)))`; on a ResNet over the
    channels of each branch's last layer. AdaptFormer's (2205.13535), beside the MLP and nothing else:
    `mlp(x) + scale * up(relu(down(x)))`, `x` normalized as the MLP's. LayerScale, where there is one, comes after.
    `adapter_down` starts as AdaptFormer's, Kaiming-uniform; Houlsby's own starts at a standard deviation of 1e-3.

    Attributes:
        bottleneck: the width in the middle.
        parallel: False for Houlsby's, True for AdaptFormer's.
        scale: 1 for Houlsby's; AdaptFormer uses 0.1.
    """

    bottleneck: Positive = 64
    parallel: bool = False
    scale: AboveZero = 1.0

    def __post_init__(self):
        check_fields(self, "tuning")


@dataclass(frozen=True)
class Prompt:
    """Learned tokens after the first token (VPT, 2203.12119); in a text they are attended to like any word.

    Shallow prompts go in before `block_0` and are taken out after the last block, so what groups in between give
    holds them. Deep ones are new before each block and out after it. For images they start uniform within
    ±sqrt(6 / (3 * patch_size² + width)), as VPT's do; for text normal with standard deviation 0.02.

    Attributes:
        tokens: how many; a block's leaf `prompt` is [tokens, width].
        deep: whether every block has its own.
    """

    tokens: Positive = 10
    deep: bool = False

    def __post_init__(self):
        check_fields(self, "tuning")


@dataclass(frozen=True)
class MlpHead:
    """A head of two layers, `head/hidden` and, after GELU, `head/out`, in place of `head`.

    Attributes:
        hidden: units between them.
    """

    hidden: Positive = 512

    def __post_init__(self):
        check_fields(self, "tuning")


AdapterConfig = Lora | Adapter | Prompt | MlpHead
# Strategy -> what it adds.
ADAPTERS: dict[str, type] = {"lora": Lora, "adapter": Adapter, "prompt": Prompt, "mlp_head": MlpHead}


def is_adapter_param(path: str) -> bool:
    """Tells whether a parameter's path (`…/qkv/lora_a`) is one of `Lora`, `Adapter` or `Prompt`."""
    return path.rsplit("/", 1)[-1] in _LEAVES
