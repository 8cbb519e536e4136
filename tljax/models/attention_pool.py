"""Pooling by attention: a learned query asks all tokens (1810.00825), as SigLIP's image towers (2303.15343) end."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from tljax.models.kernels import ops
from tljax.models.layers import Dense, LayerNorm, Mlp


class AttentionPool(nn.Module):
    """Attention of a learned token to all others, and an MLP on what it gives.

    Attributes:
        heads: of the attention.
        mlp_width: hidden units of the MLP.
        gelu: its activation, as `Mlp` has them.
        eps: LayerNorm's epsilon.
        kernel_init: how kernels start.
    """

    heads: int
    mlp_width: int
    gelu: str
    eps: float
    kernel_init: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        latent = self.param("latent", nn.initializers.truncated_normal(x.shape[-1] ** -0.5), (1, 1, x.shape[-1]))
        x = _CrossAttention(self.heads, self.kernel_init, name="attention")(latent, x)[:, 0]
        mlp = Mlp(self.mlp_width, self.gelu, self.kernel_init, name="mlp")
        return x + mlp(LayerNorm(self.eps, name="norm")(x))


class _CrossAttention(nn.Module):
    """Attention whose queries come from other tokens than its keys and values; the projection `qkv` is one, though."""

    heads: int
    kernel_init: Callable

    @nn.compact
    def __call__(self, asking, x):
        width = x.shape[-1]
        kernel, bias = _JointProjection(3 * width, self.kernel_init, name="qkv")(width)
        q = ops.linear(asking, kernel[:, :width], bias[:width])
        q = q.reshape(1, -1, self.heads, width // self.heads).transpose(0, 2, 1, 3)
        kv = ops.linear(x, kernel[:, width:], bias[width:])
        k, v = kv.reshape(*x.shape[:2], 2, self.heads, width // self.heads).transpose(2, 0, 3, 1, 4)
        x = ops.attention(q.repeat(len(x), axis=0), k, v).transpose(0, 2, 1, 3).reshape(len(x), -1, width)
        return Dense(width, self.kernel_init, name="out")(x)


class _JointProjection(nn.Module):
    """A dense layer's kernel and bias, of which parts are used apart."""

    features: int
    kernel_init: Callable

    @nn.compact
    def __call__(self, inputs):
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))
