"""EVA (2211.07636) and EVA-02 (2303.11331): Vision Transformers whose keys have no bias; EVA-02's are rotary."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tljax.models.kernels import ops
from tljax.models.layers import Dense, LayerNorm, Mlp
from tljax.models.relative import join_heads, split_heads
from tljax.models.vision.patches import ClassTokenStem, ClassTokenTransformer

_trunc_normal = nn.initializers.truncated_normal(0.02)
_REFERENCE = 16  # patches along a side where EVA-02 learned its positions; other grids are scaled to that


def rotary_angles(grid: tuple[int, int], depth: int) -> Float[np.ndarray, "patches pairs"]:
    """Returns the angle by which each patch turns each pair of a head's channels (2104.09864).

    The first half of the pairs is of the place down, the second of that across; periods run from 2 pi towards 10,000
    times that, geometrically.

    Args:
        grid: patches (down, across).
        depth: channels of a head, a multiple of 4.
    """
    speeds = 1e4 ** -(np.arange(depth // 4) / (depth // 4))
    places = np.stack(np.meshgrid(*(np.arange(side) / side * _REFERENCE for side in grid), indexing="ij"), -1)
    return (places.reshape(-1, 2, 1) * speeds).reshape(-1, depth // 2).astype(np.float32)


def turned(
    x: Float[Array, "batch heads tokens depth"], angles: Float[np.ndarray, "patches pairs"]
) -> Float[Array, "batch heads tokens depth"]:
    """Returns queries or keys of which the last tokens have each pair of neighboring channels turned by its angle."""
    prefix, patches = x[:, :, : -len(angles)], x[:, :, -len(angles) :].astype(jnp.float32)
    even, odd, cosine, sine = patches[..., ::2], patches[..., 1::2], np.cos(angles), np.sin(angles)
    pairs = jnp.stack([even * cosine - odd * sine, odd * cosine + even * sine], axis=-1)
    return jnp.concatenate([prefix, pairs.reshape(patches.shape).astype(x.dtype)], axis=2)


class _Attention(nn.Module):
    """Self-attention; `rotary` is the grid by whose places queries and keys are turned, or None."""

    heads: int
    rotary: tuple[int, int] | None
    norm: float | None

    @nn.compact
    def __call__(self, x, first=None):
        """Maps tokens [batch, tokens, width] to the same; with `first`, to that many from the first on."""
        width = x.shape[-1]
        q, k, v = split_heads(Dense(3 * width, _trunc_normal, (width, 2 * width), name="qkv")(x), self.heads)
        if self.rotary is not None:
            angles = rotary_angles(self.rotary, width // self.heads)
            q, k = turned(q, angles), turned(k, angles)
        x = join_heads(ops.attention(q[:, :, :first], k, v))
        if self.norm is not None:
            x = LayerNorm(self.norm, name="norm")(x)
        return Dense(width, _trunc_normal, name="out")(x)


class _SwiGlu(nn.Module):
    """SiLU(gate) · value between two dense layers (2002.05202), normalized in between if `norm` is an epsilon."""

    hidden: int
    norm: float | None

    @nn.compact
    def __call__(self, x):
        gate, value = jnp.split(Dense(2 * self.hidden, _trunc_normal, name="fc1")(x), 2, axis=-1)
        y = nn.silu(gate) * value
        if self.norm is not None:
            y = LayerNorm(self.norm, name="norm")(y)
        return Dense(x.shape[-1], _trunc_normal, name="fc2")(y)


class _Block(nn.Module):
    heads: int
    mlp_width: int
    rotary: tuple[int, int] | None
    gated: bool
    mlp_norm: bool
    attention_norm: bool
    eps: float

    @nn.compact
    def __call__(self, x, first=None):
        """The tokens after the block; with `first`, only that many of them, which spares the others' share of it."""
        attention = _Attention(self.heads, self.rotary, self.eps if self.attention_norm else None, name="attention")
        x = x[:, :first] + attention(LayerNorm(self.eps, name="norm1")(x), first)
        if self.gated:
            mlp = _SwiGlu(self.mlp_width, self.eps if self.mlp_norm else None, name="mlp")
        else:
            mlp = Mlp(self.mlp_width, "erf", _trunc_normal, name="mlp")
        return x + mlp(LayerNorm(self.eps, name="norm2")(x))


class EVA(ClassTokenTransformer):
    """An EVA that ends in pooled features; by default EVA-02's base network.

    Attributes:
        width, depth, heads: the usual sizes.
        mlp_width: hidden units of a block's MLP.
        patch_size: pixels along a patch's side.
        grid: patches (down, across); the image is `grid * patch_size` pixels.
        rotary: whether attention turns queries and keys by the patches' places, besides position embeddings (EVA-02).
        gated: whether the MLP is SwiGLU (EVA-02).
        mlp_norm: whether a gated MLP is normalized inside (EVA-02's base and large).
        attention_norm: whether attention is normalized before its last projection (EVA-02's CLIP).
        pool: `mean` of the patches, normalized after it, or `class` token.
        eps: LayerNorm's epsilon.

    Groups: `stem` (patches, class token, positions), `block_0` …, `norm`.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 2048
    patch_size: int = 14
    grid: tuple[int, int] = (16, 16)
    rotary: bool = True
    gated: bool = True
    mlp_norm: bool = True
    attention_norm: bool = False
    pool: Literal["mean", "class"] = "mean"
    eps: float = 1e-6

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        return {"params/stem/pos_embed": self.grid}

    def setup(self):
        self.stem = ClassTokenStem(self.width, self.patch_size, self.grid, positions=True)
        rotary = self.grid if self.rotary else None
        parts = self.heads, self.mlp_width, rotary, self.gated, self.mlp_norm, self.attention_norm, self.eps
        self.block = [_Block(*parts) for _ in range(self.depth)]
        self.norm = LayerNorm(self.eps)
