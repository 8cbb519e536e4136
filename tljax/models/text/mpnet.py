"""MPNet (2004.09297): BERT with a bias of attention that depends on how far apart two tokens are."""

from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tljax.models.text.bert import Bert, Block, Stem
from tljax.models.text.encoder import SENTENCE, normal_init

_BUCKETS, _FARTHEST = 32, 128  # as T5's (1910.10683): half for each direction, and beyond 128 tokens the last


def buckets(length: int) -> Int[np.ndarray, "length length"]:
    """Returns the bucket of each query's (row's) distance to each key: own ones for the nearest, then logarithmic."""
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    half = _BUCKETS // 2
    own = half // 2
    # In float32, as the weights were trained: where a bucket begins, rounding decides.
    far = np.log(np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(own))
    far = own + (far / np.float32(np.log(_FARTHEST / own)) * np.float32(half - own)).astype(np.int32)
    bucket = np.where(np.abs(distance) < own, np.abs(distance), np.minimum(far, half - 1))
    return (bucket + half * (distance > 0)).astype(np.int32)


class _Stem(Stem):
    """Embeddings, and the table of biases that all blocks share."""

    heads: int = 12

    @nn.compact
    def __call__(self, x):
        self.param("relative_bias", normal_init, (_BUCKETS, self.heads))
        return super().__call__(x)


class _Block(Block):
    def attention_bias(self, carry: Mapping[str, Array]) -> Float[Array, "heads length length"]:
        """Returns the bias of each head by the distance between query and key."""
        table = carry["relative_bias"].astype(jnp.float32)  # in which the gradients of a bucket's pairs add up
        return jnp.take(table, buckets(carry["hidden"].shape[1]), axis=0).transpose(2, 0, 1)


class MPNet(Bert):
    """A text encoder with positions as RoBERTa has them, and relative ones. The defaults are MPNet-base's."""

    vocabulary: int = 30527
    positions: int = 514
    token_types: int = 0
    pad_id: int | None = 1
    pool: Literal["cls", "cls_tanh", "mean", "max"] = "cls"

    @property
    def pools(self) -> dict[str, str]:
        return super().pools | {"pooler": "cls_tanh"}

    def setup(self):
        self.stem = _Stem(**self.stem_sizes, heads=self.heads)
        self.block = [_Block(**self.block_sizes) for _ in range(self.depth)]
        self.ending()

    def shared(self) -> dict[str, Array]:
        """Returns the table of biases."""
        return {"relative_bias": self.stem.variables["params"]["relative_bias"]}


NETWORKS: dict[str, MPNet] = {
    "mpnet_base": MPNet(),
    "all_mpnet_base": MPNet(**SENTENCE),
}
