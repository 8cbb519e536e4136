"""What ALBERT's parameters are called in transformers' files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tljax.weights.mapping import Table, torch_linear, torch_norm
from tljax.weights.mappings.text.bert import IGNORED, LEGACY, attention, embeddings, ending, prefixed

if TYPE_CHECKING:
    from tljax.models.text.albert import Albert


def tables(model: Albert) -> dict[str, Table]:
    """Returns the table of `Albert*`; the heads of its pretraining are left out."""
    mappings, unused = ending(model, "cls_tanh", "albert.pooler", "classifier")
    mappings += [
        *embeddings(model, "albert"),
        *torch_linear("albert.encoder.embedding_hidden_mapping_in", "params/stem/project"),
    ]
    for i in range(model.depth):
        source, target = f"albert.encoder.albert_layer_groups.{i}.albert_layers.0", f"params/block_{i}"
        projections = [f"{source}.attention.{name}" for name in ("query", "key", "value", "dense")]
        mappings += [
            *attention(model, projections, target),
            *torch_norm(f"{source}.attention.LayerNorm", f"{target}/norm1"),
            *torch_linear(f"{source}.ffn", f"{target}/mlp/fc1"),
            *torch_linear(f"{source}.ffn_output", f"{target}/mlp/fc2"),
            *torch_norm(f"{source}.full_layer_layer_norm", f"{target}/norm2"),
        ]
    ignored = (*IGNORED, *unused, r"(predictions|sop_classifier)\..*")
    return {"albert": Table(tuple(mappings), ignored, (*LEGACY, prefixed("albert", "encoder")))}
