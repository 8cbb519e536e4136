"""What MPNet's parameters are called in transformers' files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tljax.weights.mapping import ParamMapping, Table, torch_linear, torch_norm
from tljax.weights.mappings.text.bert import IGNORED, LEGACY, attention, embeddings, ending, prefixed

if TYPE_CHECKING:
    from tljax.models.text.mpnet import MPNet


def tables(model: MPNet) -> dict[str, Table]:
    """Returns the table of `MPNet*`, whose pooler is what a classifier calls its `dense`."""
    mappings, unused = ending(model, "cls_tanh", "classifier.dense", "classifier.out_proj")
    mappings += embeddings(model, "mpnet")
    mappings.append(ParamMapping("mpnet.encoder.relative_attention_bias.weight", "params/stem/relative_bias"))
    for i in range(model.depth):
        source, target = f"mpnet.encoder.layer.{i}", f"params/block_{i}"
        mappings += [
            *attention(model, [f"{source}.attention.attn.{name}" for name in "qkvo"], target),
            *torch_norm(f"{source}.attention.LayerNorm", f"{target}/norm1"),
            *torch_linear(f"{source}.intermediate.dense", f"{target}/mlp/fc1"),
            *torch_linear(f"{source}.output.dense", f"{target}/mlp/fc2"),
            *torch_norm(f"{source}.output.LayerNorm", f"{target}/norm2"),
        ]
    pooler = r"^mpnet\.pooler\.dense\.", "classifier.dense."
    ignored = (*IGNORED, *unused, r"classifier\.(weight|bias)", r"lm_head\..*")
    return {"mpnet": Table(tuple(mappings), ignored, (*LEGACY, prefixed("mpnet", "encoder"), pooler))}
