"""MobileNetV3 (1905.02244)."""

from functools import partial
from typing import Literal

import flax.linen as nn
from jaxtyping import Array, Float

from tljax.models.convolution import TF, Conv, SqueezeExcite, blocks, rounded
from tljax.models.vision.efficientnet import Block, BlockSpec, ConvNorm, InvertedResiduals


class MobileNetV3(InvertedResiduals):
    """A network of inverted residuals that pools before its last convolution; by default MobileNetV3-Large.

    Attributes:
        depths: blocks of each stage.
        widths: channels of each stage.
        sizes: of each stage's kernels.
        strides: of each stage's first block.
        expansions: how many times as many channels each block has inside, to a multiple of 8.
        squeezes: stages whose blocks squeeze and excite, to a quarter of the channels that they have inside.
        relu_stages: how many stages, from the first on, have ReLU; the others have hard-swish.
        stem_width: channels after the stem.
        last_width: channels of the 1x1 convolution after the stages, which are pooled.
        head_width: channels of the last convolution, which are the features.
        padding: zeros around an image: `symmetric` as in PyTorch, or TensorFlow's `same`, for what was trained there.
        eps: of BatchNorm; 1e-3 in TensorFlow.
        pool: `mean` over the pixels of the last map, `max`, or `avgmax`, the mean of both (timm).

    Groups: `stem`, one `block_i` per block in order, the 1x1 convolution as one more, `conv_head`.
    """

    depths: tuple[int, ...] = (1, 2, 3, 4, 2, 3)
    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 160)
    sizes: tuple[int, ...] = (3, 3, 5, 3, 3, 5)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2)
    expansions: tuple[float, ...] = (1, 4, 3, 3, 3, 3, 6, 2.5, 2.3, 2.3, 6, 6, 6, 6, 6)
    squeezes: tuple[int, ...] = (2, 4, 5)
    relu_stages: int = 3
    stem_width: int = 16
    last_width: int = 960
    head_width: int = 1280
    padding: Literal["symmetric", "same"] = "symmetric"
    eps: float = 1e-5
    pool: Literal["mean", "max", "avgmax"] = "mean"

    @property
    def specs(self) -> list[BlockSpec]:
        """What each block is."""
        specs: list[BlockSpec] = []
        inputs = self.stem_width
        for stage, i in blocks(self.depths):
            width, stride = self.widths[stage], self.strides[stage] if i == 0 else 1
            hidden = rounded(inputs * self.expansions[len(specs)])
            squeeze = rounded(hidden / 4) if stage in self.squeezes else 0
            activation = "relu" if stage < self.relu_stages else "hard_swish"
            table = width, self.sizes[stage], stride, hidden, squeeze, stride == 1 and inputs == width
            specs.append(BlockSpec("mbconv", inputs, *table, activation))
            inputs = width
        return [*specs, BlockSpec("conv", inputs, self.last_width, 1, 1, inputs, 0, False, "hard_swish")]

    @property
    def pooled_norm(self) -> bool:
        return True  # no norm, but `conv_head` is after the pooling

    def setup(self):
        conv = partial(ConvNorm, padding=self.padding, eps=self.eps)
        squeeze_excite = partial(SqueezeExcite, gate=nn.hard_sigmoid)
        self.stem = conv(self.stem_width, 3, 2, activation="hard_swish")
        self.block = [Block(spec, conv, squeeze_excite) for spec in self.specs]
        self.conv_head = Conv(self.head_width, use_bias=True)

    def layers(self) -> list[nn.Module]:
        return [self.stem, *self.block]

    def pooled(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch features"]:
        """Returns the features of a feature map."""
        return nn.hard_swish(self.conv_head(super().pooled(x)[:, None, None])[:, 0, 0])


def scaled(base: MobileNetV3, width: float) -> MobileNetV3:
    """Returns a network with `width` times as many channels, but for its features and, of a narrow one, its stem."""
    widths = tuple(rounded(count * width) for count in base.widths)
    stem_width = base.stem_width if width < 0.75 else rounded(base.stem_width * width)
    return base.clone(widths=widths, stem_width=stem_width, last_width=rounded(base.last_width * width))


_MOBILENETV3_SMALL = MobileNetV3(
    depths=(1, 2, 3, 2, 3),
    widths=(16, 24, 40, 48, 96),
    sizes=(3, 3, 5, 5, 5),
    strides=(2, 2, 2, 1, 2),
    expansions=(1, 4.5, 3.67, 4, 6, 6, 3, 3, 6, 6, 6),
    squeezes=(0, 2, 3, 4),
    relu_stages=2,
    last_width=576,
    head_width=1024,
)
_MOBILENETV3S = {
    "mobilenetv3_small_050": scaled(_MOBILENETV3_SMALL, 0.5),
    "mobilenetv3_small_075": scaled(_MOBILENETV3_SMALL, 0.75),
    "mobilenetv3_small_100": _MOBILENETV3_SMALL,
    "mobilenetv3_large_075": scaled(MobileNetV3(), 0.75),
    "mobilenetv3_large_100": MobileNetV3(),
}
NETWORKS: dict[str, MobileNetV3] = {
    **_MOBILENETV3S,
    **{f"tf_{name}": module.clone(**TF) for name, module in _MOBILENETV3S.items() if "050" not in name},
}
