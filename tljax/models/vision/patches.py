"""Transformers over an image's patches: what they share, and those that begin with a class token and no more."""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.errors import InputError
from tljax.models.base import BackboneInput
from tljax.models.kernels import ops
from tljax.models.layers import TransformerBackbone
from tljax.models.remat import run_group

_trunc_normal = nn.initializers.truncated_normal(0.02)


def embed_patches(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "down across channels features"],
    bias: Float[Array, " features"] | None,
) -> Float[Array, "batch rows columns features"]:
    """Returns the projections of an image's patches, which do not overlap.

    Args:
        x: images that patches tile.
        kernel, bias: of the projection.
    """
    down, across, channels, features = kernel.shape
    rows, columns = x.shape[1] // down, x.shape[2] // across
    # Such a convolution is a matrix product of flattened patches.
    x = x.reshape(len(x), rows, down, columns, across, channels).transpose(0, 1, 3, 2, 4, 5)
    return ops.linear(x.reshape(len(x), rows, columns, -1), kernel.reshape(-1, features), bias)


def patches_along(image_size: int, patch_size: int) -> int:
    """Returns how many patches tile a side of an image.

    Args:
        image_size, patch_size: pixels along a side.

    Raises:
        InputError: none do.
    """
    if image_size % patch_size:
        below = image_size // patch_size * patch_size
        sizes = f"{below} or {below + patch_size}" if below else str(patch_size)
        raise InputError(f"image size {image_size} is no multiple of the patch size {patch_size}: give {sizes}")
    return image_size // patch_size


class PatchTransformer(TransformerBackbone):
    """A pre-norm transformer over patches.

    A subclass has attributes `width`, `depth`, `patch_size`, `grid` (patches down, across) and `pool`, and layers
    `stem`, `block` (a list) and, if it is among the `groups`, `norm`.
    """

    @property
    def input_spec(self) -> BackboneInput:
        return BackboneInput("image", size=(self.grid[0] * self.patch_size, self.grid[1] * self.patch_size))

    @property
    def input_kernel(self) -> str:
        return "params/stem/kernel"

    @property
    def prompt_init(self) -> Callable[[jax.Array, tuple[int, ...]], jax.Array]:
        """Uniform within ±sqrt(6 / (3 * patch_size² + width)), as VPT's (2203.12119)."""
        limit = math.sqrt(6 / (3 * self.patch_size**2 + self.width))
        return lambda key, shape: jax.random.uniform(key, shape, minval=-limit, maxval=limit)

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
            only_class = pools and self.pool == "class" and name == f"block_{self.depth - 1}"
            x = run_group(layer, x, *((1,) if only_class else ()), remat=remat)
        return self.norm(x) if "norm" in names and not self.pooled_norm else x

    def resized(self, image_size: int) -> "PatchTransformer":
        """Returns the same network on another grid of patches.

        Raises:
            InputError: the patches do not tile the image.
        """
        return self.clone(grid=(patches_along(image_size, self.patch_size),) * 2)


class ClassTokenStem(nn.Module):
    """Patches, projected; a class token before them; and, if `positions`, an embedding added to each."""

    width: int
    patch_size: int
    grid: tuple[int, int]
    positions: bool

    @nn.compact
    def __call__(self, x):
        p, (rows, columns) = self.patch_size, self.grid
        if x.shape[1:3] != (rows * p, columns * p):
            raise ValueError(f"images are {x.shape[1:3]}, a {self.grid} grid of {p}-pixel patches is not")
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, x.shape[-1], self.width))
        x = embed_patches(x, kernel, self.param("bias", nn.initializers.zeros, (self.width,)))
        x = x.reshape(len(x), rows * columns, self.width)
        token = self.param("class_token", _trunc_normal, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
        return x + self.param("pos_embed", _trunc_normal, (1, *x.shape[1:])) if self.positions else x


class ClassTokenTransformer(PatchTransformer):
    """A pre-norm transformer over a class token and patches that ends in pooled features.

    A `mean` of the patches is normalized after it; the `class` token, with all others, before.
    """

    @property
    def pools(self) -> dict[str, str]:
        return {name: name for name in ("class", "mean")}

    @property
    def groups(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(self.depth)), "norm")

    @property
    def pooled_norm(self) -> bool:
        return self.pool == "mean"

    @property
    def feature_dim(self) -> int:
        return self.width

    def pooled(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """Returns the features of the tokens at the end."""
        return x[:, 0] if self.pool == "class" else self.norm(jnp.mean(x[:, 1:], axis=1))
