"""BiT (1912.11370): pre-activation ResNets (1603.05027) with GroupNorm and weight-standardized convolutions."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tljax.models.base import Backbone
from tljax.models.convolution import blocks
from tljax.models.kernels import conv_cpu
from tljax.models.remat import run_group
from tljax.models.vision.resnet import check_stem

# The fast variance, E[x²] - E[x]², loses the digits that matter where the variance is small.
_Norm = partial(nn.GroupNorm, 32, epsilon=1e-5, use_fast_variance=False)


def standardize(kernel: Float[Array, "rows columns inputs outputs"], eps: float) -> Float[Array, "..."]:
    """Each output's kernel at mean 0 and variance 1 (1903.10520), by the population variance; taken in float32."""
    exact = kernel.astype(jnp.float32)
    exact = exact - jnp.mean(exact, axis=(0, 1, 2))
    return (exact * lax.rsqrt(jnp.mean(jnp.square(exact), axis=(0, 1, 2)) + eps)).astype(kernel.dtype)


class _StdConv(nn.Module):
    features: int
    eps: float
    size: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        pad = (self.size // 2, self.size // 2)
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return conv_cpu.conv(x, standardize(kernel, self.eps), self.stride, (pad, pad))


class _Stem(nn.Module):
    width: int
    eps: float

    @nn.compact
    def __call__(self, x):
        x = _StdConv(self.width, self.eps, 7, 2, name="conv")(x)
        # Nothing has made this map positive, so padding by zeros is not padding by -inf.
        return conv_cpu.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (0, 0))


class _Block(nn.Module):
    """A pre-activation bottleneck; `projects` says whether the shortcut is a convolution."""

    width: int
    stride: int
    projects: bool
    eps: float

    @nn.compact
    def __call__(self, x):
        conv = partial(_StdConv, eps=self.eps)
        y = nn.relu(_Norm(name="norm1")(x))
        if self.projects:
            x = conv(4 * self.width, stride=self.stride, name="downsample")(y)
        y = conv(self.width, name="conv1")(y)
        y = conv(self.width, size=3, stride=self.stride, name="conv2")(nn.relu(_Norm(name="norm2")(y)))
        return x + conv(4 * self.width, name="conv3")(nn.relu(_Norm(name="norm3")(y)))


class BiT(Backbone):
    """A BiT-ResNet (`ResNetV2` in timm) that ends in globally average-pooled features.

    Attributes:
        depths: blocks per stage.
        widths: channels per stage inside the block, which ends with four times as many; multiples of 32.
        stem_width: channels after the stem; like `widths`, k times as many in a network called `x<k>`.
        conv_eps: what keeps a kernel's variance from 0: 1e-8 in timm, 1e-10 in the code that trained BiT.
        pool: `mean` over the pixels of the last map.

    Groups: `stem`, one `block_i` per residual block in order, `norm` (with the last ReLU).
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 64
    conv_eps: float = 1e-8
    pool: Literal["mean"] = "mean"

    @property
    def pools(self) -> dict[str, str]:
        return {"mean": "mean"}

    @property
    def groups(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(sum(self.depths))), "norm")

    @property
    def residual_branches(self) -> str:
        return r"block_\d+/conv3"

    @property
    def standardizes_weights(self) -> bool:
        return True

    @property
    def input_kernel(self) -> str:
        return "params/stem/conv/kernel"

    def trained_by(self, library: str) -> dict[str, Any]:
        """Returns the epsilon of Google's own code, which trained BiT."""
        return {"conv_eps": 1e-10} if library == "google" else {}

    @property
    def feature_dim(self) -> int:
        return 4 * self.widths[-1]

    def setup(self):
        self.stem = _Stem(self.stem_width, self.conv_eps)
        self.block = [
            _Block(self.widths[stage], 2 if i == 0 and stage > 0 else 1, projects=i == 0, eps=self.conv_eps)
            for stage, i in blocks(self.depths)
        ]
        self.norm = _Norm()

    def run_groups(
        self,
        x: Float[Array, "batch ..."],
        start: int = 0,
        stop: int | None = None,
        *,
        pools: bool = False,
        batch_norm: Mapping[str, str] = {},
        remat: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """Returns the feature map after `groups[stop - 1]`; there is no BatchNorm.

        Args:
            x, start, stop, pools, batch_norm, remat: as in `Backbone.run_groups`.
        """
        for layer in [self.stem, *self.block][start:stop]:
            x = run_group(layer, x, remat=remat)
        return nn.relu(self.norm(x)) if "norm" in self.groups[start:stop] else x

    def resized(self, image_size: int) -> "BiT":
        """Returns itself, as a convolution takes any size.

        Raises:
            InputError: a pixel that the stem gives would be of more padding than image.
        """
        check_stem(image_size)
        return self


def _bit(width: int, **depths: tuple[int, ...]) -> BiT:
    """A BiT that is `width` times as wide."""
    return BiT(widths=tuple(width * n for n in (64, 128, 256, 512)), stem_width=64 * width, **depths)


NETWORKS: dict[str, BiT] = {
    "resnetv2_50x1_bit": _bit(1),
    "resnetv2_50x3_bit": _bit(3),
    "resnetv2_101x1_bit": _bit(1, depths=(3, 4, 23, 3)),
    "resnetv2_101x3_bit": _bit(3, depths=(3, 4, 23, 3)),
    "resnetv2_152x2_bit": _bit(2, depths=(3, 8, 36, 3)),
    "resnetv2_152x4_bit": _bit(4, depths=(3, 8, 36, 3)),
}
