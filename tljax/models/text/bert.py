"""BERT (1810.04805) and what shares its layers: MiniLM (2002.10957), RoBERTa (1907.11692), DistilBERT (1910.01108)."""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.errors import InputError
from tljax.models.base import BackboneInput
from tljax.models.layers import Attention, Dense, LayerNorm, Mlp, TransformerBackbone
from tljax.models.remat import run_group

_normal = nn.initializers.truncated_normal(0.02)
_ACTIVATIONS = {"cls_tanh": jnp.tanh, "cls_relu": jax.nn.relu}


class _Stem(nn.Module):
    """The sum of word, position and token type embeddings, normalized."""

    width: int
    vocabulary: int
    positions: int
    token_types: int
    pad_id: int | None
    eps: float

    @nn.compact
    def __call__(self, x):
        ids = x["input_ids"]
        self._check_length(ids.shape[1])
        hidden = self._embedding("word_embed", self.vocabulary, ids)
        hidden += self._embedding("pos_embed", self.positions, self._places(ids))
        if self.token_types:
            types = x.get("token_type_ids", jnp.zeros_like(ids))
            hidden += self._embedding("type_embed", self.token_types, types)
        return {"hidden": LayerNorm(self.eps, name="norm")(hidden), "attention_mask": x["attention_mask"]}

    def _embedding(self, name, rows, ids):
        table = self.param(name, _normal, (rows, self.width))
        # In float32 the gradients of a row's tokens add up: one by one in bfloat16, a thousand ones would be 256.
        # Unlike table[ids], which takes the last row for an id beyond it, this gives NaN.
        return jnp.take(table.astype(jnp.float32), ids, axis=0, mode="fill").astype(table.dtype)

    def _places(self, ids):
        if self.pad_id is None:
            return jnp.arange(ids.shape[1])[None]
        is_token = (ids != self.pad_id).astype(ids.dtype)
        return self.pad_id + jnp.cumsum(is_token, axis=1) * is_token

    def _check_length(self, length: int):
        most = _longest(self.positions, self.pad_id)
        if length > most:
            raise InputError(f"texts of {length} tokens, but the network has positions for {most}: shorten them")


def _longest(positions: int, pad_id: int | None) -> int:
    """Returns how many tokens of a text have a position: those up to the padding's own are no token's."""
    return positions - (0 if pad_id is None else pad_id + 1)


class _Block(nn.Module):
    heads: int
    mlp_width: int
    gelu: str
    eps: float

    @nn.compact
    def __call__(self, carry):
        x, mask = carry["hidden"], carry["attention_mask"]
        attention = Attention(self.heads, _normal, name="attention")
        x = LayerNorm(self.eps, name="norm1")(x + attention(x, mask != 0))
        x = LayerNorm(self.eps, name="norm2")(x + Mlp(self.mlp_width, self.gelu, _normal, name="mlp")(x))
        return {"hidden": x, "attention_mask": mask}


def _normalized(features):
    wide = features.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(wide * wide, axis=-1, keepdims=True), 1e-24))  # whose gradient at 0 is 0
    return (wide / norm).astype(features.dtype)


class Bert(TransformerBackbone):
    """A post-norm text encoder that ends in pooled features. The defaults are BERT-base's.

    Attributes:
        width, depth, heads: the usual sizes.
        mlp_width: hidden units of a block's MLP; four times the width if None.
        vocabulary, positions: rows of the word and of the position embedding.
        token_types: rows of the token type embedding; 0 for a network without (DistilBERT).
        pad_id: None if positions are the columns from 0 on. If given, they count from `pad_id + 1`, and skip tokens
            with that id (RoBERTa).
        pool: `cls`, the first token; `cls_tanh`, that after a dense layer and tanh (BERT's pooler, and the first half
            of RoBERTa's classifier); `cls_relu`, after a dense layer and ReLU (DistilBERT's `pre_classifier`);
            `mean` of the tokens where the attention mask is 1 (Sentence-BERT, 1908.10084); `max` over them.
        normalize: whether the pooled features are divided by their Euclidean norm.
        gelu: `erf`, or the `tanh` approximation.
        eps: LayerNorm's epsilon.

    Groups: `stem` (embeddings), `block_0` …, and `pooler` where there is a dense layer.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int | None = None
    vocabulary: int = 30522
    positions: int = 512
    token_types: int = 2
    pad_id: int | None = None
    pool: Literal["cls", "cls_tanh", "cls_relu", "mean", "max"] = "cls_tanh"
    gelu: Literal["erf", "tanh"] = "erf"
    eps: float = 1e-12
    normalize: bool = False

    @property
    def pools(self) -> dict[str, str]:
        dense = "cls_tanh" if self.token_types else "cls_relu"  # which is DistilBERT's
        return {"cls": "cls", "mean": "mean", "max": "max", "pooler": dense}

    @property
    def groups(self) -> tuple[str, ...]:
        pooler = ("pooler",) if self.pool in _ACTIVATIONS else ()
        return ("stem", *(f"block_{i}" for i in range(self.depth)), *pooler)

    @property
    def input_spec(self) -> BackboneInput:
        return BackboneInput("text", max_tokens=_longest(self.positions, self.pad_id))

    def pool_attributes(self, pool: str) -> dict[str, Any]:
        """Returns them without the division by the norm, which belongs to the pooling that the weights describe."""
        return {"pool": pool, "normalize": False}

    @property
    def feature_dim(self) -> int:
        return self.width

    def setup(self):
        self.stem = _Stem(self.width, self.vocabulary, self.positions, self.token_types, self.pad_id, self.eps)
        hidden = self.mlp_width or 4 * self.width
        self.block = [_Block(self.heads, hidden, self.gelu, self.eps) for _ in range(self.depth)]
        if self.pool in _ACTIVATIONS:
            self.pooler = Dense(self.width, _normal)

    def run_groups(
        self,
        x: Mapping[str, Array],
        start: int = 0,
        stop: int | None = None,
        *,
        pools: bool = False,
        batch_norm: Mapping[str, str] = {},
        remat: bool = False,
    ) -> dict[str, Array] | Float[Array, "batch length width"]:
        """Returns what `groups[start:stop]` make of a text; there is no BatchNorm.

        Args:
            x: `input_ids`, `attention_mask` (1 at tokens, 0 at padding) and, where there are any, `token_type_ids`
                (else 0), each [batch, length] of integers; or what `groups[:start]` gave.
            start, stop, pools, batch_norm, remat: as in `Backbone.run_groups`.

        Returns:
            `hidden` [batch, length, width] after `groups[stop - 1]` and `attention_mask`; at the end, if not pooled,
            `hidden` alone.

        Raises:
            InputError: the texts are longer than there are positions.
        """
        for layer in [self.stem, *self.block][start:stop]:
            x = run_group(layer, x, remat=remat)
        is_end = self.groups[-1] in self.groups[start:stop]
        return x["hidden"] if is_end and not pools else x

    def pooled(self, x: Mapping[str, Array]) -> Float[Array, "batch width"]:
        """Returns the features of the hidden states after the last block."""
        features = self._pooled(x["hidden"], x["attention_mask"])
        return _normalized(features) if self.normalize else features

    def _pooled(self, hidden, mask):
        if self.pool == "max":
            is_token = (mask != 0)[..., None]
            most = jnp.max(jnp.where(is_token, hidden, jnp.finfo(hidden.dtype).min), axis=1)
            return jnp.where(jnp.any(is_token, axis=1), most, 0)
        if self.pool == "mean":
            weights = mask.astype(jnp.float32)[..., None]  # bfloat16 cannot count beyond 256
            mean = jnp.sum(hidden * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)
            return mean.astype(hidden.dtype)
        first = hidden[:, 0]
        return _ACTIVATIONS[self.pool](self.pooler(first)) if self.pool in _ACTIVATIONS else first
