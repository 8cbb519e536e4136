"""BERT (1810.04805) and what shares its layers: MiniLM (2002.10957), RoBERTa (1907.11692), DistilBERT (1910.01108).

XLM-R (1911.02116), multilingual E5 (2402.05672) and CamemBERT (1911.03894) are RoBERTas of other vocabularies.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from tljax.models.base import BackboneInput
from tljax.models.layers import Attention, LayerNorm, Mlp
from tljax.models.text.encoder import TextEncoder, check_length, embedding, normal_init


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
        check_length(ids.shape[1], _longest(self.positions, self.pad_id))
        hidden = self._embedding("word_embed", self.vocabulary, ids)
        hidden += self._embedding("pos_embed", self.positions, self._places(ids))
        if self.token_types:
            types = x.get("token_type_ids", jnp.zeros_like(ids))
            hidden += self._embedding("type_embed", self.token_types, types)
        return {"hidden": LayerNorm(self.eps, name="norm")(hidden), "attention_mask": x["attention_mask"]}

    def _embedding(self, name, rows, ids):
        return embedding(self.param(name, normal_init, (rows, self.width)), ids)

    def _places(self, ids):
        if self.pad_id is None:
            return jnp.arange(ids.shape[1])[None]
        is_token = (ids != self.pad_id).astype(ids.dtype)
        return self.pad_id + jnp.cumsum(is_token, axis=1) * is_token


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
        attention = Attention(self.heads, normal_init, name="attention")
        x = LayerNorm(self.eps, name="norm1")(x + attention(x, mask != 0))
        x = LayerNorm(self.eps, name="norm2")(x + Mlp(self.mlp_width, self.gelu, normal_init, name="mlp")(x))
        return {"hidden": x, "attention_mask": mask}


class Bert(TextEncoder):
    """A post-norm text encoder that ends in pooled features. The defaults are BERT-base's.

    Attributes, beside those of a `TextEncoder`:
        token_types: rows of the token type embedding; 0 for a network without (DistilBERT).
        pad_id: None if positions are the columns from 0 on. If given, they count from `pad_id + 1`, and skip tokens
            with that id (RoBERTa).
        gelu: `erf`, or the `tanh` approximation.
        eps: LayerNorm's epsilon.
    """

    token_types: int = 2
    pad_id: int | None = None
    pool: Literal["cls", "cls_tanh", "cls_relu", "mean", "max"] = "cls_tanh"
    gelu: Literal["erf", "tanh"] = "erf"
    eps: float = 1e-12

    @property
    def pools(self) -> dict[str, str]:
        dense = "cls_tanh" if self.token_types else "cls_relu"  # which is DistilBERT's
        return super().pools | {"pooler": dense}

    @property
    def input_spec(self) -> BackboneInput:
        return BackboneInput("text", max_tokens=_longest(self.positions, self.pad_id))

    def setup(self):
        self.stem = _Stem(self.width, self.vocabulary, self.positions, self.token_types, self.pad_id, self.eps)
        hidden = self.mlp_width or 4 * self.width
        self.block = [_Block(self.heads, hidden, self.gelu, self.eps) for _ in range(self.depth)]
        self.ending()
