"""Reads transformers' `config.json` of text encoders."""

from collections.abc import Callable
from typing import Any

from tljax.io.json_keys import Keys

GELU = {"gelu": "erf", "gelu_python": "erf", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}
# Heads that read no pooler: where transformers makes a network for one of them, it has none.
_OF_TOKENS = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering", "LMHeadModel")


def sizes(keys: Keys) -> dict[str, Any]:
    """Returns width, depth and heads, as most transformers call them."""
    numbers = {
        "width": keys.whole("hidden_size", 768),
        "depth": keys.whole("num_hidden_layers", 12),
        "heads": keys.whole("num_attention_heads", 12),
    }
    if numbers["width"] % numbers["heads"]:
        raise keys.refusal("num_attention_heads", f"does not divide the width of {numbers['width']}")
    return numbers


def _encoder(keys: Keys, eps: float) -> dict[str, Any]:
    """Returns the attributes that BERT and RoBERTa share."""
    keys.only(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute", embedding_size=None)
    return {
        **sizes(keys),
        "mlp_width": keys.whole("intermediate_size", 3072),
        "vocabulary": keys.whole("vocab_size"),
        "positions": keys.whole("max_position_embeddings", 512),
        "token_types": keys.whole("type_vocab_size", 2, least=0),
        "gelu": keys.choice("hidden_act", "gelu", GELU),
        "eps": keys.number("layer_norm_eps", eps),
    }


def _bert(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `BertConfig`."""
    return _encoder(keys, 1e-12) | _pooling(keys, "cls_tanh", "cls" if _reads_tokens(keys) else "cls_tanh")


def _roberta(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `RobertaConfig`."""
    pad = keys.whole("pad_token_id", 1, least=0)
    return _encoder(keys, 1e-5) | {"pad_id": pad} | _pooling(keys, "cls_tanh", "cls")


def _distilbert(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `DistilBertConfig`, which has words of its own."""
    defaults = {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}
    numbers = [keys.whole(name, default) for name, default in defaults.items()]
    if numbers[0] % numbers[2]:
        raise keys.refusal("n_heads", f"does not divide the width of {numbers[0]}")
    keys.only(layer_norm_eps=1e-12)
    return {
        **dict(zip(("width", "depth", "heads", "mlp_width"), numbers, strict=True)),
        "vocabulary": keys.whole("vocab_size"),
        "positions": keys.whole("max_position_embeddings", 512),
        "token_types": 0,
        "gelu": keys.choice("activation", "gelu", GELU),
        "eps": 1e-12,
        **_pooling(keys, "cls_relu", "cls"),
    }


def _reads_tokens(keys: Keys) -> bool:
    return any(name.endswith(_OF_TOKENS) for name in keys.texts("architectures"))


def _pooling(keys: Keys, of_classifier: str, otherwise: str) -> dict[str, Any]:
    """Returns how features are pooled: with the dense layer of a classifier, or as an export of ours says."""
    known = {name: name for name in (of_classifier, "cls", "mean", "max")}
    normalize = keys.flag("tljax_normalize", False)
    if any("ForSequenceClassification" in name for name in keys.texts("architectures")):
        otherwise = of_classifier
    return {"pool": keys.choice("tljax_pool", otherwise, known), **({"normalize": True} if normalize else {})}


# model_type -> the row of `models.registry.BACKBONES`, whose names its files use, and the attributes.
TEXTS: dict[str, tuple[str, str, Callable[[Keys], dict[str, Any]]]] = {
    "bert": ("bert_base", "bert", _bert),
    "roberta": ("roberta_base", "roberta", _roberta),
    "xlm-roberta": ("xlm_roberta_base", "xlm-roberta", _roberta),
    "camembert": ("camembert_base", "camembert", _roberta),
    "distilbert": ("distilbert_base", "distilbert", _distilbert),
}
