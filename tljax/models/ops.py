"""Arithmetic that XLA does not write well by itself, each with its plain form in `tests/models/test_ops.py`."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


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
