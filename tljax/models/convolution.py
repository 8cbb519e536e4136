"""The layers that convolutional networks share, and what follows from them for a backbone."""

from collections.abc import Callable, Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tljax.errors import InputError
from tljax.models.base import Backbone
from tljax.models.kernels import conv_cpu, grouped_cpu
from tljax.models.remat import run_group

# How a group's BatchNorms (1502.03167) work; evaluation is `frozen` everywhere.
TF = {"padding": "same", "eps": 1e-3}  # attributes of a network that TensorFlow trained
BATCH_NORM_MODES: dict[str, str] = {
    "frozen": "normalize with the stored statistics and keep them",
    "update_stats": "normalize with the batch's statistics and move the stored ones a tenth of the way to them",
    "batch": "normalize with the batch's statistics and keep the stored ones",
}

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
_he_normal_depthwise = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal", in_axis=-1, out_axis=-2)


def blocks(depths: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns (stage, place in it) of every block, in order."""
    return [(stage, i) for stage, depth in enumerate(depths) for i in range(depth)]


def rounded(channels: float, least: float = 0.9) -> int:
    """Returns the nearest multiple of 8 to a count of channels, or the next one up.

    Args:
        channels: how many there are.
        least: the share of them below which the nearest is too few.
    """
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < least * channels else nearest


class ConvBackbone(Backbone):
    """A backbone of groups that map an image to an image, pooled at the end over all its pixels.

    A subclass has an attribute `pool`, one of `pools`, and layers called with an image and a mode of BatchNorm.
    """

    @property
    def pools(self) -> dict[str, str]:
        return {name: name for name in ("mean", "max", "avgmax")}

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
        """Returns the feature map after `groups[stop - 1]`.

        Args:
            x, start, stop, pools, batch_norm, remat: as in `Backbone.run_groups`.

        Raises:
            InputError: there is no such mode of BatchNorm.
        """
        for mode in batch_norm.values():
            if mode not in BATCH_NORM_MODES:
                raise InputError(f"no BatchNorm mode {mode!r}; there are: {', '.join(BATCH_NORM_MODES)}")
        # A group that acts after the pooling has no layer.
        for name, layer in list(zip(self.groups, self.layers(), strict=False))[start:stop]:
            x = run_group(layer, x, batch_norm.get(name, "frozen"), remat=remat)
        return x

    def pooled(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
        """Returns the features of a feature map."""
        if self.pool == "max":
            return jnp.max(x, axis=(1, 2))
        mean = jnp.mean(x, axis=(1, 2))
        return mean if self.pool == "mean" else 0.5 * (mean + jnp.max(x, axis=(1, 2)))


def _pads(side: int, size: int, stride: int, padding: str) -> tuple[int, int]:
    """Returns zeros before and after an axis: as torch, alike on both sides, or as TensorFlow's SAME, or none."""
    if padding == "none":
        return 0, 0
    if padding == "symmetric":
        return size // 2, size // 2
    total = max((-(-side // stride) - 1) * stride + size - side, 0)
    return total // 2, total - total // 2


class Conv(nn.Module):
    """A convolution; of `size` 1, a linear map of every pixel that a stride keeps.

    Attributes:
        features: outputs.
        size: of the kernel, along each axis.
        stride: along each axis.
        use_bias: whether there is one.
        depthwise: whether each channel has a kernel of its own and there are no sums over channels.
        groups: parts of the inputs, of which each makes its own part of the outputs.
        padding: `symmetric`, size // 2 on each side, `same`, as TensorFlow's: the odd pixel comes after, or `none`.
    """

    features: int
    size: int = 1
    stride: int = 1
    use_bias: bool = False
    depthwise: bool = False
    padding: Literal["symmetric", "same", "none"] = "symmetric"
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        pads = tuple(_pads(side, self.size, self.stride, self.padding) for side in x.shape[1:3])
        initializer = _he_normal_depthwise if self.depthwise else he_normal
        inputs = 1 if self.depthwise else x.shape[-1] // self.groups
        kernel = self.param("kernel", initializer, (self.size, self.size, inputs, self.features))
        if self.groups > 1:
            x = grouped_cpu.grouped_conv(x, kernel, self.stride, pads)
        else:
            x = (conv_cpu.depthwise_conv if self.depthwise else conv_cpu.conv)(x, kernel, self.stride, pads)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,))
        return x


class SqueezeExcite(nn.Module):
    """Weighs each channel by what the means of all channels say (1709.01507).

    Attributes:
        width: channels between the two layers that look at the means.
        activation: between them.
        gate: from what they say to a weight between 0 and 1.
    """

    width: int
    activation: Callable = nn.relu
    gate: Callable = nn.sigmoid

    @nn.compact
    def __call__(self, x):
        y = jnp.mean(x, axis=(1, 2), keepdims=True)
        y = self.activation(Conv(self.width, use_bias=True, name="reduce")(y))
        return x * self.gate(Conv(x.shape[-1], use_bias=True, name="expand")(y))


class BatchNorm(nn.Module):
    """Batch normalization; `mode` is a row of `BATCH_NORM_MODES`. Statistics are float32 whatever `x` is."""

    scale_init: Callable = nn.initializers.ones
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x, mode):
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if mode == "frozen":
            factor = scale * lax.rsqrt(variance.value + self.eps)
            return (x * factor + (bias - mean.value * factor)).astype(x.dtype)
        y, *statistics = conv_cpu.batch_norm(x, scale, bias, self.eps)
        if mode == "update_stats" and not self.is_initializing():
            for stored, new in zip((mean, variance), statistics, strict=True):
                stored.value = 0.9 * stored.value + 0.1 * lax.stop_gradient(new)
        return y
