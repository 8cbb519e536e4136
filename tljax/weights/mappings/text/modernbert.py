"""What ModernBERT's parameters are called in transformers' files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tljax.weights.configs.sentence_transformers import DENSE
from tljax.weights.mapping import LINEAR, ParamMapping, Table, torch_linear
from tljax.weights.mappings.text.bert import IGNORED

if TYPE_CHECKING:
    from tljax.models.text.modernbert import ModernBert


def tables(model: ModernBert) -> dict[str, Table]:
    """Returns the table of `ModernBert*`; the classifier's `head` is also the masked-LM head's."""
    places = {"embeddings.tok_embeddings": "stem/word_embed", "embeddings.norm": "stem/norm/scale"}
    places["final_norm"] = "norm/scale"
    for i in range(model.depth):
        source, target = f"layers.{i}", f"block_{i}"
        places |= {f"{source}.attn_norm": f"{target}/norm1/scale"} if i else {}
        places[f"{source}.mlp_norm"] = f"{target}/norm2/scale"
        for theirs, ours in _LAYERS.items():
            places[f"{source}.{theirs}"] = f"{target}/{ours}/kernel"
    mappings = [_mapping(f"model.{theirs}", ours) for theirs, ours in places.items()]
    ignored = [*IGNORED, r"decoder\.(weight|bias)"]
    if model.has_pooler:
        mappings += [_mapping("head.dense", "pooler/dense/kernel"), _mapping("head.norm", "pooler/norm/scale")]
    else:
        ignored.append(r"head\.(dense|norm)\.weight")
    if model.dense_width:
        mappings += torch_linear(f"{DENSE}.linear", "params/dense")
    own_head = model.has_pooler and not model.dense_width
    mappings += torch_linear("classifier" if own_head else "head", "head")
    ignored += [] if own_head else [r"classifier\.(weight|bias)"]
    bare = r"^(?=(embeddings|layers|final_norm)\.)", "model."
    return {"modernbert": Table(tuple(mappings), tuple(ignored), (bare,))}


_LAYERS = {"attn.Wqkv": "attention/qkv", "attn.Wo": "attention/out", "mlp.Wi": "mlp/fc1", "mlp.Wo": "mlp/fc2"}


def _mapping(theirs: str, ours: str) -> ParamMapping:
    """Returns the rule for a `weight`, as nothing has a bias."""
    return ParamMapping(f"{theirs}.weight", f"params/{ours}", LINEAR if ours.endswith("kernel") else None)
