"""ALBERT (1909.11942): narrow embeddings, and one block that is run over and over."""

from typing import Literal

from tljax.models.text.bert import Bert


class Albert(Bert):
    """A BERT of `depth` blocks with weights of their own, each run `repeats` times. The defaults are ALBERT-base's.

    So `block_0` is what strategies count as one block, and an adapter in it acts in each of its runs.
    """

    depth: int = 1
    vocabulary: int = 30000
    pool: Literal["cls", "cls_tanh", "mean", "max"] = "cls_tanh"
    gelu: Literal["erf", "tanh"] = "tanh"
    embedding_width: int | None = 128
    repeats: int = 12


NETWORKS: dict[str, Albert] = {
    "albert_base": Albert(pool="cls"),
    "albert_large": Albert(width=1024, heads=16, repeats=24, pool="cls"),
}
