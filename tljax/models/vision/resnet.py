"""ResNet v1 and v1.5 (1512.03385) and ResNet-D (1812.01187), basic and bottleneck, of any depth and width.

ResNeXt (1611.05431), wide ResNet (1605.07146), SE-ResNet (1709.01507) and ECA-Net (1910.03151) are options of it.
"""

import math
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from tljax.errors import InputError
from tljax.models.convolution import BatchNorm, Conv, ConvBackbone, SqueezeExcite, blocks, rounded
from tljax.models.kernels import conv_cpu

_STEM_STRIDE = 4


def check_stem(size: int) -> None:
    """Raises InputError for images smaller than the stride of a stem."""
    if size < _STEM_STRIDE:
        raise InputError(f"image size {size} is below the stem's stride of {_STEM_STRIDE}: give more pixels")


class ConvNorm(nn.Module):
    """A convolution and what normalizes it: a BatchNorm, or only the bias that one was folded into."""

    features: int
    size: int = 1
    stride: int = 1
    norm: str = "batch"
    zero_init: bool = False
    groups: int = 1

    @nn.compact
    def __call__(self, x, mode):
        use_bias = self.norm == "folded"
        x = Conv(self.features, self.size, self.stride, use_bias, groups=self.groups, name="conv")(x)
        if self.norm == "folded":
            return x
        scale = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        return BatchNorm(scale, name="norm")(x, mode)


class _Stem(nn.Module):
    """A 7x7 convolution, or three 3x3 of which the first two have half the width; then a max pool."""

    width: int
    kind: str
    norm: str
    pool_padding: tuple[int, int]

    @nn.compact
    def __call__(self, x, mode):
        half = self.width // 2
        layers = [(self.width, 7, 2)] if self.kind == "plain" else [(half, 3, 2), (half, 3, 1), (self.width, 3, 1)]
        for n, (width, size, stride) in enumerate(layers, 1):
            x = nn.relu(ConvNorm(width, size, stride, self.norm, name=f"conv{n}")(x, mode))
        return conv_cpu.max_pool(x, self.pool_padding)


class _EfficientAttention(nn.Module):
    """Weighs each channel by what the means of those beside it say (1910.03151)."""

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        size = max(int(abs(math.log2(channels) + 1) / 2) // 2 * 2 + 1, 3)  # odd: the next one up
        kernel = self.param("kernel", nn.initializers.normal(size**-0.5), (size,))
        means = jnp.pad(jnp.mean(x, axis=(1, 2)), ((0, 0), (size // 2, size // 2)))
        y = sum(kernel[i] * means[:, i : i + channels] for i in range(size))
        return x * nn.sigmoid(y)[:, None, None]


class _Block(nn.Module):
    """A residual block; `kind` is what stands between the shortcut's ends.

    Attributes:
        kind, stride_on, avg_down, norm, attention: as in `ResNet`.
        width: its channels, of which a bottleneck gives four times as many.
        inner: channels of a bottleneck's 3x3 convolution.
        groups: of that.
        stride: of the block.
    """

    kind: str
    width: int
    inner: int
    groups: int
    stride: int
    stride_on: str
    avg_down: bool
    norm: str
    attention: str

    @nn.compact
    def __call__(self, x, mode):
        conv = partial(ConvNorm, norm=self.norm)
        if self.kind == "basic":
            out = self.width
            y = nn.relu(conv(self.width, 3, self.stride, name="conv1")(x, mode))
            y = conv(out, 3, zero_init=True, name="conv2")(y, mode)
        else:
            out = 4 * self.width
            first, second = (self.stride, 1) if self.stride_on == "1x1" else (1, self.stride)
            y = nn.relu(conv(self.inner, 1, first, name="conv1")(x, mode))
            y = nn.relu(conv(self.inner, 3, second, groups=self.groups, name="conv2")(y, mode))
            y = conv(out, 1, zero_init=True, name="conv3")(y, mode)
        if self.attention == "se":
            y = SqueezeExcite(rounded(out / 16, least=0), name="attention")(y)
        elif self.attention == "eca":
            y = _EfficientAttention(name="attention")(y)
        if self.stride != 1 or x.shape[-1] != out:
            stride = self.stride
            if self.avg_down and stride != 1:
                x, stride = _halved(x), 1
            x = conv(out, 1, stride, name="downsample")(x, mode)
        return nn.relu(x + y)


def _halved(x):
    """The mean of every 2x2 square; at the edge of an odd map, of the pixels that exist."""
    pad = ((0, x.shape[1] % 2), (0, x.shape[2] % 2))
    # Flax divides by counts in float32.
    return nn.avg_pool(x, (2, 2), (2, 2), pad, count_include_pad=False).astype(x.dtype)


class ResNet(ConvBackbone):
    """A residual network that ends in globally pooled features.

    Attributes:
        depths: blocks per stage.
        widths: channels per stage (inside the block; a bottleneck ends with four times as many).
        stem_width: channels after the stem.
        kind: `basic` (two 3x3) or `bottleneck` (1x1, 3x3, 1x1).
        stride_on: which convolution of a bottleneck strides: `1x1` (v1, the paper) or `3x3` (v1.5).
        stem: `plain`, one 7x7 convolution, or `deep`, three 3x3 (-D).
        avg_down: whether the shortcut halves its map by an average pool (-D) instead of a strided convolution.
        norm: `batch`, or `folded` for weights whose BatchNorm was folded into convolution biases.
        stem_pool_padding: zeros before and after each axis of the stem's max pool: (1, 1) in PyTorch,
            (0, 1) in Caffe's ceil mode.
        pool: `mean` over the pixels of the last map, `max`, or `avgmax`, the mean of both (timm).
        cardinality: groups of a bottleneck's 3x3 convolution (ResNeXt).
        base_width: channels of each of them where `widths` is 64, and in proportion elsewhere (ResNeXt, wide ResNet).
        attention: what weighs the channels that a block gives: `none`, `se` (squeeze and excite) or `eca`.

    Groups: `stem`, one `block_i` per residual block in order.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 64
    kind: Literal["basic", "bottleneck"] = "bottleneck"
    stride_on: Literal["1x1", "3x3"] = "3x3"
    stem: Literal["plain", "deep"] = "plain"
    avg_down: bool = False
    norm: Literal["batch", "folded"] = "batch"
    stem_pool_padding: tuple[int, int] = (1, 1)
    pool: Literal["mean", "max", "avgmax"] = "mean"
    cardinality: int = 1
    base_width: int = 64
    attention: Literal["none", "se", "eca"] = "none"

    @property
    def groups(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(sum(self.depths))))

    @property
    def residual_branches(self) -> str:
        ends = "conv2" if self.kind == "basic" else "conv3"
        return r"block_\d+/" + (ends if self.attention == "none" else "attention")

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        return (r"block_\d+/\w+/conv",)  # the 1x1 convolutions of the blocks

    @property
    def input_kernel(self) -> str:
        return "params/stem/conv1/conv/kernel"

    @property
    def feature_dim(self) -> int:
        return self.widths[-1] * (1 if self.kind == "basic" else 4)

    def setup(self):
        # The attribute `stem` says which; the group of this name is the layer itself.
        self.stem_layer = _Stem(self.stem_width, self.stem, self.norm, self.stem_pool_padding, name="stem")
        self.block = [
            _Block(
                self.kind,
                self.widths[stage],
                int(self.widths[stage] * self.base_width / 64) * self.cardinality,
                self.cardinality,
                2 if i == 0 and stage > 0 else 1,
                self.stride_on,
                self.avg_down,
                self.norm,
                self.attention,
            )
            for stage, i in blocks(self.depths)
        ]

    def layers(self) -> list[nn.Module]:
        return [self.stem_layer, *self.block]

    def resized(self, image_size: int) -> "ResNet":
        """Returns itself, as a convolution takes any size.

        Raises:
            InputError: a pixel that the stem gives would be of more padding than image.
        """
        check_stem(image_size)
        return self


_HALF = (32, 64, 128, 256)
_D = {"stem": "deep", "avg_down": True}
_101 = (3, 4, 23, 3)  # depths
NETWORKS: dict[str, ResNet] = {
    "resnet18": ResNet(depths=(2, 2, 2, 2), kind="basic"),
    "resnet34": ResNet(kind="basic"),
    "resnet50": ResNet(),
    "resnet50_v1": ResNet(stride_on="1x1"),
    "resnet50_half_v1": ResNet(widths=_HALF, stride_on="1x1"),
    "resnet50_half_v1_folded": ResNet(widths=_HALF, stride_on="1x1", norm="folded", stem_pool_padding=(0, 1)),
    "resnet101": ResNet(depths=_101),
    "resnet152": ResNet(depths=(3, 8, 36, 3)),
    "resnet18d": ResNet(depths=(2, 2, 2, 2), kind="basic", **_D),
    "resnet34d": ResNet(kind="basic", **_D),
    "resnet50d": ResNet(**_D),
    "resnet101d": ResNet(depths=_101, **_D),
    "resnet152d": ResNet(depths=(3, 8, 36, 3), **_D),
    "resnext50_32x4d": ResNet(cardinality=32, base_width=4),
    "resnext50d_32x4d": ResNet(cardinality=32, base_width=4, **_D),
    "resnext101_32x4d": ResNet(depths=_101, cardinality=32, base_width=4),
    "resnext101_32x8d": ResNet(depths=_101, cardinality=32, base_width=8),
    "resnext101_64x4d": ResNet(depths=_101, cardinality=64, base_width=4),
    "seresnext50_32x4d": ResNet(cardinality=32, base_width=4, attention="se"),
    "seresnext101_32x4d": ResNet(depths=_101, cardinality=32, base_width=4, attention="se"),
    "wide_resnet50_2": ResNet(base_width=128),
    "wide_resnet101_2": ResNet(depths=_101, base_width=128),
    "seresnet50": ResNet(attention="se"),
    "ecaresnet50d": ResNet(attention="eca", **_D),
    "ecaresnet101d": ResNet(depths=_101, attention="eca", **_D),
    "ecaresnetlight": ResNet(depths=(1, 1, 11, 3), attention="eca", avg_down=True),
}
