"""A convolution of groups of channels (1611.05431), whose own form in XLA is a naive loop on a CPU."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tljax.models.kernels import ops
from tljax.models.kernels.conv_cpu import Padding, padded, taps_of


def grouped_conv(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns part outputs"],
    stride: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
) -> Float[Array, "batch height2 width2 outputs"]:
    """Convolves each `part` of the channels to its own part of the outputs, on a CPU by a product for each group.

    Args:
        x, stride, padding: as in `conv`.
        kernel: HWIO, of the inputs of one group.
    """
    rows, columns, part, outputs = kernel.shape
    groups = x.shape[-1] // part
    if ops.platform() != "cpu":
        layout = ("NHWC", "HWIO", "NHWC")
        strides = (stride, stride)
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=layout, feature_group_count=groups
        )
    taps = [pixels for _, _, pixels in taps_of(padded(x, *padding), rows, columns, stride)]
    batch, height, width, _ = taps[0].shape
    patches = jnp.stack([pixels.reshape(batch * height * width, groups, part) for pixels in taps], 2)
    kernels = kernel.reshape(rows * columns * part, groups, outputs // groups)
    y = jnp.einsum("ngi,igo->ngo", patches.reshape(batch * height * width, groups, -1), kernels)
    return y.reshape(batch, height, width, outputs)
