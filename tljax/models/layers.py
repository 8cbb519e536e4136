"""The layers that image and text transformers (1706.03762) share."""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.models.base import Backbone
from tljax.models.kernels import ops
from tljax.models.rope import axial_angles, rotated

# Width, depth and heads that papers call so.
TINY = {"width": 192, "heads": 3}
BASE = {"width": 768, "heads": 12}
LARGE = {"width": 1024, "depth": 24, "heads": 16}


class TransformerBackbone(Backbone):
    """A backbone of blocks with an `Attention` and an `Mlp` of these; a subclass has an attribute `width`."""

    @property
    def residual_branches(self) -> str:
        return r"block_\d+/(attention|mlp)"

    @property
    def mlp_branches(self) -> str:
        return r"block_\d+/mlp"

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        return (r"block_\d+/attention/qkv",)

    @property
    def prompt_width(self) -> int:
        return self.width


class Dense(nn.Module):
    """A dense layer, `x @ kernel + bias` over the last axis.

    Attributes:
        features: outputs.
        kernel_init: how the kernel [inputs, features] starts; the bias starts at zero.
        unbiased: (start, stop) of the outputs that have no bias.
        use_bias: whether any output has one.
    """

    features: int
    kernel_init: Callable
    unbiased: tuple[int, int] = (0, 0)
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        if not self.use_bias:
            return ops.linear(x, kernel)
        start, stop = self.unbiased
        bias = self.param("bias", nn.initializers.zeros, (self.features - (stop - start),))
        if stop > start:
            bias = jnp.concatenate([bias[:start], jnp.zeros(stop - start, bias.dtype), bias[start:]])
        return ops.linear(x, kernel, bias)


class LayerNorm(nn.Module):
    """Layer normalization over the last axis, with a bias or without."""

    eps: float
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        width = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width) if self.use_bias else jnp.zeros(width, scale.dtype)
        return ops.layer_norm(x, scale, bias, self.eps)


class Attention(nn.Module):
    """Self-attention with a joint projection `qkv`, its columns in that order, and the projection `out`.

    Attributes:
        heads: their number.
        kernel_init: how kernels start.
        biased: which of the queries, keys and values have a bias.
        qk_norm: the epsilon of a LayerNorm over each head's queries and keys (2302.05442); None for none.
        rotary: the grid (down, across) of the last tokens, which are given their places by rotation; None for none.
    """

    heads: int
    kernel_init: Callable
    biased: Literal["all", "query_value", "none"] = "all"
    qk_norm: float | None = None
    rotary: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x, mask=None, first=None, bias=None):
        """Tokens [batch, tokens, width] to the same; `mask` [batch, tokens] is true at tokens to attend to.

        With `first`, only that many tokens are given, from the first on; they attend to all. A `bias`
        [heads, tokens, tokens] is added to the scores.
        """
        batch, tokens, width = x.shape
        unbiased = (width, 2 * width) if self.biased == "query_value" else (0, 0)
        qkv = Dense(3 * width, self.kernel_init, unbiased, self.biased != "none", name="qkv")(x)
        q, k, v = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads).transpose(2, 0, 3, 1, 4)
        if self.qk_norm is not None:
            q, k = LayerNorm(self.qk_norm, name="q_norm")(q), LayerNorm(self.qk_norm, name="k_norm")(k)
        if self.rotary is not None:
            angles = axial_angles(self.rotary, width // self.heads)
            q, k = rotated(q, angles), rotated(k, angles)
        x = ops.attention(q[:, :, :first], k, v, mask, bias).transpose(0, 2, 1, 3).reshape(batch, -1, width)
        return Dense(width, self.kernel_init, name="out")(x)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x·σ(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


GELUS = {"erf": ops.gelu, "tanh": nn.gelu, "quick": quick_gelu}  # Linen's is the tanh approximation


class Mlp(nn.Module):
    """Two dense layers; `gelu` between them is `erf`, or an approximation: `tanh` or `quick`."""

    hidden: int
    gelu: str
    kernel_init: Callable

    @nn.compact
    def __call__(self, x):
        y = GELUS[self.gelu](Dense(self.hidden, self.kernel_init, name="fc1")(x))
        return Dense(x.shape[-1], self.kernel_init, name="fc2")(y)


class SwiGlu(nn.Module):
    """Two dense layers, the first for a gate and a value, SiLU(gate) · value between them (2002.05202).

    Attributes:
        hidden: units of the value.
        kernel_init: how kernels start.
        norm: the epsilon of a LayerNorm before the second layer; None for none.
    """

    hidden: int
    kernel_init: Callable
    norm: float | None = None

    @nn.compact
    def __call__(self, x):
        gate, value = jnp.split(Dense(2 * self.hidden, self.kernel_init, name="fc1")(x), 2, axis=-1)
        y = jax.nn.silu(gate) * value
        if self.norm is not None:
            y = LayerNorm(self.norm, name="norm")(y)
        return Dense(x.shape[-1], self.kernel_init, name="fc2")(y)
