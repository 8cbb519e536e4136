"""DeBERTa v2 and v3 (2006.03654, 2111.09543): attention to what a token says and, apart from it, to how far it is."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tljax.models.kernels import ops
from tljax.models.layers import LARGE, Dense, LayerNorm, Mlp
from tljax.models.text.encoder import TextEncoder, check_length, embedding, normal_init


def buckets(length: int, count: int, farthest: int) -> Int[np.ndarray, " distances"]:
    """Returns the row of the position table for each distance from 1 - length to length - 1, query minus key.

    Args:
        length: tokens of a text.
        count: half the rows: distances below half of it have their own, the others share logarithmic ones.
        farthest: the distance from which on all have the last.
    """
    distance, own = np.arange(1 - length, length), count // 2
    # In float32, as the weights were trained: where a bucket begins, rounding decides.
    ratio = np.log(np.maximum(np.abs(distance), own).astype(np.float32) / np.float32(own))
    far = np.ceil(ratio / np.log(np.float32((farthest - 1) / own)) * np.float32(own - 1)) + own
    bucket = np.where(np.abs(distance) <= own, distance, np.sign(distance) * far)
    return np.clip(bucket + count, 0, 2 * count - 1).astype(np.int32)


def by_distance(x: Float[Array, "batch heads length distances"]) -> Float[Array, "batch heads length length"]:
    """Returns y[i, j] = x[i, length - 1 - i + j], each row's window, without gathering."""
    batch, heads, length, distances = x.shape
    if length == 1:
        return x
    flat = x.reshape(batch, heads, length * distances)[..., length - 1 :]
    stride = distances - 1
    return flat[..., : length * stride].reshape(batch, heads, length, stride)[..., :length]


class _Stem(nn.Module):
    """Word and token type embeddings, normalized, and 0 at padding; and the positions that all blocks attend to."""

    width: int
    vocabulary: int
    positions: int
    token_types: int
    rows: int
    eps: float

    def setup(self):
        self.word_embed = self.param("word_embed", normal_init, (self.vocabulary, self.width))
        if self.token_types:
            self.type_embed = self.param("type_embed", normal_init, (self.token_types, self.width))
        self.norm = LayerNorm(self.eps)
        self.relative_embed = self.param("relative_embed", normal_init, (self.rows, self.width))
        self.relative_norm = LayerNorm(self.eps)

    def __call__(self, x):
        ids, mask = x["input_ids"], x["attention_mask"]
        check_length(ids.shape[1], self.positions)
        hidden = embedding(self.word_embed, ids)
        if self.token_types:
            hidden += embedding(self.type_embed, x.get("token_type_ids", jnp.zeros_like(ids)))
        return {"hidden": self.norm(hidden) * (mask != 0)[..., None].astype(hidden.dtype), "attention_mask": mask}

    def relative(self) -> Float[Array, "rows width"]:
        """Returns the embeddings of relative positions."""
        return self.relative_norm(self.relative_embed)


class _Attention(nn.Module):
    """Disentangled attention: content to content, content to position and position to content.

    Positions go through the content's own projections to queries and keys.
    """

    heads: int
    farthest: int

    @nn.compact
    def __call__(self, x, mask, relative):
        batch, length, width = x.shape
        qkv = Dense(3 * width, normal_init, name="qkv")

        def by_head(y):
            return qkv(y).reshape(*y.shape[:-1], 3, self.heads, width // self.heads)

        q, k, v = by_head(x).transpose(2, 0, 3, 1, 4)
        place_q, place_k, _ = by_head(relative).transpose(1, 2, 0, 3)
        rows = buckets(length, len(relative) // 2, self.farthest)
        scale = (3 * q.shape[-1]) ** -0.5
        # Of query i and key j: i - j falls along a row of the first, and rises along a row of the second.
        to_place = jnp.einsum("bhid,hpd->bhip", q * scale, place_k[:, rows[::-1]])
        from_place = jnp.einsum("bhjd,hpd->bhjp", k * scale, place_q[:, rows])
        bias = by_distance(to_place) + by_distance(from_place).swapaxes(2, 3)
        # `ops.attention` divides by the root of the depth, and here there are three terms.
        x = ops.attention(q * 3**-0.5, k, v, mask, bias)
        return Dense(width, normal_init, name="out")(x.transpose(0, 2, 1, 3).reshape(batch, length, width))


class _Conv(nn.Module):
    """A convolution of the embeddings over neighboring tokens, beside the first block (v2's largest)."""

    size: int
    activation: str
    eps: float

    @nn.compact
    def __call__(self, hidden, x, mask):
        width = hidden.shape[-1]
        kernel = self.param("kernel", normal_init, (self.size, width, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        half = (self.size - 1) // 2
        padded = jnp.pad(hidden, ((0, 0), (half, half), (0, 0)))
        length = hidden.shape[1]
        y = sum(ops.linear(padded[:, i : i + length], kernel[i]) for i in range(self.size)) + bias
        is_token = (mask != 0)[..., None].astype(hidden.dtype)
        y = y * is_token
        y = {"gelu": ops.gelu, "tanh": jnp.tanh}[self.activation](y)
        return LayerNorm(self.eps, name="norm")(x + y) * is_token


class _Block(nn.Module):
    heads: int
    mlp_width: int
    farthest: int
    gelu: str
    eps: float
    conv_size: int
    conv_activation: str

    @nn.compact
    def __call__(self, carry):
        hidden, mask = carry["hidden"], carry["attention_mask"]
        attention = _Attention(self.heads, self.farthest, name="attention")
        mlp = Mlp(self.mlp_width, self.gelu, normal_init, name="mlp")
        x = LayerNorm(self.eps, name="norm1")(hidden + attention(hidden, mask != 0, carry["relative"]))
        x = LayerNorm(self.eps, name="norm2")(x + mlp(x))
        if self.conv_size:
            x = _Conv(self.conv_size, self.conv_activation, self.eps, name="conv")(hidden, x, mask)
        return {"hidden": x, "attention_mask": mask}


class Deberta(TextEncoder):
    """A post-norm text encoder with disentangled attention. The defaults are DeBERTa-v3-base's.

    Attributes, beside those of a `TextEncoder`:
        positions: the most tokens that a text may have; there are no absolute positions.
        token_types: rows of the token type embedding; 0 for none.
        buckets: of distances in each direction, logarithmic from half of them on.
        farthest: the distance from which on all are in the last bucket.
        conv_size: of the convolution beside the first block; 0 for none.
        conv_activation: what follows it, `gelu` or `tanh`.
        gelu: `erf`, or the `tanh` approximation.
        eps: LayerNorm's epsilon.
    """

    vocabulary: int = 128100
    token_types: int = 0
    buckets: int = 256
    farthest: int = 512
    conv_size: int = 0
    conv_activation: Literal["gelu", "tanh"] = "tanh"
    pool: Literal["cls", "cls_gelu", "mean", "max"] = "cls"
    gelu: Literal["erf", "tanh"] = "erf"
    eps: float = 1e-7

    @property
    def pools(self) -> dict[str, str]:
        return super().pools | {"pooler": "cls_gelu"}

    def setup(self):
        rows = 2 * self.buckets
        self.stem = _Stem(self.width, self.vocabulary, self.positions, self.token_types, rows, self.eps)
        sizes = self.heads, self.mlp_width or 4 * self.width, self.farthest, self.gelu, self.eps
        convs = [self.conv_size] + [0] * (self.depth - 1)
        self.block = [_Block(*sizes, size, self.conv_activation) for size in convs]
        self.ending()

    def shared(self) -> dict[str, Array]:
        """Returns the embeddings of relative positions."""
        return {"relative": self.stem.relative()}


NETWORKS: dict[str, Deberta] = {
    "deberta_v3_xsmall": Deberta(width=384, heads=6),
    "deberta_v3_small": Deberta(depth=6),
    "deberta_v3_base": Deberta(),
    "deberta_v3_large": Deberta(**LARGE),
    "mdeberta_v3_base": Deberta(vocabulary=251000),
    "deberta_v2_xlarge": Deberta(width=1536, depth=24, heads=24, conv_size=3, conv_activation="gelu"),
}
