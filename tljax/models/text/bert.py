"""BERT (1810.04805) and what shares its layers: MiniLM (2002.10957), RoBERTa (1907.11692), DistilBERT (1910.01108).

XLM-R (1911.02116), multilingual E5 (2402.05672) and CamemBERT (1911.03894) are RoBERTas of other vocabularies.
"""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.models.base import BackboneInput
from tljax.models.layers import LARGE, Attention, Dense, LayerNorm, Mlp
from tljax.models.text.encoder import SENTENCE, TextEncoder, check_length, embedding, normal_init


class Stem(nn.Module):
    """The sum of word, position and token type embeddings, normalized; and projected where they are narrower.

    Attributes:
        width: of the embeddings.
        vocabulary, positions, token_types, pad_id, eps: as of `Bert`.
        projection: the width that they are projected to; 0 where they are not.
    """

    width: int
    vocabulary: int
    positions: int
    token_types: int
    pad_id: int | None
    eps: float
    projection: int = 0

    @nn.compact
    def __call__(self, x):
        ids = x["input_ids"]
        check_length(ids.shape[1], _longest(self.positions, self.pad_id))
        hidden = self._embedding("word_embed", self.vocabulary, ids)
        hidden += self._embedding("pos_embed", self.positions, self._places(ids))
        if self.token_types:
            types = x.get("token_type_ids", jnp.zeros_like(ids))
            hidden += self._embedding("type_embed", self.token_types, types)
        hidden = LayerNorm(self.eps, name="norm")(hidden)
        if self.projection:
            hidden = Dense(self.projection, normal_init, name="project")(hidden)
        return {"hidden": hidden, "attention_mask": x["attention_mask"]}

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


class Block(nn.Module):
    """Attention and an MLP, each with a residual and a LayerNorm after it, run `repeats` times with the same weights.

    Attributes:
        heads, mlp_width, gelu, eps: as of `Bert`.
        repeats: how many times it runs.
    """

    heads: int
    mlp_width: int
    gelu: str
    eps: float
    repeats: int = 1

    @nn.compact
    def __call__(self, carry):
        x, mask, bias = carry["hidden"], carry["attention_mask"], self.attention_bias(carry)
        attention = Attention(self.heads, normal_init, name="attention")
        mlp = Mlp(self.mlp_width, self.gelu, normal_init, name="mlp")
        norm1, norm2 = (LayerNorm(self.eps, name=name) for name in ("norm1", "norm2"))
        for _ in range(self.repeats):
            x = norm1(x + attention(x, mask != 0, bias=bias))
            x = norm2(x + mlp(x))
        return {"hidden": x, "attention_mask": mask}

    def attention_bias(self, carry: Mapping[str, Array]) -> Float[Array, "heads length length"] | None:
        """Returns what is added to the attention's scores; nothing."""
        del carry


class Bert(TextEncoder):
    """A post-norm text encoder that ends in pooled features. The defaults are BERT-base's.

    Attributes, beside those of a `TextEncoder`:
        token_types: rows of the token type embedding; 0 for a network without (DistilBERT).
        pad_id: None if positions are the columns from 0 on. If given, they count from `pad_id + 1`, and skip tokens
            with that id (RoBERTa).
        gelu: `erf`, or the `tanh` approximation.
        eps: LayerNorm's epsilon.
        embedding_width: of embeddings that a dense layer projects to the width; None where they have it.
        repeats: how many times each block runs (ALBERT).
    """

    token_types: int = 2
    pad_id: int | None = None
    pool: Literal["cls", "cls_tanh", "cls_relu", "cls_gelu", "mean", "max"] = "cls_tanh"
    gelu: Literal["erf", "tanh"] = "erf"
    eps: float = 1e-12
    embedding_width: int | None = None
    repeats: int = 1

    @property
    def pools(self) -> dict[str, str]:
        dense = "cls_tanh" if self.token_types else "cls_relu"  # which is DistilBERT's
        return super().pools | {"pooler": dense}

    @property
    def input_spec(self) -> BackboneInput:
        return BackboneInput("text", max_tokens=_longest(self.positions, self.pad_id))

    def setup(self):
        self.stem = Stem(**self.stem_sizes)
        self.block = [Block(**self.block_sizes) for _ in range(self.depth)]
        self.ending()

    @property
    def stem_sizes(self) -> dict[str, Any]:
        """The attributes of its `Stem`."""
        names = ("vocabulary", "positions", "token_types", "pad_id", "eps")
        narrow = self.embedding_width
        widths = {"width": narrow or self.width, "projection": self.width if narrow else 0}
        return {name: getattr(self, name) for name in names} | widths

    @property
    def block_sizes(self) -> dict[str, Any]:
        """The attributes of each `Block`."""
        names = ("heads", "gelu", "eps", "repeats")
        return {name: getattr(self, name) for name in names} | {"mlp_width": self.mlp_width or 4 * self.width}


_ROBERTA = Bert(vocabulary=50265, positions=514, token_types=1, pad_id=1, eps=1e-5, pool="cls")
_XLM_R = _ROBERTA.clone(vocabulary=250002)
NETWORKS: dict[str, Bert] = {
    "bert_base": Bert(),
    "bert_large": Bert(**LARGE),
    "minilm_l6": Bert(width=384, depth=6, pool="mean"),
    "all_minilm_l6": Bert(width=384, depth=6, **SENTENCE),
    "distilbert_base": Bert(depth=6, token_types=0, pool="cls"),
    "roberta_base": _ROBERTA,
    "roberta_large": _ROBERTA.clone(**LARGE),
    "bert_base_cased": Bert(vocabulary=28996),
    "xlm_roberta_base": _XLM_R,
    "xlm_roberta_large": _XLM_R.clone(**LARGE),
    "camembert_base": _ROBERTA.clone(vocabulary=32005),
    "multilingual_e5_small": Bert(width=384, vocabulary=250037, **SENTENCE),
    "multilingual_e5_base": _XLM_R.clone(**SENTENCE),
    "multilingual_e5_large": _XLM_R.clone(**LARGE, **SENTENCE),
    "e5_small": Bert(width=384, **SENTENCE),
    "e5_base": Bert(**SENTENCE),
    "bge_small": Bert(width=384, pool="cls", normalize=True),
    "bge_base": Bert(pool="cls", normalize=True),
}
