"""A convolution of groups of channels (1611.05431), whose own form in XLA is a naive loop on a CPU."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tljax.models.kernels import conv_cpu, ops

_CHANNELS = 64  # of a convolution that a CPU is fast on


def grouped_conv(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns part outputs"],
    stride: int = 1,
    padding: conv_cpu.Padding = ((0, 0), (0, 0)),
) -> Float[Array, "batch height2 width2 outputs"]:
    """Convolves each `part` of the channels to its own part of the outputs.

    On a CPU, as many groups as make `_CHANNELS` are one convolution, whose kernel is zero between them.

    Args:
        x, stride, padding: as in `conv_cpu.conv`.
        kernel: HWIO, of the inputs of one group.
    """
    rows, columns, part, outputs = kernel.shape
    groups = x.shape[-1] // part
    if ops.platform() != "cpu":
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=layout, feature_group_count=groups
        )
    together = next(n for n in range(1, groups + 1) if groups % n == 0 and (n * part >= _CHANNELS or n == groups))
    count = groups // together
    kernels = kernel.reshape(rows, columns, part, count, together, outputs // groups)
    kernels = jnp.einsum("rcigno,nm->rcmigno", kernels, jnp.eye(together, dtype=kernel.dtype))
    kernels = kernels.reshape(rows, columns, together * part, outputs)
    pairs = zip(jnp.split(x, count, -1), jnp.split(kernels, count, -1), strict=True)
    return jnp.concatenate([conv_cpu.conv(pixels, taps, stride, padding) for pixels, taps in pairs], -1)
