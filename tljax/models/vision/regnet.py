"""RegNetX and RegNetY (2003.13678)."""

from collections import Counter
from typing import Literal

import flax.linen as nn
import numpy as np

from tljax.models.convolution import ConvBackbone, SqueezeExcite
from tljax.models.vision.resnet import ConvNorm


class _Stem(nn.Module):
    """A 3x3 convolution with a stride of 2."""

    width: int

    @nn.compact
    def __call__(self, x, mode):
        return nn.relu(ConvNorm(self.width, 3, 2, name="conv1")(x, mode))


class _Block(nn.Module):
    """A bottleneck that narrows nothing, with a grouped 3x3 convolution (figure 4), and in Y squeeze and excite.

    Attributes:
        width: channels that it has and gives.
        stride: of the 3x3 convolution.
        group_size: channels of a group of it.
        squeeze: channels between squeeze and excite, as a share of those that the block is given; 0 for none.
    """

    width: int
    stride: int
    group_size: int
    squeeze: float

    @nn.compact
    def __call__(self, x, mode):
        groups = self.width // self.group_size
        y = nn.relu(ConvNorm(self.width, name="conv1")(x, mode))
        y = nn.relu(ConvNorm(self.width, 3, self.stride, groups=groups, name="conv2")(y, mode))
        if self.squeeze:
            y = SqueezeExcite(round(x.shape[-1] * self.squeeze), name="squeeze_excite")(y)
        y = ConvNorm(self.width, zero_init=True, name="conv3")(y, mode)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = ConvNorm(self.width, 1, self.stride, name="downsample")(x, mode)
        return nn.relu(x + y)


class RegNet(ConvBackbone):
    """A network whose widths grow along a quantized line, and that ends in globally pooled features.

    Attributes:
        depth: blocks.
        width_start, width_slope, width_factor: w_0, w_a and w_m of the paper: block i would have w_0 + w_a·i channels;
            the nearest w_0 times a power of w_m makes it a stage.
        group_size: channels of a group of the 3x3 convolutions, to a multiple of which widths are rounded.
        squeeze: channels between squeeze and excite, as a share of those that the block is given; 0 for none (X).
        stem_width: channels after the stem.
        pool: `mean` over the pixels of the last map, `max`, or `avgmax`, the mean of both (timm).

    Groups: `stem`, one `block_i` per block in order.
    """

    depth: int = 13
    width_start: int = 24
    width_slope: float = 36.44
    width_factor: float = 2.49
    group_size: int = 8
    squeeze: float = 0.0
    stem_width: int = 32
    pool: Literal["mean", "max", "avgmax"] = "mean"

    @property
    def stages(self) -> list[tuple[int, int, int]]:
        """Depth, width and group size of each stage (equations 2 to 4), in float32 as the networks were made."""
        lines = np.arange(self.depth, dtype=np.float32) * np.float32(self.width_slope) + np.float32(self.width_start)
        powers = np.round(np.log(lines / np.float32(self.width_start)) / np.float32(np.log(self.width_factor)))
        widths = np.float32(self.width_start) * np.power(np.float32(self.width_factor), powers)
        depths = Counter(int(width) for width in np.round(widths / 8) * 8)
        stages = []
        for width, depth in sorted(depths.items()):
            size = min(self.group_size, width)
            stages.append((depth, round(width / size) * size, size))
        return stages

    @property
    def groups(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(self.depth)))

    @property
    def residual_branches(self) -> str:
        return r"block_\d+/conv3"

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        return (r"block_\d+/\w+/conv",)  # the 1x1 convolutions of the blocks

    @property
    def input_kernel(self) -> str:
        return "params/stem/conv1/conv/kernel"

    @property
    def feature_dim(self) -> int:
        return self.stages[-1][1]

    def setup(self):
        self.stem = _Stem(self.stem_width)
        self.block = [
            _Block(width, 2 if i == 0 else 1, size, self.squeeze)
            for depth, width, size in self.stages
            for i in range(depth)
        ]

    def layers(self) -> list[nn.Module]:
        return [self.stem, *self.block]


def _regnets(name: str, squeeze: float, *lines: tuple[str, int, float, float, int, int]) -> dict[str, RegNet]:
    """RegNets by size, from rows of size, w_0, w_a, w_m, group size and depth."""
    return {f"{name}_{size}": RegNet(depth, *line, squeeze) for size, *line, depth in lines}


NETWORKS: dict[str, RegNet] = _regnets(
    *("regnetx", 0.0),
    ("002", 24, 36.44, 2.49, 8, 13),
    ("004", 24, 24.48, 2.54, 16, 22),
    ("008", 56, 35.73, 2.28, 16, 16),
    ("016", 80, 34.01, 2.25, 24, 18),
    ("032", 88, 26.31, 2.25, 48, 25),
    ("080", 80, 49.56, 2.88, 120, 23),
) | _regnets(
    *("regnety", 0.25),
    ("002", 24, 36.44, 2.49, 8, 13),
    ("004", 48, 27.89, 2.09, 8, 16),
    ("006", 48, 32.54, 2.32, 16, 15),
    ("008", 56, 38.84, 2.4, 16, 14),
    ("016", 48, 20.71, 2.65, 24, 27),
    ("032", 80, 42.63, 2.66, 24, 21),
    ("040", 96, 31.41, 2.24, 64, 22),
    ("064", 112, 33.22, 2.27, 72, 25),
    ("080", 192, 76.82, 2.19, 56, 17),
    ("120", 168, 73.36, 2.37, 112, 19),
    ("160", 200, 106.23, 2.48, 112, 18),
    ("320", 232, 115.89, 2.53, 232, 20),
)
