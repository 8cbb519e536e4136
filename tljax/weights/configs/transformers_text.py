"""Reads transformers' `config.json` of text encoders."""

import json
from collections.abc import Callable
from typing import Any

from tljax.io.json_keys import Keys
from tljax.weights.configs.encoder_sizes import GELU, sizes

# Heads that read no pooler: where transformers makes a network for one of them, it has none.
_OF_TOKENS = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering", "LMHeadModel")


def _encoder(
    keys: Keys, eps: float, defaults: tuple[int, int, int] = (768, 12, 12), mlp_width: int = 3072, gelu: str = "gelu"
) -> dict[str, Any]:
    """Returns the attributes that BERT shares with its kin, of which the rest are the defaults."""
    keys.only(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    return {
        **sizes(keys, *defaults),
        "mlp_width": keys.whole("intermediate_size", mlp_width),
        "vocabulary": keys.whole("vocab_size"),
        "positions": keys.whole("max_position_embeddings", 512),
        "gelu": keys.choice("hidden_act", gelu, GELU),
        "eps": keys.number("layer_norm_eps", eps),
    }


def _token_types(keys: Keys) -> dict[str, Any]:
    return {"token_types": keys.whole("type_vocab_size", 2, least=0)}


def _bert(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `BertConfig`."""
    keys.only(embedding_size=None)
    return _encoder(keys, 1e-12) | _token_types(keys) | _with_pooler(keys)


def _roberta(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `RobertaConfig`."""
    pad = keys.whole("pad_token_id", 1, least=0)
    keys.only(embedding_size=None)
    return _encoder(keys, 1e-5) | _token_types(keys) | {"pad_id": pad} | _pooling(keys, "cls_tanh", "cls")


def _mpnet(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `MPNetConfig`, whose number of buckets its code does not ask for."""
    keys.only(relative_attention_num_buckets=32, embedding_size=None)
    return _encoder(keys, 1e-12) | _with_pooler(keys)


def _electra(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `ElectraConfig`."""
    shared = _encoder(keys, 1e-12, (256, 12, 4), 1024) | _token_types(keys)
    narrow = keys.whole("embedding_size", 128)
    shared["embedding_width"] = None if narrow == shared["width"] else narrow
    return shared | _pooling(keys, "cls_gelu", "cls")


def _albert(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `AlbertConfig`."""
    keys.only(inner_group_num=1, down_scale_factor=1, gap_size=0, net_structure_type=0, num_memory_blocks=0)
    shared = _encoder(keys, 1e-12, (4096, 12, 64), 16384, "gelu_new") | _token_types(keys)
    groups, layers = keys.whole("num_hidden_groups", 1), shared["depth"]
    if layers % groups:
        raise keys.refusal("num_hidden_groups", f"does not divide the {layers} layers")
    shared |= {"depth": groups, "repeats": layers // groups, "embedding_width": keys.whole("embedding_size", 128)}
    return shared | _with_pooler(keys)


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


def _modernbert(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `ModernBertConfig`, in its present words and those of published files."""
    keys.only(attention_bias=False, mlp_bias=False, norm_bias=False, classifier_bias=False)
    keys.only(position_embedding_type="absolute")
    keys.get("layer_norm_eps")  # which nothing there reads
    shared = sizes(keys, depth=22) | _layer_types(keys)
    gelu = keys.choice("hidden_activation", "gelu", GELU)
    if keys.choice("classifier_activation", "gelu", GELU) != gelu:
        raise keys.refusal("classifier_activation", "is not supported, only that of hidden_activation")
    pooling = keys.choice("classifier_pooling", "cls", {name: name for name in ("cls", "mean")})
    return {
        **shared,
        "mlp_width": keys.whole("intermediate_size", 1152),
        "vocabulary": keys.whole("vocab_size"),
        "positions": keys.whole("max_position_embeddings", 8192),
        "window": keys.whole("local_attention", 128),
        "global_period": _period(keys, "full_attention", "global_rope_theta", 160000.0),
        "local_period": _period(keys, "sliding_attention", "local_rope_theta", 10000.0),
        "gelu": gelu,
        "eps": keys.number("norm_eps", 1e-5),
        **_pooling(keys, f"{pooling}_gelu_norm", pooling),
    }


def _layer_types(keys: Keys) -> dict[str, Any]:
    """Returns which of its layers see all tokens, the first of so many."""
    every, kinds = keys.whole("global_attn_every_n_layers", 3), keys.texts("layer_types")
    if kinds:
        every = ["full_attention", *kinds[1:], "full_attention"].index("full_attention", 1)
        if kinds != ["sliding_attention" if i % every else "full_attention" for i in range(len(kinds))]:
            raise keys.refusal("layer_types", "is not supported, only every so many full_attention, from the first on")
        if len(kinds) != keys.whole("num_hidden_layers", 22):
            raise keys.refusal("layer_types", "has another number of layers than num_hidden_layers")
    return {"global_every": every}


def _period(keys: Keys, kind: str, published: str, default: float) -> float:
    """Returns the base of rotary positions in one kind of layer."""
    base = keys.number(published, default)
    rope = keys.inside("rope_parameters").inside(kind)
    rope.only(rope_type="default")
    base = rope.number("rope_theta", base)
    rope.finish()
    return base


def _deberta(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `DebertaV2Config`, for the attention that published weights have."""
    needed = {"relative_attention": True, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    for key, value in (needed | {"position_biased_input": False}).items():
        if keys.get(key) != value:
            raise keys.refusal(key, f"is not supported, only {json.dumps(value)}")
    kinds = keys.get("pos_att_type", [])
    kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or sorted(map(str, kinds)) != ["c2p", "p2c"]:
        raise keys.refusal("pos_att_type", 'is not supported, only ["p2c", "c2p"]')
    shared = sizes(keys, 1536, 24, 24)
    width, positions = shared["width"], keys.whole("max_position_embeddings", 512)
    keys.only(embedding_size=width, pooler_hidden_size=width, attention_head_size=width // shared["heads"])
    keys.only(pooler_hidden_act="gelu", conv_groups=1)
    farthest = keys.get("max_relative_positions", -1)
    conv = keys.whole("conv_kernel_size", 0, least=0)
    if conv and not conv % 2:
        raise keys.refusal("conv_kernel_size", "is not supported, only odd ones")
    return {
        **shared,
        "mlp_width": keys.whole("intermediate_size", 6144),
        "vocabulary": keys.whole("vocab_size", 128100),
        "positions": positions,
        "token_types": keys.whole("type_vocab_size", 0, least=0),
        "buckets": keys.whole("position_buckets"),
        "farthest": positions if farthest == -1 else keys.whole("max_relative_positions"),
        "conv_size": conv,
        "conv_activation": keys.choice("conv_act", "tanh", {name: name for name in ("tanh", "gelu")}),
        "gelu": keys.choice("hidden_act", "gelu", GELU),
        "eps": keys.number("layer_norm_eps", 1e-7),
        **_pooling(keys, "cls_gelu", "cls"),
    }


def _with_pooler(keys: Keys) -> dict[str, Any]:
    """Returns how a network with BERT's pooler pools, which it lacks where its head reads tokens."""
    reads_tokens = any(name.endswith(_OF_TOKENS) for name in keys.texts("architectures"))
    return _pooling(keys, "cls_tanh", "cls" if reads_tokens else "cls_tanh")


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
    "mpnet": ("mpnet_base", "mpnet", _mpnet),
    "electra": ("electra_small", "electra", _electra),
    "albert": ("albert_base", "albert", _albert),
    "modernbert": ("modernbert_base", "modernbert", _modernbert),
    "deberta-v2": ("deberta_v3_base", "deberta", _deberta),
}
