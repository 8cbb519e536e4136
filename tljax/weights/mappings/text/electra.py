"""What ELECTRA's parameters are called in transformers' files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tljax.weights.mapping import Table, torch_linear
from tljax.weights.mappings.text.bert import IGNORED, LEGACY, encoder, ending

if TYPE_CHECKING:
    from tljax.models.text.electra import Electra


def tables(model: Electra) -> dict[str, Table]:
    """Returns the table of `Electra*`; what tells replaced tokens in pretraining is left out."""
    mappings, unused = ending(model, "cls_gelu", "classifier.dense", "classifier.out_proj")
    if model.embedding_width:
        mappings += torch_linear("electra.embeddings_project", "params/stem/project")
    ignored = (*IGNORED, *unused, r"classifier\.(weight|bias)", r"(discriminator|generator)_(predictions|lm_head)\..*")
    prefixed = r"^(?=(embeddings|embeddings_project|encoder)\.)", "electra."
    return {"electra": Table((*encoder(model, "electra"), *mappings), ignored, (*LEGACY, prefixed))}
