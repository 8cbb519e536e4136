"""Swin Transformer (2103.14030) and its second version (2111.09883): attention within windows that shift."""

import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tljax.models.base import Backbone, BackboneInput
from tljax.models.convolution import blocks
from tljax.models.layers import Dense, LayerNorm, Mlp
from tljax.models.relative import biased_attention, displacements, join_heads, split_heads
from tljax.models.vision.patches import embed_patches, patches_along

_trunc_normal = nn.initializers.truncated_normal(0.02)
_OTHER_REGION = -100.0  # added to the scores of tokens that are neighbors only because the map was rolled
_POSITION_HIDDEN = 512  # units of the MLP that makes biases of displacements


class _Stem(nn.Module):
    """Patches, projected and normalized."""

    width: int
    patch_size: int
    eps: float

    @nn.compact
    def __call__(self, x):
        shape = (self.patch_size, self.patch_size, x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        x = embed_patches(x, kernel, self.param("bias", nn.initializers.zeros, (self.width,)))
        return LayerNorm(self.eps, name="norm")(x)


class _PatchMerging(nn.Module):
    """Each two by two pixels as one of twice the channels; normalized before that, or after in version 2."""

    version: int
    eps: float

    @nn.compact
    def __call__(self, x):
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)  # columns first
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        norm = LayerNorm(self.eps, name="norm")
        reduction = Dense(2 * channels, _trunc_normal, use_bias=False, name="reduction")
        return reduction(norm(x)) if self.version == 1 else norm(reduction(x))


class _PositionMlp(nn.Module):
    """Biases of displacements on a logarithmic scale, 16 at most (2111.09883, section 3.3)."""

    heads: int

    @nn.compact
    def __call__(self, coordinates):
        x = nn.relu(Dense(_POSITION_HIDDEN, _trunc_normal, name="fc1")(coordinates))
        return 16 * nn.sigmoid(Dense(self.heads, _trunc_normal, use_bias=False, name="fc2")(x))


class _WindowAttention(nn.Module):
    """Self-attention within the windows of a map, which are moved by half a window's side if `shifted`."""

    heads: int
    window: int
    shifted: bool
    version: int
    pretrained_window: int

    @nn.compact
    def __call__(self, x):
        """Maps [batch, height, width, channels] to the same; one that windows do not tile is filled up with zeros."""
        sides, channels = x.shape[1:3], x.shape[-1]
        window = windows_of(sides, self.window)
        shift = [side // 2 if self.shifted and whole > side else 0 for side, whole in zip(window, sides, strict=True)]
        x = jnp.roll(x, [-n for n in shift], axis=(1, 2))
        x = jnp.pad(x, ((0, 0), *((0, -whole % side) for side, whole in zip(window, sides, strict=True)), (0, 0)))
        filled = x.shape[1:3]
        unbiased = (0, 0) if self.version == 1 else (channels, 2 * channels)  # keys
        q, k, v = split_heads(Dense(3 * channels, _trunc_normal, unbiased, name="qkv")(_cut(x, window)), self.heads)
        if self.version == 1:
            q = q * q.shape[-1] ** -0.5
        else:
            scale = self.param("logit_scale", nn.initializers.constant(math.log(10)), (self.heads,))
            q = _unit(q) * jnp.exp(jnp.minimum(scale, math.log(100)))[:, None, None].astype(q.dtype)
            k = _unit(k)
        bias = self._table(window, x.dtype)[displacements(*window)].transpose(2, 0, 1)
        if any(shift):
            bias = bias + _regions(filled, window, shift)[:, None].astype(bias.dtype)
        x = _uncut(join_heads(biased_attention(q, k, v, bias)), window, filled)
        x = jnp.roll(x[:, : sides[0], : sides[1]] if filled != sides else x, shift, axis=(1, 2))
        return Dense(channels, _trunc_normal, name="out")(x)

    def _table(self, window, dtype):
        """Returns the bias [displacements, heads] of each displacement within a window."""
        if self.version == 1:
            rows = math.prod(2 * side - 1 for side in window)
            return self.param("bias_table", _trunc_normal, (rows, self.heads))
        ends = [(self.pretrained_window or side) - 1 for side in window]
        axes = [np.arange(1 - side, side) * 8 / max(end, 1) for side, end in zip(window, ends, strict=True)]
        coordinates = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
        coordinates = np.sign(coordinates) * np.log2(1 + np.abs(coordinates)) / 3
        return _PositionMlp(self.heads, name="position_mlp")(jnp.asarray(coordinates, dtype))


def windows_of(sides: tuple[int, int], window: int) -> tuple[int, int]:
    """Returns the sides of the windows on a map, which are no longer than its own."""
    return min(sides[0], window), min(sides[1], window)


def _unit(x):
    """Returns vectors of length 1."""
    norm = jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True) + 1e-24)
    return (x / norm).astype(x.dtype)


def _cut(x, window):
    """Returns the windows of a map, [batch, windows, tokens, channels]."""
    (down, across), (batch, height, width, channels) = window, x.shape
    x = x.reshape(batch, height // down, down, width // across, across, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, -1, down * across, channels)


def _uncut(x, window, sides):
    """Returns the map that windows are of."""
    (down, across), (height, width) = window, sides
    x = x.reshape(len(x), height // down, width // across, down, across, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), height, width, -1)


def _regions(sides, window, shift):
    """Returns what keeps tokens apart [windows, tokens, tokens] that were no neighbors before the map was rolled."""
    labels = [
        (places >= whole - side).astype(int) + (places >= whole - moved) if moved else 0 * places
        for places, whole, side, moved in zip(map(np.arange, sides), sides, window, shift, strict=True)
    ]
    regions = (3 * labels[0][:, None] + labels[1][None]).reshape(1, *sides, 1)
    regions = _cut(regions, window)[0, :, :, 0]
    return jnp.asarray(np.where(regions[:, :, None] == regions[:, None], 0.0, _OTHER_REGION))


class _Block(nn.Module):
    """Window attention and an MLP; the first block of a later stage merges patches before.

    Version 1 normalizes what a branch is given, version 2 what it gives.
    """

    heads: int
    window: int
    shifted: bool
    merges: bool
    mlp_ratio: float
    version: int
    pretrained_window: int
    eps: float

    @nn.compact
    def __call__(self, x):
        if self.merges:
            x = _PatchMerging(self.version, self.eps, name="merging")(x)
        norm1, norm2 = (LayerNorm(self.eps, name=f"norm{n}") for n in (1, 2))
        attention = _WindowAttention(
            self.heads, self.window, self.shifted, self.version, self.pretrained_window, name="attention"
        )
        mlp = Mlp(int(self.mlp_ratio * x.shape[-1]), "erf", _trunc_normal, name="mlp")
        if self.version == 1:
            x = x + attention(norm1(x))
            return x + mlp(norm2(x))
        x = x + norm1(attention(x))
        return x + norm2(mlp(x))


class Swin(Backbone):
    """A Swin Transformer that ends in globally pooled features; by default Swin-T.

    Attributes:
        width: channels of the first stage; each later one has twice as many.
        depths: blocks of each stage.
        heads: of each stage's attention.
        window: patches along a window's side; no more than the map has.
        mlp_ratio: hidden units of a block's MLP, as a multiple of its width.
        patch_size: pixels along a patch's side.
        grid: patches (down, across); the image is `grid * patch_size` pixels.
        version: 2 normalizes after a branch, compares directions of queries and keys, and computes position biases.
        pretrained_windows: of each stage in version 2, the window by which displacements are measured where the
            network was first trained with another; () for its own.
        pool: `mean` over the pixels of the last map, or `max`.
        eps: LayerNorm's epsilon.

    Groups: `stem` (patches), one `block_i` per block in order, `norm`.
    """

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    patch_size: int = 4
    grid: tuple[int, int] = (56, 56)
    version: Literal[1, 2] = 1
    pretrained_windows: tuple[int, ...] = ()
    pool: Literal["mean", "max"] = "mean"
    eps: float = 1e-5

    @property
    def pools(self) -> dict[str, str]:
        return {name: name for name in ("mean", "max")}

    @property
    def groups(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(sum(self.depths))), "norm")

    @property
    def feature_dim(self) -> int:
        return self.width * 2 ** (len(self.depths) - 1)

    @property
    def input_spec(self) -> BackboneInput:
        return BackboneInput("image", size=(self.grid[0] * self.patch_size, self.grid[1] * self.patch_size))

    @property
    def input_kernel(self) -> str:
        return "params/stem/kernel"

    @property
    def residual_branches(self) -> str:
        return r"block_\d+/(attention|mlp)" if self.version == 1 else r"block_\d+/norm[12]"

    @property
    def mlp_branches(self) -> str:
        return r"block_\d+/mlp"

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        return (r"block_\d+/attention/qkv",)

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        if self.version == 2:  # biases are computed
            return {}
        windows = [
            windows_of((-(-self.grid[0] // 2**stage), -(-self.grid[1] // 2**stage)), self.window)
            for stage, _ in blocks(self.depths)
        ]
        return {f"params/block_{i}/attention/bias_table": window for i, window in enumerate(windows)}

    def setup(self):
        self.stem = _Stem(self.width, self.patch_size, self.eps)
        self.block = [
            _Block(
                heads=self.heads[stage],
                window=self.window,
                shifted=i % 2 == 1,
                merges=stage > 0 and i == 0,
                mlp_ratio=self.mlp_ratio,
                version=self.version,
                pretrained_window=self.pretrained_windows[stage] if self.pretrained_windows else 0,
                eps=self.eps,
            )
            for stage, i in blocks(self.depths)
        ]
        self.norm = LayerNorm(self.eps)

    def layers(self) -> list[nn.Module]:
        return [self.stem, *self.block, self.norm]

    def pooled(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
        """Returns the features of a feature map."""
        return jnp.max(x, axis=(1, 2)) if self.pool == "max" else jnp.mean(x, axis=(1, 2))

    def resized(self, image_size: int) -> "Swin":
        """Returns the same network, with windows of the same size, on another grid of patches.

        Raises:
            InputError: the patches do not tile the image.
        """
        return self.clone(grid=(patches_along(image_size, self.patch_size),) * 2)


_SWIN_S = {"depths": (2, 2, 18, 2)}
_SWIN_B = {**_SWIN_S, "width": 128, "heads": (4, 8, 16, 32)}
_SWIN_L = {**_SWIN_S, "width": 192, "heads": (6, 12, 24, 48)}
_SIZE_384 = {"window": 12, "grid": (96, 96)}
_SWIN_V2 = {"version": 2, "window": 8, "grid": (64, 64)}
NETWORKS: dict[str, Swin] = {
    "swin_tiny_patch4_window7": Swin(),
    "swin_small_patch4_window7": Swin(**_SWIN_S),
    "swin_base_patch4_window7": Swin(**_SWIN_B),
    "swin_base_patch4_window12": Swin(**_SWIN_B, **_SIZE_384),
    "swin_large_patch4_window7": Swin(**_SWIN_L),
    "swin_large_patch4_window12": Swin(**_SWIN_L, **_SIZE_384),
    "swinv2_tiny_window8": Swin(**_SWIN_V2),
    "swinv2_small_window8": Swin(**_SWIN_S, **_SWIN_V2),
    "swinv2_base_window8": Swin(**_SWIN_B, **_SWIN_V2),
    "swinv2_base_window16": Swin(**_SWIN_B, **{**_SWIN_V2, "window": 16}),
}
