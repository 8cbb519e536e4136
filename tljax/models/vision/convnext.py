"""ConvNeXt (2201.03545), ConvNeXt V2 (2301.00808), and those that DINOv3 (2508.10104) distilled into."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.errors import InputError
from tljax.models.base import Backbone
from tljax.models.convolution import Conv, ConvBackbone, blocks
from tljax.models.kernels import ops
from tljax.models.layers import Dense, LayerNorm

_EPS = 1e-6  # of every LayerNorm but the last, in each library
_trunc_normal = nn.initializers.truncated_normal(0.02)


class _Stem(nn.Module):
    """Patches of 4x4 pixels, projected and normalized."""

    width: int

    @nn.compact
    def __call__(self, x):
        return LayerNorm(_EPS, name="norm")(Conv(self.width, 4, 4, True, padding="none", name="conv")(x))


class ResponseNorm(nn.Module):
    """Global response normalization: a channel's norm over space, by the mean of all channels' (2301.00808)."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(1, 2), keepdims=True)
        # The slope of a root at 0 is infinite, and a channel may be silent.
        norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
        response = norm / (jnp.mean(norm, axis=-1, keepdims=True) + 1e-6)
        return x + (x * (scale * response).astype(x.dtype) + bias)


class _Mlp(nn.Module):
    """Two dense layers for every pixel, with GELU and maybe a `ResponseNorm` between them."""

    response_norm: bool

    @nn.compact
    def __call__(self, x):
        y = ops.gelu(Dense(4 * x.shape[-1], _trunc_normal, name="fc1")(x))
        y = ResponseNorm(name="grn")(y) if self.response_norm else y
        return Dense(x.shape[-1], _trunc_normal, name="fc2")(y)


class _Block(nn.Module):
    """Depthwise 7x7, LayerNorm, MLP, LayerScale (figure 4); the first of a later stage halves the map before."""

    width: int
    halves: bool
    layer_scale: float | None
    response_norm: bool

    @nn.compact
    def __call__(self, x):
        if self.halves:
            x = LayerNorm(_EPS, name="norm_downsample")(x)
            x = Conv(self.width, 2, 2, True, padding="none", name="downsample")(x)
        y = Conv(self.width, 7, use_bias=True, depthwise=True, name="conv_dw")(x)
        y = _Mlp(self.response_norm, name="mlp")(LayerNorm(_EPS, name="norm")(y))
        if self.layer_scale is None:
            return x + y
        return x + y * self.param("layer_scale", nn.initializers.constant(self.layer_scale), (self.width,))


class ConvNeXt(ConvBackbone):
    """A ConvNeXt that ends in globally pooled features, normalized after pooling; by default ConvNeXt-T.

    Attributes:
        depths: blocks of each stage.
        widths: channels of each stage.
        layer_scale: initial LayerScale (2103.17239), or None for a network without, as V2.
        response_norm: whether the MLPs have V2's global response normalization.
        eps: of the last LayerNorm; 1e-12 in transformers.
        pool: `mean` over the pixels of the last map, `max`, or `avgmax`, the mean of both (timm).
        conv_mlp: whether timm's files have the MLPs' matrices as 1x1 convolutions, as those of its small ones.

    Groups: `stem`, one `block_i` per block in order (with the downsampling before a stage), `norm`.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    layer_scale: float | None = 1e-6
    response_norm: bool = False
    eps: float = 1e-6
    pool: Literal["mean", "max", "avgmax"] = "mean"
    conv_mlp: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(sum(self.depths))), "norm")

    @property
    def pooled_norm(self) -> bool:
        return True

    @property
    def residual_branches(self) -> str:
        return self.mlp_branches

    @property
    def mlp_branches(self) -> str:
        return r"block_\d+/mlp"

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        return (r"block_\d+/mlp/fc[12]",)

    @property
    def input_kernel(self) -> str:
        return "params/stem/conv/kernel"

    @property
    def feature_dim(self) -> int:
        return self.widths[-1]

    def setup(self):
        self.stem = _Stem(self.widths[0])
        self.block = [
            _Block(self.widths[stage], i == 0 and stage > 0, self.layer_scale, self.response_norm)
            for stage, i in blocks(self.depths)
        ]
        self.norm = LayerNorm(self.eps)

    def layers(self) -> list[nn.Module]:
        return [self.stem, *self.block]  # the norm acts after the pooling

    run_groups = Backbone.run_groups  # as there is no BatchNorm

    def pooled(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
        """Returns the normalized features of a feature map."""
        return self.norm(super().pooled(x))

    def resized(self, image_size: int) -> "ConvNeXt":
        """Returns itself, as a convolution takes any size.

        Raises:
            InputError: the last map would have no pixel.
        """
        stride = 4 * 2 ** (len(self.depths) - 1)
        if image_size < stride:
            raise InputError(f"image size {image_size} is below the network's stride of {stride}: give more pixels")
        return self


def _convnext(depth: int, width: int, **rest: Any) -> ConvNeXt:
    """A ConvNeXt with `depth` blocks in its third stage and few in the others, each twice as wide as the one before."""
    ends = 3 if depth > 8 else 2
    widths = tuple(width * 2**stage for stage in range(4))
    return ConvNeXt(depths=(ends, ends, depth, ends), widths=widths, **rest)


_CONVNEXTS = {
    "atto": _convnext(6, 40, conv_mlp=True),
    "femto": _convnext(6, 48, conv_mlp=True),
    "pico": _convnext(6, 64, conv_mlp=True),
    "nano": _convnext(8, 80, conv_mlp=True),
    "tiny": _convnext(9, 96),
    "small": _convnext(27, 96),
    "base": _convnext(27, 128),
    "large": _convnext(27, 192),
}
_V2 = {"layer_scale": None, "response_norm": True}
NETWORKS: dict[str, ConvNeXt] = {
    **{f"convnext_{size}": module for size, module in _CONVNEXTS.items()},
    "convnext_xlarge": _convnext(27, 256),
    **{f"convnextv2_{size}": module.clone(**_V2) for size, module in _CONVNEXTS.items()},
    "convnextv2_huge": _convnext(27, 352, **_V2),
}
