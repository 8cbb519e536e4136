"""Vision Transformer (2010.11929), DeiT (2012.12877), DeiT III (2204.07118), DINOv2 (2304.07193), v3 (2508.10104).

With other ends, masks in its training or texts beside it: SigLIP (2303.15343), CLIP (2103.00020), MAE (2111.06377).
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.errors import InputError
from tljax.models.attention_pool import AttentionPool
from tljax.models.layers import BASE, LARGE, TINY, Attention, LayerNorm, Mlp, SwiGlu
from tljax.models.vision.patches import PatchTransformer, embed_patches

_trunc_normal = nn.initializers.truncated_normal(0.02)
_xavier = nn.initializers.xavier_uniform()


class _Stem(nn.Module):
    """Patches, projected; position embeddings; class, distillation and register tokens before them."""

    width: int
    patch_size: int
    grid: tuple[int, int]
    class_token: bool
    distilled: bool
    registers: int
    positions: str
    pre_norm: float | None

    @nn.compact
    def __call__(self, x):
        p, (rows, columns) = self.patch_size, self.grid
        if x.shape[1:3] != (rows * p, columns * p):
            raise ValueError(f"images are {x.shape[1:3]}, a {self.grid} grid of {p}-pixel patches is not")
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,)) if self.pre_norm is None else None
        x = embed_patches(x, kernel, bias).reshape(len(x), rows * columns, self.width)
        prefix = [self._token("class_token", 1, x)] if self.class_token else []
        if self.distilled:
            prefix.append(self._token("distillation_token", 1, x))
        if self.positions != "rotary":
            table = self.param("pos_embed", _trunc_normal, (1, self._rows(len(prefix)), self.width))
        if self.positions == "patches":
            x = x + table
        elif self.positions == "all":
            x = jnp.concatenate([*prefix, x], axis=1) + table
            prefix, x = [x[:, : len(prefix)]], x[:, len(prefix) :]
        if self.registers:  # which have no position
            prefix.append(self._token("registers", self.registers, x))
        x = jnp.concatenate([*prefix, x], axis=1)
        return x if self.pre_norm is None else LayerNorm(self.pre_norm, name="norm_pre")(x)

    def _token(self, name, count, x):
        tokens = self.param(name, _trunc_normal, (1, count, self.width))
        return jnp.broadcast_to(tokens, (x.shape[0], count, self.width))

    def _rows(self, prefix: int) -> int:
        return self.grid[0] * self.grid[1] + (prefix if self.positions == "all" else 0)


class _LayerScale(nn.Module):
    init: float

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.constant(self.init), (x.shape[-1],))


class _Block(nn.Module):
    heads: int
    mlp_width: int
    layer_scale: float | None
    eps: float
    gelu: str
    gated: bool
    qkv_bias: str
    qk_norm: bool
    rotary: tuple[int, int] | None

    @nn.compact
    def __call__(self, x, first=None):
        """The tokens after the block; with `first`, only that many of them, which spares the others' share of it."""
        qk_norm = self.eps if self.qk_norm else None
        attention = Attention(self.heads, _xavier, self.qkv_bias, qk_norm, self.rotary, name="attention")
        x = x[:, :first] + self._scaled(1, attention(LayerNorm(self.eps, name="norm1")(x), None, first))
        if self.gated:
            mlp = SwiGlu(self.mlp_width, _xavier, name="mlp")
        else:
            mlp = Mlp(self.mlp_width, self.gelu, _xavier, name="mlp")
        return x + self._scaled(2, mlp(LayerNorm(self.eps, name="norm2")(x)))

    def _scaled(self, number, y):
        return y if self.layer_scale is None else _LayerScale(self.layer_scale, name=f"layer_scale{number}")(y)


class ViT(PatchTransformer):
    """A pre-norm Vision Transformer that ends in pooled features.

    Attributes:
        width, depth, heads: the usual sizes.
        mlp_width: hidden units of a block's MLP; four times the width if None.
        patch_size: pixels along a patch's side.
        grid: patches (down, across); the image is `grid * patch_size` pixels.
        distilled: whether DeiT's distillation token follows the class token.
        registers: tokens after those that carry nothing in and out (2309.16588).
        positions: what has a position embedding: `all` tokens but registers, or `patches` only (DeiT III); `rotary`,
            where attention turns the patches' queries and keys instead (DINOv3).
        pool: `class` token; `mean` of the patches, normalized only after pooling (timm's `fc_norm`); `normed_mean` of
            the patches, normalized before; `distilled`, the mean of class and distillation token; `class_mean`, the
            class token joined by the mean of the patches; `attention` of a learned query to all tokens (SigLIP).
        layer_scale: initial LayerScale (2103.17239), or None for a network without.
        gelu: `erf`, `tanh` as in Google's own code, or `quick` as in OpenAI's.
        eps: LayerNorm's epsilon.
        gated: whether the MLP is SwiGLU, of `mlp_width` hidden units after its gate.
        qkv_bias: which of queries, keys and values have a bias: `all`, `query_value` or `none`.
        qk_norm: whether each head's queries and keys are normalized (2302.05442).
        class_token: whether there is one.
        pre_norm: whether the stem ends in a LayerNorm, and patches then have no bias (CLIP).
        final_norm: whether there is a LayerNorm after the blocks.

    Groups: `stem` (patches, tokens, positions), `block_0` …, `norm`; and `pooler` where attention pools.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_width: int | None = None
    patch_size: int = 16
    grid: tuple[int, int] = (14, 14)
    distilled: bool = False
    registers: int = 0
    positions: Literal["all", "patches", "rotary"] = "all"
    pool: Literal["class", "mean", "normed_mean", "distilled", "class_mean", "attention"] = "class"
    layer_scale: float | None = None
    gelu: Literal["erf", "tanh", "quick"] = "erf"
    eps: float = 1e-6
    gated: bool = False
    qkv_bias: Literal["all", "query_value", "none"] = "all"
    qk_norm: bool = False
    class_token: bool = True
    pre_norm: bool = False
    final_norm: bool = True

    @property
    def pools(self) -> dict[str, str]:
        has = {"distilled": self.distilled, "attention": self.pool == "attention"}
        has |= dict.fromkeys(("class", "class_mean"), self.class_token)
        names = ("class", "mean", "normed_mean", "class_mean", "distilled", "attention")
        return {name: name for name in names if has.get(name, True)}

    @property
    def groups(self) -> tuple[str, ...]:
        ends = ["norm"] * self.final_norm + ["pooler"] * (self.pool == "attention")
        return ("stem", *(f"block_{i}" for i in range(self.depth)), *ends)

    @property
    def pretrained_heads(self) -> tuple[str, ...]:
        return ("head", "head_dist") if self.distilled else ("head",)

    @property
    def pooled_norm(self) -> bool:
        return self.pool == "mean" and self.final_norm

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        return {} if self.positions == "rotary" else {"params/stem/pos_embed": self.grid}

    def trained_by(self, library: str) -> dict[str, Any]:
        """Returns the GELU of Google's own code, which is approximate."""
        return {"gelu": "tanh"} if library == "google" else {}

    @property
    def feature_dim(self) -> int:
        return self.width * (2 if self.pool == "class_mean" else 1)

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.distilled + self.registers

    def setup(self):
        if self.pool in ("class", "class_mean") and not self.class_token:
            raise InputError(
                f"a ViT without a class token cannot pool by {self.pool!r}: it has {', '.join(self.pools)}"
            )
        tokens = self.class_token, self.distilled, self.registers
        pre_norm = self.eps if self.pre_norm else None
        self.stem = _Stem(self.width, self.patch_size, self.grid, *tokens, self.positions, pre_norm)
        hidden = self.mlp_width or 4 * self.width
        mlp = hidden, self.layer_scale, self.eps, self.gelu, self.gated
        attention = self.qkv_bias, self.qk_norm, self.grid if self.positions == "rotary" else None
        self.block = [_Block(self.heads, *mlp, *attention) for _ in range(self.depth)]
        if self.final_norm:
            self.norm = LayerNorm(self.eps)
        if self.pool == "attention":
            self.pooler = AttentionPool(self.heads, hidden, self.gelu, self.eps, _xavier)

    def pooled(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch features"]:
        """Returns the features of the tokens at the end."""
        if self.pool == "attention":
            return self.pooler(x)
        if self.pool == "class":
            return x[:, 0]
        if self.pool == "distilled":
            return (x[:, 0] + x[:, 1]) / 2
        mean = jnp.mean(x[:, self.prefix :], axis=1)
        if self.pool == "class_mean":
            return jnp.concatenate([x[:, 0], mean], axis=-1)
        return self.norm(mean) if self.pooled_norm else mean


_DINOV2 = {"patch_size": 14, "grid": (37, 37), "layer_scale": 1e-5}
_REG4 = {**_DINOV2, "registers": 4, "positions": "patches"}
_DINOV3 = {"grid": (16, 16), "layer_scale": 1e-5, "registers": 4, "positions": "rotary", "eps": 1e-5}
_DINOV3 |= {"pool": "normed_mean", "qkv_bias": "none"}
_GIANT = {"width": 1536, "depth": 40, "heads": 24, "mlp_width": 4096, "gated": True}
_HUGE_PLUS = {"width": 1280, "depth": 32, "heads": 20, "gated": True}
_SIGLIP = {"class_token": False, "pool": "attention"}
_SO400M = {"width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304, "patch_size": 14, **_SIGLIP}
_CLIP = {"pre_norm": True, "eps": 1e-5}
_QUICK = {**_CLIP, "gelu": "quick"}
_PATCH14, _PATCH32 = {"patch_size": 14, "grid": (16, 16)}, {"patch_size": 32, "grid": (7, 7)}
_HUGE = {"width": 1280, "depth": 32, "heads": 16}
_GAP = {"class_token": False, "pool": "mean"}
_REG4_GAP = {**_GAP, "grid": (16, 16), "registers": 4, "positions": "patches"}
_DISTILLED = {"distilled": True, "pool": "distilled"}
_DEIT3 = {"layer_scale": 1e-6, "positions": "patches"}
NETWORKS: dict[str, ViT] = {
    "vit_tiny_patch16": ViT(**TINY),
    "vit_small_patch16": ViT(),
    "vit_small_patch32": ViT(patch_size=32, grid=(7, 7)),
    "vit_small_patch8": ViT(patch_size=8, grid=(28, 28)),
    "vit_base_patch8": ViT(**BASE, patch_size=8, grid=(28, 28)),
    "vit_base_patch16": ViT(**BASE),
    "vit_base_patch32": ViT(**BASE, patch_size=32, grid=(7, 7)),
    "vit_large_patch14": ViT(**LARGE, patch_size=14, grid=(16, 16)),
    "vit_large_patch16": ViT(**LARGE),
    "vit_large_patch32": ViT(**LARGE, patch_size=32, grid=(7, 7)),
    "vit_small_patch14_dinov2": ViT(**_DINOV2),
    "vit_base_patch14_dinov2": ViT(**BASE, **_DINOV2),
    "vit_large_patch14_dinov2": ViT(**LARGE, **_DINOV2),
    "vit_small_patch14_reg4_dinov2": ViT(**_REG4),
    "vit_base_patch14_reg4_dinov2": ViT(**BASE, **_REG4),
    "vit_large_patch14_reg4_dinov2": ViT(**LARGE, **_REG4),
    "vit_giant_patch14_dinov2": ViT(**_GIANT, **_DINOV2),
    "vit_giant_patch14_reg4_dinov2": ViT(**_GIANT, **_REG4),
    "vit_small_patch16_dinov3": ViT(**_DINOV3),
    "vit_small_plus_patch16_dinov3": ViT(**_DINOV3, gated=True),
    "vit_base_patch16_dinov3": ViT(**BASE, **_DINOV3),
    "vit_large_patch16_dinov3": ViT(**LARGE, **_DINOV3),
    "vit_huge_plus_patch16_dinov3": ViT(**_HUGE_PLUS, **_DINOV3),
    "vit_small_patch16_dinov3_qkvb": ViT(**_DINOV3).clone(qkv_bias="query_value"),
    "vit_small_plus_patch16_dinov3_qkvb": ViT(**_DINOV3, gated=True).clone(qkv_bias="query_value"),
    "vit_base_patch16_dinov3_qkvb": ViT(**BASE, **_DINOV3).clone(qkv_bias="query_value"),
    "vit_large_patch16_dinov3_qkvb": ViT(**LARGE, **_DINOV3).clone(qkv_bias="query_value"),
    "vit_huge_plus_patch16_dinov3_qkvb": ViT(**_HUGE_PLUS, **_DINOV3).clone(qkv_bias="query_value"),
    "vit_base_patch16_siglip": ViT(**BASE, **_SIGLIP),
    "vit_base_patch16_siglip_384": ViT(**BASE, **_SIGLIP, grid=(24, 24)),
    "vit_base_patch16_siglip_gap": ViT(**BASE, **_SIGLIP).clone(pool="normed_mean"),
    "vit_large_patch16_siglip": ViT(**LARGE, **_SIGLIP, grid=(16, 16)),
    "vit_so400m_patch14_siglip": ViT(**_SO400M, grid=(16, 16)),
    "vit_so400m_patch14_siglip_384": ViT(**_SO400M, grid=(27, 27)),
    "vit_base_patch16_clip": ViT(**BASE, **_CLIP),
    "vit_base_patch32_clip": ViT(**BASE, **_CLIP, **_PATCH32),
    "vit_large_patch14_clip": ViT(**LARGE, **_CLIP, **_PATCH14),
    "vit_base_patch16_clip_quickgelu": ViT(**BASE, **_QUICK),
    "vit_base_patch32_clip_quickgelu": ViT(**BASE, **_QUICK, **_PATCH32),
    "vit_large_patch14_clip_quickgelu": ViT(**LARGE, **_QUICK, **_PATCH14),
    "vit_huge_patch14": ViT(**_HUGE, **_PATCH14),
    "vit_base_patch16_224_miil": ViT(**BASE, qkv_bias="none"),
    "vit_medium_patch16_reg4_gap": ViT(width=512, heads=8, layer_scale=1e-5, **_REG4_GAP),
    "vit_base_patch16_reg4_gap": ViT(**BASE, **_REG4_GAP),
    "deit_tiny_patch16": ViT(**TINY),
    "deit_small_patch16": ViT(),
    "deit_base_patch16": ViT(**BASE),
    "deit_tiny_distilled_patch16": ViT(**TINY, **_DISTILLED),
    "deit_small_distilled_patch16": ViT(**_DISTILLED),
    "deit_base_distilled_patch16": ViT(**BASE, **_DISTILLED),
    "deit3_small_patch16": ViT(**_DEIT3),
    "deit3_base_patch16": ViT(**BASE, **_DEIT3),
    "deit3_large_patch16": ViT(**LARGE, **_DEIT3),
    "eva_large_patch14": ViT(**LARGE, patch_size=14, grid=(14, 14), pool="mean"),
    "eva_large_patch14_336": ViT(**LARGE, patch_size=14, grid=(24, 24), pool="mean"),
}
