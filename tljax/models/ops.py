"""Arithmetic that XLA does not write well by itself, each with its plain form in `tests/models/test_ops.py`."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

Padding = tuple[tuple[int, int], tuple[int, int]]


def conv(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs outputs"],
    stride: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
) -> Float[Array, "batch height2 width2 outputs"]:
    """2-D convolution in NHWC / HWIO, as a matrix product wherever that is the faster way to compute it."""
    rows, columns, inputs, outputs = kernel.shape
    if (rows, columns) == (1, 1):
        # XLA's CPU convolution is about half as fast as the matrix product that a 1x1 convolution is.
        return jnp.dot(x[:, ::stride, ::stride], kernel.reshape(inputs, outputs))
    if max(x.shape[1:3]) <= 4:
        # On maps this small the CPU convolution falls into a naive loop; unrolled patches and one product do not.
        return _conv_as_patches(x, kernel, stride, padding)
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _conv_as_patches(x, kernel, stride, padding):
    rows, columns, _, outputs = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height = (x.shape[1] - rows) // stride + 1
    width = (x.shape[2] - columns) // stride + 1
    patches = [
        x[:, row : row + stride * height : stride, column : column + stride * width : stride]
        for row in range(rows)
        for column in range(columns)
    ]
    return jnp.dot(jnp.concatenate(patches, axis=-1), kernel.reshape(-1, outputs))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact GELU, x·Φ(x) (1606.08415), through erf: the library's erfc form is slow on a CPU."""
    return x * (0.5 + 0.5 * lax.erf(x * 0.7071067811865476))


def linear(
    x: Float[Array, "*batch inputs"],
    kernel: Float[Array, "inputs outputs"],
    bias: Float[Array, " outputs"] | None = None,
) -> Float[Array, "*batch outputs"]:
    """`x @ kernel + bias` on a flattened 2-D operand, which the CPU's matrix product wants."""
    flat = jnp.dot(x.reshape(-1, x.shape[-1]), kernel)
    if bias is not None:
        flat = flat + bias
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def attention(
    q: Float[Array, "batch heads queries depth"],
    k: Float[Array, "batch heads keys depth"],
    v: Float[Array, "batch heads keys depth"],
    mask: Bool[Array, "batch keys"] | None = None,
) -> Float[Array, "batch heads queries depth"]:
    """Scaled dot-product attention (1706.03762) to the keys that `mask` names; to all if it names none, or is None."""
    q = q * q.shape[-1] ** -0.5
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k)
    if mask is not None:
        # Not -inf, which would make a row that is padding through and through NaN.
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), v)
