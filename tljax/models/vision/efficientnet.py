"""EfficientNet (1905.11946), -Lite, EfficientNetV2 (2104.00298) and MobileNetV2 (1801.04381)."""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn

from tljax.models.convolution import TF, BatchNorm, Conv, ConvBackbone, SqueezeExcite, blocks, rounded

ACTIVATIONS = {"": lambda x: x, "silu": nn.silu, "relu6": nn.relu6, "relu": nn.relu, "hard_swish": nn.hard_swish}


class BlockSpec(NamedTuple):
    """A block's row in the paper's table.

    Attributes:
        operator: `mbconv`, `fused` or `conv`, as in `EfficientNet`.
        inputs: channels that it is given.
        width: channels that it gives.
        size: of its kernel over space.
        stride: of that.
        hidden: channels that it has inside.
        squeeze: channels between squeeze and excite; 0 for none.
        is_residual: whether its input is added to its output.
        activation: after each convolution but the last.
    """

    operator: str
    inputs: int
    width: int
    size: int
    stride: int
    hidden: int
    squeeze: int
    is_residual: bool
    activation: str


class ConvNorm(nn.Module):
    """A convolution, its BatchNorm, and the activation after it, none where its name is empty."""

    features: int
    size: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: str = ""
    padding: str = "symmetric"
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x, mode):
        conv = Conv(self.features, self.size, self.stride, False, self.depthwise, self.padding, name="conv")
        x = BatchNorm(eps=self.eps, name="norm")(conv(x), mode)
        return ACTIVATIONS[self.activation](x)


class Block(nn.Module):
    """An inverted residual: to more channels, over space, and back to few without an activation.

    Attributes:
        spec: what it is.
        conv: a `ConvNorm` of the network's padding and eps.
        squeeze_excite: a `SqueezeExcite` of the network's activations.
    """

    spec: BlockSpec
    conv: Any
    squeeze_excite: Any

    @nn.compact
    def __call__(self, x, mode):
        spec, hidden = self.spec, self.spec.hidden
        expand = partial(self.conv, activation=spec.activation)
        over_space = partial(expand, size=spec.size, stride=spec.stride)
        if spec.operator == "conv":
            y = over_space(spec.width, name="conv")(x, mode)
            return x + y if spec.is_residual else y
        if spec.operator == "fused":
            y = over_space(hidden, name="expand")(x, mode)
        else:
            y = expand(hidden, name="expand")(x, mode) if hidden != spec.inputs else x
            y = over_space(hidden, depthwise=True, name="depthwise")(y, mode)
        if spec.squeeze:
            y = self.squeeze_excite(spec.squeeze, name="squeeze_excite")(y)
        y = self.conv(spec.width, name="project")(y, mode)
        return x + y if spec.is_residual else y


class InvertedResiduals(ConvBackbone):
    """What the networks of a `stem`, a `Block` for each of its `specs`, and a `conv_head` share."""

    @property
    def groups(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(len(self.specs))), "conv_head")

    @property
    def residual_branches(self) -> str:
        numbers = "|".join(str(i) for i, spec in enumerate(self.specs) if spec.is_residual)
        return rf"block_({numbers})/(project|conv)"

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        return (r"block_\d+/(expand|project)/conv",)  # the 1x1 convolutions of the blocks

    @property
    def input_kernel(self) -> str:
        return "params/stem/conv/kernel"

    @property
    def feature_dim(self) -> int:
        return self.head_width


class EfficientNet(InvertedResiduals):
    """A network of inverted residuals that ends in globally pooled features; by default EfficientNet-B0.

    Attributes:
        operators: of each stage, `mbconv` (depthwise over space), `fused` (Fused-MBConv, which expands over space), or
            `conv` (Fused-MBConv that expands nothing).
        depths: blocks of each stage.
        widths: channels of each stage.
        sizes: of each stage's kernels.
        strides: of each stage's first block.
        expansions: how many times as many channels a block has inside.
        squeeze: channels between squeeze and excite, as a share of those that the block is given; 0 for none.
        stem_width: channels after the stem.
        first_shortcut: whether the first block is residual if its widths allow; not in transformers' MobileNetV2.
        head_width: channels of the last convolution, which are the features.
        activation: `silu`, or `relu6` (Lite, MobileNetV2).
        padding: zeros around an image: `symmetric` as in PyTorch, or TensorFlow's `same`, for what was trained there.
        eps: of BatchNorm; 1e-3 in TensorFlow.
        pool: `mean` over the pixels of the last map, `max`, or `avgmax`, the mean of both (timm).

    Groups: `stem`, one `block_i` per block in order, `conv_head`.
    """

    operators: tuple[str, ...] = ("mbconv",) * 7
    depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    sizes: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    expansions: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    squeeze: float = 0.25
    stem_width: int = 32
    first_shortcut: bool = True
    head_width: int = 1280
    activation: Literal["silu", "relu6"] = "silu"
    padding: Literal["symmetric", "same"] = "symmetric"
    eps: float = 1e-5
    pool: Literal["mean", "max", "avgmax"] = "mean"

    @property
    def specs(self) -> list[BlockSpec]:
        """What each block is."""
        specs: list[BlockSpec] = []
        inputs = self.stem_width
        for stage, i in blocks(self.depths):
            operator, width = self.operators[stage], self.widths[stage]
            stride = self.strides[stage] if i == 0 else 1
            squeeze = round(inputs * self.squeeze) if operator == "mbconv" else 0
            is_residual = stride == 1 and inputs == width and (bool(specs) or self.first_shortcut)
            table = self.sizes[stage], stride, self.expansions[stage] * inputs
            specs.append(BlockSpec(operator, inputs, width, *table, squeeze, is_residual, self.activation))
            inputs = width
        return specs

    def setup(self):
        conv = partial(ConvNorm, padding=self.padding, eps=self.eps)
        squeeze_excite = partial(SqueezeExcite, activation=ACTIVATIONS[self.activation])
        self.stem = conv(self.stem_width, 3, 2, activation=self.activation)
        self.block = [Block(spec, conv, squeeze_excite) for spec in self.specs]
        self.conv_head = conv(self.head_width, activation=self.activation)

    def layers(self) -> list[nn.Module]:
        return [self.stem, *self.block, self.conv_head]


def scaled(
    base: EfficientNet, width: float, depth: float, least: float = 0.9, fixed_ends: bool = False
) -> EfficientNet:
    """Returns a network scaled as one (section 3.3): wider and deeper, for the images of its own size.

    Args:
        base: the network at scale 1.
        width, depth: how many times as many channels and blocks it has.
        least: as in `rounded`.
        fixed_ends: whether stem, head and the depth of the first and last stage stay as they are, as in Lite.
    """
    depths = [math.ceil(count * depth) for count in base.depths]
    changes: dict[str, Any] = {"widths": tuple(rounded(count * width, least) for count in base.widths)}
    if fixed_ends:
        depths[0], depths[-1] = base.depths[0], base.depths[-1]
    else:
        changes["stem_width"] = rounded(base.stem_width * width, least)
        changes["head_width"] = rounded(base.head_width * width, least)
    return base.clone(depths=tuple(depths), **changes)


# Width and depth of B0 to B7, and of Lite0 to Lite4.
_COMPOUND = ((1, 1), (1, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2, 3.1))


def _efficientnet_v2(*depths: int, widths: tuple[int, ...], **rest: Any) -> EfficientNet:
    """An EfficientNetV2: three stages without a depthwise convolution, and then three or four with."""
    return EfficientNet(
        operators=("conv", "fused", "fused", *("mbconv",) * (len(depths) - 3)),
        depths=depths,
        widths=widths,
        sizes=(3,) * len(depths),
        strides=(1, 2, 2, 2, 1, 2, 1)[: len(depths)],
        expansions=(1, 4, 4, 4, 6, 6, 6)[: len(depths)],
        **rest,
    )


_B0, _LITE0 = EfficientNet(), EfficientNet(squeeze=0, activation="relu6")
_V2_B0 = _efficientnet_v2(1, 2, 2, 3, 5, 8, widths=(16, 32, 48, 96, 112, 192))
_V2_S = _efficientnet_v2(2, 4, 4, 6, 9, 15, widths=(24, 48, 64, 128, 160, 256), stem_width=24)
_V2_M = _efficientnet_v2(3, 5, 5, 7, 14, 18, 5, widths=(24, 48, 80, 160, 176, 304, 512), stem_width=24)
_V2_L = _efficientnet_v2(4, 7, 7, 10, 19, 25, 7, widths=(32, 64, 96, 192, 224, 384, 640))
_EFFICIENTNETS: dict[str, EfficientNet] = {
    **{f"efficientnet_b{i}": scaled(_B0, *scale) for i, scale in enumerate(_COMPOUND)},
    **{f"efficientnet_lite{i}": scaled(_LITE0, *_COMPOUND[i], fixed_ends=True) for i in range(5)},
    # These take the nearest width, however much less it is.
    **{f"efficientnetv2_b{i}": scaled(_V2_B0, *_COMPOUND[i], least=0) for i in range(4)},
    "efficientnetv2_s": _V2_S,
    "efficientnetv2_m": _V2_M,
    "efficientnetv2_l": _V2_L,
}
_MOBILENETV2 = EfficientNet(
    depths=(1, 2, 3, 4, 3, 3, 1),
    widths=(16, 24, 32, 64, 96, 160, 320),
    sizes=(3,) * 7,
    strides=(1, 2, 2, 2, 1, 2, 1),
    squeeze=0,
    activation="relu6",
)
# Ross Wightman's, of before the paper's own code was out.
_EFFICIENTNETS_RW = {
    "efficientnetv2_rw_t": scaled(_V2_S, 0.8, 0.9),
    "efficientnetv2_rw_s": _V2_S.clone(
        operators=("fused", *_V2_S.operators[1:]), widths=(*_V2_S.widths[:-1], 272), head_width=1792
    ),
}
NETWORKS: dict[str, EfficientNet] = {
    **_EFFICIENTNETS,
    **{f"tf_{name}": module.clone(**TF) for name, module in _EFFICIENTNETS.items()},
    **_EFFICIENTNETS_RW,
    "mobilenetv2_050": scaled(_MOBILENETV2, 0.5, 1).clone(head_width=1280),
    "mobilenetv2_100": _MOBILENETV2,
    "mobilenetv2_140": scaled(_MOBILENETV2, 1.4, 1),
}
