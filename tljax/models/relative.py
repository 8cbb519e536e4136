"""Attention whose scores depend on where two tokens are to each other, as Swin, BEiT and EVA have it."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def split_heads(
    qkv: Float[Array, "*batch tokens columns"], heads: int
) -> tuple[Float[Array, "*batch heads tokens depth"], ...]:
    """Returns queries, keys and values by head, of what a joint projection gives."""
    parts = jnp.split(qkv, 3, axis=-1)
    return tuple(jnp.swapaxes(part.reshape(*part.shape[:-1], heads, -1), -2, -3) for part in parts)


def join_heads(x: Float[Array, "*batch heads tokens depth"]) -> Float[Array, "*batch tokens width"]:
    """Returns tokens of which every head has its share, side by side."""
    x = jnp.swapaxes(x, -2, -3)
    return x.reshape(*x.shape[:-2], -1)


def biased_attention(
    q: Float[Array, "*batch heads queries depth"],
    k: Float[Array, "*batch heads keys depth"],
    v: Float[Array, "*batch heads keys depth"],
    bias: Float[Array, "*broadcast heads queries keys"],
) -> Float[Array, "*batch heads queries depth"]:
    """Returns attention (1706.03762) with something added to the scores.

    Args:
        q: queries, scaled.
        k, v: keys and values.
        bias: what is added.
    """
    scores = jnp.einsum("...qd,...kd->...qk", q, k) + bias
    weights = jax.nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), axis=-1)
    return jnp.einsum("...qk,...kd->...qd", weights.astype(v.dtype), v)


def displacements(rows: int, columns: int) -> Int[np.ndarray, "tokens tokens"]:
    """Returns for every two tokens of a window the row of its table, which has one for each displacement."""
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    down, across = np.moveaxis(places[:, None] - places[None], -1, 0)
    return (down + rows - 1) * (2 * columns - 1) + across + columns - 1
