"""Vision Transformer (2010.11929), DeiT (2012.12877), DeiT III (2204.07118) and DINOv2 (2304.07193)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.errors import InputError
from tljax.models.base import BackboneInput
from tljax.models.kernels import ops
from tljax.models.layers import Attention, LayerNorm, Mlp, TransformerBackbone
from tljax.models.remat import run_group

_trunc_normal = nn.initializers.truncated_normal(0.02)
_xavier = nn.initializers.xavier_uniform()


class _Stem(nn.Module):
    """Patches, projected; position embeddings; class, distillation and register tokens before them."""

    width: int
    patch_size: int
    grid: tuple[int, int]
    distilled: bool
    registers: int
    positions: str

    @nn.compact
    def __call__(self, x):
        p, (rows, columns) = self.patch_size, self.grid
        if x.shape[1:3] != (rows * p, columns * p):
            raise ValueError(f"images are {x.shape[1:3]}, a {self.grid} grid of {p}-pixel patches is not")
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        # Patches do not overlap, so the convolution is a matrix product of flattened patches.
        x = x.reshape(x.shape[0], rows, p, columns, p, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
        x = ops.linear(x.reshape(x.shape[0], rows * columns, -1), kernel.reshape(-1, self.width), bias)
        prefix = [self._token("class_token", 1, x)]
        if self.distilled:
            prefix.append(self._token("distillation_token", 1, x))
        table = self.param("pos_embed", _trunc_normal, (1, self._rows(len(prefix)), self.width))
        if self.positions == "patches":
            x = x + table
        else:
            x = jnp.concatenate([*prefix, x], axis=1) + table
            prefix, x = [x[:, : len(prefix)]], x[:, len(prefix) :]
        if self.registers:  # which have no position
            prefix.append(self._token("registers", self.registers, x))
        return jnp.concatenate([*prefix, x], axis=1)

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

    @nn.compact
    def __call__(self, x, first=None):
        """The tokens after the block; with `first`, only that many of them, which spares the others' share of it."""
        attention = Attention(self.heads, _xavier, name="attention")
        x = x[:, :first] + self._scaled(1, attention(LayerNorm(self.eps, name="norm1")(x), None, first))
        mlp = Mlp(self.mlp_width, self.gelu, _xavier, name="mlp")
        return x + self._scaled(2, mlp(LayerNorm(self.eps, name="norm2")(x)))

    def _scaled(self, number, y):
        return y if self.layer_scale is None else _LayerScale(self.layer_scale, name=f"layer_scale{number}")(y)


class ViT(TransformerBackbone):
    """A pre-norm Vision Transformer that ends in pooled features.

    Attributes:
        width, depth, heads: the usual sizes.
        mlp_width: hidden units of a block's MLP; four times the width if None.
        patch_size: pixels along a patch's side.
        grid: patches (down, across); the image is `grid * patch_size` pixels.
        distilled: whether DeiT's distillation token follows the class token.
        registers: tokens after those that carry nothing in and out (2309.16588).
        positions: what has a position embedding: `all` tokens but registers, or `patches` only (DeiT III).
        pool: `class` token; `mean` of the patches, normalized only after pooling (timm's `fc_norm`); `distilled`, the
            mean of class and distillation token; `class_mean`, the class token joined by the mean of the patches.
        layer_scale: initial LayerScale (2103.17239), or None for a network without.
        gelu: `erf`, or `tanh` as in Google's own code.
        eps: LayerNorm's epsilon.

    Groups: `stem` (patches, tokens, positions), `block_0` …, `norm`.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_width: int | None = None
    patch_size: int = 16
    grid: tuple[int, int] = (14, 14)
    distilled: bool = False
    registers: int = 0
    positions: Literal["all", "patches"] = "all"
    pool: Literal["class", "mean", "distilled", "class_mean"] = "class"
    layer_scale: float | None = None
    gelu: Literal["erf", "tanh"] = "erf"
    eps: float = 1e-6

    @property
    def pools(self) -> dict[str, str]:
        return {name: name for name in ("class", "mean", "class_mean", *["distilled"] * self.distilled)}

    @property
    def groups(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(self.depth)), "norm")

    @property
    def pretrained_heads(self) -> tuple[str, ...]:
        return ("head", "head_dist") if self.distilled else ("head",)

    @property
    def pooled_norm(self) -> bool:
        return self.pool == "mean"

    @property
    def input_spec(self) -> BackboneInput:
        return BackboneInput("image", size=(self.grid[0] * self.patch_size, self.grid[1] * self.patch_size))

    @property
    def input_kernel(self) -> str:
        return "params/stem/kernel"

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        return {"params/stem/pos_embed": self.grid}

    @property
    def prompt_init(self) -> Callable[[jax.Array, tuple[int, ...]], jax.Array]:
        """Uniform within ±sqrt(6 / (3 * patch_size² + width)), as VPT's (2203.12119)."""
        limit = math.sqrt(6 / (3 * self.patch_size**2 + self.width))
        return lambda key, shape: jax.random.uniform(key, shape, minval=-limit, maxval=limit)

    def trained_by(self, library: str) -> dict[str, Any]:
        """Returns the GELU of Google's own code, which is approximate."""
        return {"gelu": "tanh"} if library == "google" else {}

    @property
    def feature_dim(self) -> int:
        return self.width * (2 if self.pool == "class_mean" else 1)

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return 1 + self.distilled + self.registers

    def setup(self):
        self.stem = _Stem(self.width, self.patch_size, self.grid, self.distilled, self.registers, self.positions)
        hidden = self.mlp_width or 4 * self.width
        self.block = [_Block(self.heads, hidden, self.layer_scale, self.eps, self.gelu) for _ in range(self.depth)]
        self.norm = LayerNorm(self.eps)

    def run_groups(
        self,
        x: Float[Array, "batch ..."],
        start: int = 0,
        stop: int | None = None,
        *,
        pools: bool = False,
        batch_norm: Mapping[str, str] = {},
        remat: bool = False,
    ) -> Float[Array, "batch tokens width"]:
        """Returns the tokens [batch, prefix + patches, width] after `groups[stop - 1]`; see `Backbone.run_groups`.

        At the end they are normalized where the network does that before it pools. There is no BatchNorm.

        Args:
            x, start, stop, pools, batch_norm, remat: as in `Backbone.run_groups`.
        """
        names = self.groups[start:stop]
        for name, layer in list(zip(self.groups, [self.stem, *self.block], strict=False))[start:stop]:
            # Of what the last block gives, the class token alone is used.
            only_class = pools and self.pool == "class" and name == self.groups[-2] != "stem"
            x = run_group(layer, x, *((1,) if only_class else ()), remat=remat)
        return self.norm(x) if "norm" in names and not self.pooled_norm else x

    def pooled(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch features"]:
        """Returns the features of the tokens at the end."""
        if self.pool == "class":
            return x[:, 0]
        if self.pool == "distilled":
            return (x[:, 0] + x[:, 1]) / 2
        mean = jnp.mean(x[:, self.prefix :], axis=1)
        return self.norm(mean) if self.pool == "mean" else jnp.concatenate([x[:, 0], mean], axis=-1)

    def resized(self, image_size: int) -> "ViT":
        """Returns the same network on another grid of patches.

        Raises:
            InputError: the patches do not tile the image.
        """
        if image_size % self.patch_size:
            below = image_size // self.patch_size * self.patch_size
            sizes = f"{below} or {below + self.patch_size}" if below else str(self.patch_size)
            message = f"image size {image_size} is no multiple of the patch size {self.patch_size}: give {sizes}"
            raise InputError(message)
        return self.clone(grid=(image_size // self.patch_size,) * 2)
