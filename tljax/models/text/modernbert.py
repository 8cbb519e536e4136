"""ModernBERT (2412.13663): rotary positions, local attention between global, gated MLPs, no biases."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from tljax.models.kernels import ops
from tljax.models.layers import Dense, LayerNorm
from tljax.models.rope import rotated, sequence_angles
from tljax.models.text.encoder import TextEncoder, check_length, embedding, masked_mean, normal_init


class _Stem(nn.Module):
    """Word embeddings, normalized."""

    width: int
    vocabulary: int
    positions: int
    eps: float

    @nn.compact
    def __call__(self, x):
        check_length(x["input_ids"].shape[1], self.positions)
        table = self.param("word_embed", normal_init, (self.vocabulary, self.width))
        hidden = _norm(self.eps, "norm")(embedding(table, x["input_ids"]))
        return {"hidden": hidden, "attention_mask": x["attention_mask"]}


class _Attention(nn.Module):
    """Self-attention with rotary positions, to the tokens at most `reach` places away, or to all where it is 0."""

    heads: int
    reach: int
    period: float

    @nn.compact
    def __call__(self, x, mask):
        batch, length, width = x.shape
        qkv = Dense(3 * width, normal_init, use_bias=False, name="qkv")(x)
        qkv = qkv.reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        angles = sequence_angles(length, width // self.heads, self.period)
        seen = mask[:, None, None] & self._near(length) if self.reach else mask
        x = ops.attention(rotated(q, angles), rotated(k, angles), v, seen)
        x = x.transpose(0, 2, 1, 3).reshape(batch, length, width)
        return Dense(width, normal_init, use_bias=False, name="out")(x)

    def _near(self, length: int) -> Bool[Array, "length length"]:
        place = jnp.arange(length)
        return jnp.abs(place[:, None] - place[None]) <= self.reach


class _Mlp(nn.Module):
    """A gated MLP, GeGLU (2002.05202): the first half of `fc1`, after GELU, times the second."""

    hidden: int
    gelu: str

    @nn.compact
    def __call__(self, x):
        activation = ops.gelu if self.gelu == "erf" else nn.gelu
        first, gate = jnp.split(Dense(2 * self.hidden, normal_init, use_bias=False, name="fc1")(x), 2, axis=-1)
        return Dense(x.shape[-1], normal_init, use_bias=False, name="fc2")(activation(first) * gate)


class _Block(nn.Module):
    heads: int
    reach: int
    period: float
    mlp_width: int
    gelu: str
    eps: float
    is_first: bool

    @nn.compact
    def __call__(self, carry):
        x, mask = carry["hidden"], carry["attention_mask"]
        y = x if self.is_first else _norm(self.eps, "norm1")(x)  # which `stem` has just normalized
        x = x + _Attention(self.heads, self.reach, self.period, name="attention")(y, mask != 0)
        x = x + _Mlp(self.mlp_width, self.gelu, name="mlp")(_norm(self.eps, "norm2")(x))
        return {"hidden": x, "attention_mask": mask}


class _Norm(LayerNorm):
    """The norm after the last block."""

    @nn.compact
    def __call__(self, carry):
        return {"hidden": super().__call__(carry["hidden"]), "attention_mask": carry["attention_mask"]}


class _Pooler(nn.Module):
    """The classifier's first half: a dense layer, GELU and a norm."""

    gelu: str
    eps: float

    @nn.compact
    def __call__(self, x):
        activation = ops.gelu if self.gelu == "erf" else nn.gelu
        x = Dense(x.shape[-1], normal_init, use_bias=False, name="dense")(x)
        return _norm(self.eps, "norm")(activation(x))


def _norm(eps: float, name: str) -> LayerNorm:
    return LayerNorm(eps, use_bias=False, name=name)


class ModernBert(TextEncoder):
    """A pre-norm text encoder whose blocks see a few neighbors, and every third the whole text. ModernBERT-base.

    Attributes, beside those of a `TextEncoder`:
        pool: also `cls_gelu_norm` and `mean_gelu_norm`, the first token, or the mean, after a dense layer, GELU and a
            norm.
        global_every: the first of so many blocks sees all tokens.
        window: places that the others see; half of them on each side.
        global_period, local_period: the base of rotary positions' periods in the two kinds of block.
        gelu: `erf`, or the `tanh` approximation.
        eps: LayerNorm's epsilon.

    Groups: those of a `TextEncoder`, and `norm` after the last block.
    """

    depth: int = 22
    mlp_width: int | None = 1152
    vocabulary: int = 50368
    positions: int = 8192
    pool: Literal["cls", "mean", "max", "cls_gelu_norm", "mean_gelu_norm"] = "mean"
    global_every: int = 3
    window: int = 128
    global_period: float = 160000.0
    local_period: float = 10000.0
    gelu: Literal["erf", "tanh"] = "erf"
    eps: float = 1e-5

    @property
    def pools(self) -> dict[str, str]:
        pooler = self.pool if self.has_pooler else f"{'cls' if self.pool == 'cls' else 'mean'}_gelu_norm"
        return super().pools | {"pooler": pooler}

    @property
    def has_pooler(self) -> bool:
        """Whether the classifier's first half follows the pooling."""
        return self.pool.endswith("_gelu_norm")

    @property
    def groups(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(self.depth)), "norm", *self.ends)

    def setup(self):
        self.stem = _Stem(self.width, self.vocabulary, self.positions, self.eps)
        hidden = self.mlp_width or 4 * self.width
        self.block = [
            _Block(self.heads, *self._attention_in(i), hidden, self.gelu, self.eps, is_first=i == 0)
            for i in range(self.depth)
        ]
        self.norm = _Norm(self.eps, use_bias=False)
        self.ending()

    def make_pooler(self) -> nn.Module:
        """Returns the classifier's first half."""
        return _Pooler(self.gelu, self.eps)

    def _attention_in(self, block: int) -> tuple[int, float]:
        """Returns how far a block sees, 0 for everything, and the base of its periods."""
        is_global = block % self.global_every == 0
        return (0, self.global_period) if is_global else (self.window // 2, self.local_period)

    def token_layers(self) -> list[nn.Module]:
        """Returns the modules of the groups that give tokens, the last norm among them."""
        return [*super().token_layers(), self.norm]

    def pooled_tokens(
        self, hidden: Float[Array, "batch length width"], mask: Shaped[Array, "batch length"]
    ) -> Float[Array, "batch width"]:
        """Returns one vector of each text's tokens."""
        if not self.has_pooler:
            return super().pooled_tokens(hidden, mask)
        return self.pooler(hidden[:, 0] if self.pool == "cls_gelu_norm" else masked_mean(hidden, mask))


NETWORKS: dict[str, ModernBert] = {
    "modernbert_base": ModernBert(),
    "modernbert_large": ModernBert(width=1024, depth=28, heads=16, mlp_width=2624),
}
