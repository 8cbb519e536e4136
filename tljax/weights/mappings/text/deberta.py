"""What DeBERTa's (v2, v3) parameters are called in transformers' files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tljax.weights.mapping import ParamMapping, Table, torch_linear, torch_norm
from tljax.weights.mappings.text.bert import IGNORED, LEGACY, attention, ending

if TYPE_CHECKING:
    from tljax.models.text.deberta import Deberta


def tables(model: Deberta) -> dict[str, Table]:
    """Returns the table of `DebertaV2*`; the heads of its pretraining are left out."""
    mappings, unused = ending(model, "cls_gelu", "pooler.dense", "classifier")
    names = {"embeddings.word_embeddings": "word_embed", "encoder.rel_embeddings": "relative_embed"}
    names |= {"embeddings.token_type_embeddings": "type_embed"} if model.token_types else {}
    mappings += [ParamMapping(f"deberta.{theirs}.weight", f"params/stem/{ours}") for theirs, ours in names.items()]
    mappings += [
        *torch_norm("deberta.embeddings.LayerNorm", "params/stem/norm"),
        *torch_norm("deberta.encoder.LayerNorm", "params/stem/relative_norm"),
    ]
    for i in range(model.depth):
        source, target = f"deberta.encoder.layer.{i}", f"params/block_{i}"
        projections = [f"{source}.attention.self.{name}_proj" for name in ("query", "key", "value")]
        mappings += [
            *attention(model, [*projections, f"{source}.attention.output.dense"], target),
            *torch_norm(f"{source}.attention.output.LayerNorm", f"{target}/norm1"),
            *torch_linear(f"{source}.intermediate.dense", f"{target}/mlp/fc1"),
            *torch_linear(f"{source}.output.dense", f"{target}/mlp/fc2"),
            *torch_norm(f"{source}.output.LayerNorm", f"{target}/norm2"),
        ]
    if model.conv_size:
        conv = "deberta.encoder.conv"
        mappings.append(ParamMapping(f"{conv}.conv.weight", "params/block_0/conv/kernel", (2, 1, 0)))
        mappings.append(ParamMapping(f"{conv}.conv.bias", "params/block_0/conv/bias"))
        mappings += torch_norm(f"{conv}.LayerNorm", "params/block_0/conv/norm")
    # Absolute positions were for the decoder of pretraining.
    ignored = (*IGNORED, *unused, r"(lm_predictions|mask_predictions|cls)\..*", r".*\.position_embeddings\.weight")
    return {"deberta": Table(tuple(mappings), ignored, (*LEGACY, (r"^(?=(embeddings|encoder)\.)", "deberta.")))}
