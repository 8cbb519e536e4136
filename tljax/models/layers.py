"""The layers that image and text transformers (1706.03762) share."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from tljax.models.base import Backbone
from tljax.models.kernels import ops


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
    """

    features: int
    kernel_init: Callable
    unbiased: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        start, stop = self.unbiased
        if stop - start == self.features:
            return ops.linear(x, kernel)
        bias = self.param("bias", nn.initializers.zeros, (self.features - (stop - start),))
        if stop > start:
            bias = jnp.concatenate([bias[:start], jnp.zeros(stop - start, bias.dtype), bias[start:]])
        return ops.linear(x, kernel, bias)


class LayerNorm(nn.Module):
    """Layer normalization over the last axis."""

    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return ops.layer_norm(x, scale, self.param("bias", nn.initializers.zeros, (x.shape[-1],)), self.eps)


class Attention(nn.Module):
    """Self-attention with a joint projection `qkv`, its columns in that order, and the projection `out`."""

    heads: int
    kernel_init: Callable

    @nn.compact
    def __call__(self, x, mask=None, first=None):
        """Tokens [batch, tokens, width] to the same; `mask` [batch, tokens] is true at tokens to attend to.

        With `first`, only that many tokens are given, from the first on; they attend to all.
        """
        batch, tokens, width = x.shape
        qkv = Dense(3 * width, self.kernel_init, name="qkv")(x).reshape(
            batch, tokens, 3, self.heads, width // self.heads
        )
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        x = ops.attention(q[:, :, :first], k, v, mask).transpose(0, 2, 1, 3).reshape(batch, -1, width)
        return Dense(width, self.kernel_init, name="out")(x)


class Mlp(nn.Module):
    """Two dense layers; `gelu` between them is `erf`, or the `tanh` approximation."""

    hidden: int
    gelu: str
    kernel_init: Callable

    @nn.compact
    def __call__(self, x):
        activation = ops.gelu if self.gelu == "erf" else nn.gelu  # the latter is the tanh approximation
        y = activation(Dense(self.hidden, self.kernel_init, name="fc1")(x))
        return Dense(x.shape[-1], self.kernel_init, name="fc2")(y)
