"""What text encoders share: their sizes and groups, and the ways in which their tokens become one vector."""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from tljax.errors import InputError
from tljax.models.base import BackboneInput
from tljax.models.kernels import ops
from tljax.models.layers import Dense, TransformerBackbone
from tljax.models.remat import run_group

normal_init = nn.initializers.truncated_normal(0.02)
_ACTIVATIONS = {"cls_tanh": jnp.tanh, "cls_relu": jax.nn.relu, "cls_gelu": ops.gelu}


def embedding(
    table: Float[Array, "rows width"], ids: Int[Array, "#batch length"]
) -> Float[Array, "#batch length width"]:
    """Returns the rows of a table, NaN for an id beyond it (where `table[ids]` takes the last row)."""
    # In float32 the gradients of a row's tokens add up: one by one in bfloat16, a thousand ones would be 256.
    return jnp.take(table.astype(jnp.float32), ids, axis=0, mode="fill").astype(table.dtype)


def check_length(length: int, most: int) -> None:
    """Raises InputError for texts longer than the network has positions."""
    if length > most:
        raise InputError(f"texts of {length} tokens, but the network has positions for {most}: shorten them")


SENTENCE = {"pool": "mean", "normalize": True}  # embeddings of sentences, to be compared by their cosine


class TextEncoder(TransformerBackbone):
    """A text encoder that ends in pooled features; a subclass makes `stem` and `block` in `setup`, and calls `ending`.

    Attributes:
        width, depth, heads: the usual sizes.
        mlp_width: hidden units of a block's MLP; four times the width if None.
        vocabulary, positions: rows of the word and of the position embedding.
        pool: `cls`, the first token; `cls_tanh`, that after a dense layer and tanh (BERT's pooler, and the first half
            of RoBERTa's classifier); `cls_relu`, after a dense layer and ReLU (DistilBERT's `pre_classifier`);
            `cls_gelu`, after a dense layer and GELU (ELECTRA's and DeBERTa's); `mean` of the tokens where the
            attention mask is 1 (Sentence-BERT, 1908.10084); `max` over them.
        normalize: whether the features are divided by their Euclidean norm, at the very end.
        dense_width: outputs of a dense layer on what is pooled (sentence-transformers' `Dense`); 0 for none.
        dense_activation: what follows that layer, `tanh` or nothing (`identity`).

    Groups: `stem` (embeddings), `block_0` …, and `pooler` and `dense` where there are such layers.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int | None = None
    vocabulary: int = 30522
    positions: int = 512
    pool: Literal["cls", "cls_tanh", "cls_relu", "cls_gelu", "mean", "max"] = "cls"
    normalize: bool = False
    dense_width: int = 0
    dense_activation: Literal["tanh", "identity"] = "tanh"

    @property
    def pools(self) -> dict[str, str]:
        return {"cls": "cls", "mean": "mean", "max": "max", "pooler": "cls_tanh"}

    @property
    def has_pooler(self) -> bool:
        """Whether a layer of its own follows the pooling."""
        return self.pool in _ACTIVATIONS

    @property
    def ends(self) -> tuple[str, ...]:
        """The groups that act on pooled features."""
        return ("pooler",) * self.has_pooler + ("dense",) * bool(self.dense_width)

    @property
    def groups(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(self.depth)), *self.ends)

    @property
    def input_spec(self) -> BackboneInput:
        return BackboneInput("text", max_tokens=self.positions)

    def pool_attributes(self, pool: str) -> dict[str, Any]:
        """Returns them without what belongs to the pooling that the weights describe: dense layer, division by norm."""
        return {"pool": pool, "normalize": False, "dense_width": 0}

    @property
    def feature_dim(self) -> int:
        return self.dense_width or self.width

    def ending(self) -> None:
        """Makes the layers that act on pooled features."""
        if self.has_pooler:
            self.pooler = self.make_pooler()
        if self.dense_width:
            self.dense = Dense(self.dense_width, normal_init)

    def make_pooler(self) -> nn.Module:
        """Returns the layer that follows the pooling."""
        return Dense(self.width, normal_init)

    def token_layers(self) -> list[nn.Module]:
        """Returns the modules of the groups that give tokens, in order."""
        return [self.stem, *self.block]

    def shared(self) -> dict[str, Array]:
        """Returns what each block reads besides the tokens, of parameters that `stem` has for all of them."""
        return {}

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
        layers, shared = self.token_layers(), {}
        for place in range(len(layers))[start:stop]:
            shared = shared or (self.shared() if place else {})  # of a stem that has run
            x = run_group(layers[place], {**x, **shared}, remat=remat)
        is_end = self.groups[-1] in self.groups[start:stop]
        return x["hidden"] if is_end and not pools else x

    def pooled(self, x: Mapping[str, Array]) -> Float[Array, "batch features"]:
        """Returns the features of the hidden states after the last block."""
        features = self.pooled_tokens(x["hidden"], x["attention_mask"])
        if self.dense_width:
            features = self.dense(features)
            features = jnp.tanh(features) if self.dense_activation == "tanh" else features
        return _normalized(features) if self.normalize else features

    def pooled_tokens(
        self, hidden: Float[Array, "batch length width"], mask: Shaped[Array, "batch length"]
    ) -> Float[Array, "batch width"]:
        """Returns one vector of each text's tokens."""
        if self.pool == "max":
            is_token = (mask != 0)[..., None]
            most = jnp.max(jnp.where(is_token, hidden, jnp.finfo(hidden.dtype).min), axis=1)
            return jnp.where(jnp.any(is_token, axis=1), most, 0)
        if self.pool == "mean":
            return masked_mean(hidden, mask)
        first = hidden[:, 0]
        return _ACTIVATIONS[self.pool](self.pooler(first)) if self.has_pooler else first


def masked_mean(
    hidden: Float[Array, "batch length width"], mask: Shaped[Array, "batch length"]
) -> Float[Array, "batch width"]:
    """Returns the mean of the tokens where the mask is 1; 0 where it is nowhere."""
    weights = mask.astype(jnp.float32)[..., None]  # bfloat16 cannot count beyond 256
    mean = jnp.sum(hidden * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)
    return mean.astype(hidden.dtype)


def _normalized(features):
    wide = features.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(wide * wide, axis=-1, keepdims=True), 1e-24))  # whose gradient at 0 is 0
    return (wide / norm).astype(features.dtype)
