"""BEiT (2106.08254) and BEiT v2 (2208.06366): a Vision Transformer whose attention sees displacements."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from tljax.models.layers import LARGE, Dense, LayerNorm, Mlp
from tljax.models.relative import biased_attention, displacements, join_heads, split_heads
from tljax.models.vision.patches import ClassTokenStem, ClassTokenTransformer

_trunc_normal = nn.initializers.truncated_normal(0.02)
_OF_CLASS_TOKEN = 3  # rows after those of displacements: from it to patches, from patches to it, and to itself


class _Attention(nn.Module):
    """Self-attention with a bias for each displacement between patches; keys have no bias of their own."""

    heads: int
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, x, first=None):
        """Maps tokens [batch, tokens, width] to the same; with `first`, to that many from the first on."""
        width = x.shape[-1]
        q, k, v = split_heads(Dense(3 * width, _trunc_normal, (width, 2 * width), name="qkv")(x), self.heads)
        rows = (2 * self.grid[0] - 1) * (2 * self.grid[1] - 1) + _OF_CLASS_TOKEN
        table = self.param("bias_table", nn.initializers.zeros, (rows, self.heads))
        index = _rows(self.grid)
        if prompts := x.shape[1] - len(index):  # which stand after the class token, nowhere: their bias is 0
            index = np.insert(np.insert(index, [1] * prompts, rows, axis=0), [1] * prompts, rows, axis=1)
            table = jnp.pad(table, ((0, 1), (0, 0)))
        bias = table[index[:first]].transpose(2, 0, 1)
        x = biased_attention(q[:, :, :first] * q.shape[-1] ** -0.5, k, v, bias)
        return Dense(width, _trunc_normal, name="out")(join_heads(x))


def _rows(grid: tuple[int, int]) -> np.ndarray:
    """Returns for every two of class token and patches the row of the table that has their bias."""
    index = np.pad(displacements(*grid), ((1, 0), (1, 0)))
    index[0, 1:], index[1:, 0], index[0, 0] = index.max() + 1 + np.arange(_OF_CLASS_TOKEN)
    return index


class _Block(nn.Module):
    heads: int
    grid: tuple[int, int]
    mlp_width: int
    layer_scale: float | None
    eps: float

    @nn.compact
    def __call__(self, x, first=None):
        """The tokens after the block; with `first`, only that many of them, which spares the others' share of it."""
        attention = _Attention(self.heads, self.grid, name="attention")
        x = x[:, :first] + self._scaled("gamma_1", attention(LayerNorm(self.eps, name="norm1")(x), first))
        mlp = Mlp(self.mlp_width, "erf", _trunc_normal, name="mlp")
        return x + self._scaled("gamma_2", mlp(LayerNorm(self.eps, name="norm2")(x)))

    def _scaled(self, name, y):
        if self.layer_scale is None:
            return y
        return y * self.param(name, nn.initializers.constant(self.layer_scale), (y.shape[-1],))


class BEiT(ClassTokenTransformer):
    """A BEiT that ends in pooled features; by default the base network, fine-tuned.

    A table that blocks share in a file becomes one for each here, as in the paper's own fine-tuning.

    Attributes:
        width, depth, heads: the usual sizes.
        mlp_width: hidden units of a block's MLP; four times the width if None.
        patch_size: pixels along a patch's side.
        grid: patches (down, across); the image is `grid * patch_size` pixels.
        positions: whether tokens have position embeddings besides.
        pool: `mean` of the patches, normalized after it, or `class` token.
        layer_scale: initial LayerScale (2103.17239), or None for a network without.
        eps: LayerNorm's epsilon.

    Groups: `stem` (patches, class token), `block_0` …, `norm`.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int | None = None
    patch_size: int = 16
    grid: tuple[int, int] = (14, 14)
    positions: bool = False
    pool: Literal["mean", "class"] = "mean"
    layer_scale: float | None = 0.1
    eps: float = 1e-6

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        tables = {f"params/block_{i}/attention/bias_table": self.grid for i in range(self.depth)}
        return tables | ({"params/stem/pos_embed": self.grid} if self.positions else {})

    def setup(self):
        self.stem = ClassTokenStem(self.width, self.patch_size, self.grid, self.positions)
        parts = self.heads, self.grid, self.mlp_width or 4 * self.width, self.layer_scale, self.eps
        self.block = [_Block(*parts) for _ in range(self.depth)]
        self.norm = LayerNorm(self.eps)


NETWORKS: dict[str, BEiT] = {
    "beit_base_patch16": BEiT(),
    "beit_large_patch16": BEiT(**LARGE, layer_scale=1e-5),
    "beitv2_base_patch16": BEiT(layer_scale=1e-5),
    "beitv2_large_patch16": BEiT(**LARGE, layer_scale=1e-5),
    "beit_base_patch16_384": BEiT(grid=(24, 24)),  # names with a size are of weights that timm has at two
}
