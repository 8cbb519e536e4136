"""What text encoders' parameters are called in transformers' files.

The head is a checkpoint's last linear layer. It reads what the layer before it makes, so it is only taken by a module
with that layer (`pool="cls_tanh"`, or `cls_relu` for DistilBERT): one that pools otherwise ignores both. Since
transformers has no classifier on such features, the head of such a module is called plainly `head`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tljax.weights.configs.sentence_transformers import DENSE
from tljax.weights.mapping import ParamMapping, Table, torch_linear, torch_norm

if TYPE_CHECKING:
    from tljax.models.text.bert import Bert
    from tljax.models.text.encoder import TextEncoder

# A buffer of older versions, the heads of other tasks, and the old spelling of LayerNorm's parameters.
IGNORED = (r".*\.embeddings\.position_ids", r"qa_outputs\..*")
LEGACY = ((r"(LayerNorm|layer_norm)\.gamma$", r"\1.weight"), (r"(LayerNorm|layer_norm)\.beta$", r"\1.bias"))


def tables(model: Bert) -> dict[str, Table]:
    """Returns the table for each library whose names a checkpoint may have."""
    roberta = _roberta(model)
    # Which differ from RoBERTa in their vocabularies alone.
    same = dict.fromkeys(("xlm-roberta", "camembert"), roberta)
    return {"bert": _bert(model), "roberta": roberta, **same, "distilbert": _distilbert(model)}


def _bert(model: Bert) -> Table:
    """Returns the table of `Bert*`, with the pooler that pretraining and the classifier share."""
    mappings, unused = ending(model, "cls_tanh", "bert.pooler.dense", "classifier")
    return Table(
        (*encoder(model, "bert"), *mappings),
        (*IGNORED, *unused, r"cls\..*"),
        (*LEGACY, prefixed("bert", "encoder")),
    )


def _roberta(model: Bert) -> Table:
    """Returns the table of `Roberta*`, without its own pooler, which pretraining left as it was initialized."""
    mappings, unused = ending(model, "cls_tanh", "classifier.dense", "classifier.out_proj")
    return Table(
        (*encoder(model, "roberta"), *mappings),
        (
            *IGNORED,
            *unused,
            *([r"classifier\.(weight|bias)"] if unused else []),
            r"lm_head\..*",
            r"roberta\.pooler\..*",
        ),
        (*LEGACY, prefixed("roberta", "encoder")),
    )


def _distilbert(model: Bert) -> Table:
    """Returns the table of `DistilBert*`."""
    mappings, unused = ending(model, "cls_relu", "pre_classifier", "classifier")
    mappings += embeddings(model, "distilbert")
    for i in range(model.depth):
        source, target = f"distilbert.transformer.layer.{i}", f"params/block_{i}"
        mappings += attention(model, [f"{source}.attention.{name}_lin" for name in ("q", "k", "v", "out")], target)
        mappings += [
            *torch_norm(f"{source}.sa_layer_norm", f"{target}/norm1"),
            *torch_linear(f"{source}.ffn.lin1", f"{target}/mlp/fc1"),
            *torch_linear(f"{source}.ffn.lin2", f"{target}/mlp/fc2"),
            *torch_norm(f"{source}.output_layer_norm", f"{target}/norm2"),
        ]
    return Table(
        tuple(mappings),
        (*IGNORED, *unused, r"vocab_(transform|layer_norm|projector)\..*"),
        (*LEGACY, prefixed("distilbert", "transformer")),
    )


def prefixed(prefix: str, layers: str) -> tuple[str, str]:
    """Returns the alias for a file that was saved from the bare model."""
    return rf"^(?=(embeddings|{layers}|pooler)\.)", f"{prefix}."


def ending(model: TextEncoder, pool: str, dense: str, classifier: str) -> tuple[list[ParamMapping], list[str]]:
    """Returns rules for what follows the blocks, and what is ignored of it.

    Args:
        model: the network.
        pool: how the checkpoint's own head pools.
        dense, classifier: the layer that its head reads, and the head.
    """
    mappings = list(torch_linear(f"{DENSE}.linear", "params/dense")) if model.dense_width else []
    if model.pool == pool:
        mappings += torch_linear(dense, "params/pooler")
        if not model.dense_width:
            return [*mappings, *torch_linear(classifier, "head")], []
        return [*mappings, *torch_linear("head", "head")], [rf"{classifier}\.(weight|bias)"]
    mappings += torch_linear("head", "head")
    return mappings, [rf"{name}\.(weight|bias)" for name in (dense, classifier)]


def embeddings(model: Bert, prefix: str) -> Iterator[ParamMapping]:
    """Yields the embeddings, which all of them call alike."""
    names = {"word_embeddings": "word_embed", "position_embeddings": "pos_embed"}
    if model.token_types:
        names["token_type_embeddings"] = "type_embed"
    for theirs, ours in names.items():
        yield ParamMapping(f"{prefix}.embeddings.{theirs}.weight", f"params/stem/{ours}")
    yield from torch_norm(f"{prefix}.embeddings.LayerNorm", "params/stem/norm")


def attention(model: TextEncoder, sources: list[str], target: str) -> Iterator[ParamMapping]:
    """Yields query, key and value, which are parts of our joint projection, and what follows them.

    Args:
        model: the network.
        sources: the names of the four.
        target: our block.
    """
    for i, source in enumerate(sources[:3]):
        yield from torch_linear(source, f"{target}/attention/qkv", (i * model.width, (i + 1) * model.width))
    yield from torch_linear(sources[3], f"{target}/attention/out")


def encoder(model: Bert, prefix: str) -> Iterator[ParamMapping]:
    """Yields embeddings and blocks as BERT and RoBERTa call them."""
    yield from embeddings(model, prefix)
    for i in range(model.depth):
        source, target = f"{prefix}.encoder.layer.{i}", f"params/block_{i}"
        projections = [f"{source}.attention.self.{name}" for name in ("query", "key", "value")]
        yield from attention(model, [*projections, f"{source}.attention.output.dense"], target)
        yield from torch_norm(f"{source}.attention.output.LayerNorm", f"{target}/norm1")
        yield from torch_linear(f"{source}.intermediate.dense", f"{target}/mlp/fc1")
        yield from torch_linear(f"{source}.output.dense", f"{target}/mlp/fc2")
        yield from torch_norm(f"{source}.output.LayerNorm", f"{target}/norm2")
