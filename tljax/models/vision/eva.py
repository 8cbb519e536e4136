"""EVA (2211.07636) and EVA-02 (2303.11331): Vision Transformers whose keys have no bias; EVA-02's are rotary."""

from typing import Literal

import flax.linen as nn

from tljax.models.kernels import ops
from tljax.models.layers import LARGE, TINY, Dense, LayerNorm, Mlp, SwiGlu
from tljax.models.relative import join_heads, split_heads
from tljax.models.rope import rotated_neighbors, scaled_angles
from tljax.models.vision.patches import ClassTokenStem, ClassTokenTransformer

_trunc_normal = nn.initializers.truncated_normal(0.02)


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
            angles = scaled_angles(self.rotary, width // self.heads)
            q, k = rotated_neighbors(q, angles), rotated_neighbors(k, angles)
        x = join_heads(ops.attention(q[:, :, :first], k, v))
        if self.norm is not None:
            x = LayerNorm(self.norm, name="norm")(x)
        return Dense(width, _trunc_normal, name="out")(x)


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
            mlp = SwiGlu(self.mlp_width, _trunc_normal, self.eps if self.mlp_norm else None, name="mlp")
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


_EVA = {"rotary": False, "gated": False, "mlp_norm": False}
NETWORKS: dict[str, EVA] = {
    "eva_giant_patch14": EVA(**_EVA, width=1408, depth=40, heads=16, mlp_width=6144),
    "eva02_tiny_patch14": EVA(**TINY, mlp_width=512, mlp_norm=False),
    "eva02_small_patch14": EVA(width=384, heads=6, mlp_width=1024, mlp_norm=False),
    "eva02_base_patch14": EVA(),
    "eva02_base_patch14_448": EVA(grid=(32, 32)),
    "eva02_large_patch14_448": EVA(**LARGE, mlp_width=2730, grid=(32, 32)),
    "eva02_base_patch16_clip": EVA(patch_size=16, grid=(14, 14), attention_norm=True, pool="class"),
}
