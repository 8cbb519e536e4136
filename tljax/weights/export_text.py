"""The configs with which transformers and sentence-transformers load a text encoder back."""

from collections.abc import Mapping
from typing import Any

from tljax.errors import InputError
from tljax.weights.configs.sentence_transformers import ACTIVATIONS, DENSE

Attributes = Mapping[str, Any]  # of a module of tljax.models


def transformers(kind: str, attributes: Attributes, source: str) -> dict[str, Any]:
    """Returns `config.json` but for names of classes.

    Args:
        kind: the module's class.
        attributes: its attributes.
        source: whose names the weights came with: of those that differ in their tokenizer alone, which it is.

    Raises:
        InputError: transformers has no such network.
    """
    config = KINDS[kind](attributes, source)
    if attributes["pool"] in ("cls", "mean", "max"):  # the others have the layer that a classifier reads
        config["tljax_pool"] = attributes["pool"]
    if attributes["normalize"]:
        config["tljax_normalize"] = True
    return config


def sentence_transformers(attributes: Attributes) -> dict[str, Any]:
    """Returns sentence-transformers' files, by name, of a network with a dense layer of its own; else none."""
    if not attributes["dense_width"]:
        return {}
    if attributes["pool"] not in ("cls", "mean", "max"):
        raise InputError(f"sentence-transformers has no such network: a dense layer after {attributes['pool']}")
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), (DENSE, "Dense")]
    kinds += [("3_Normalize", "Normalize")] if attributes["normalize"] else []
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    pooling = {f"pooling_mode_{theirs}": ours == attributes["pool"] for ours, theirs in modes.items()}
    dense = {"in_features": attributes["width"], "out_features": attributes["dense_width"], "bias": True}
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == attributes["dense_activation"])
    return {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (path, name) in enumerate(kinds)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": attributes["width"], **pooling},
        f"{DENSE}/config.json": dense | {"activation_function": activation},
    }


def _named(kind: str, name: str, attributes: Attributes) -> dict[str, Any]:
    """Returns `model_type` and `architectures`."""
    ending = "Model" if attributes["pool"] in ("cls", "mean", "max") else "ForSequenceClassification"
    return {"model_type": kind, "architectures": [f"{name}{ending}"]}


def _sizes(attributes: Attributes) -> dict[str, Any]:
    """Returns what all but DistilBERT call alike."""
    return {
        "hidden_size": attributes["width"],
        "num_hidden_layers": attributes["depth"],
        "num_attention_heads": attributes["heads"],
        "intermediate_size": attributes["mlp_width"] or 4 * attributes["width"],
        "vocab_size": attributes["vocabulary"],
        "max_position_embeddings": attributes["positions"],
        "hidden_act": _gelu(attributes),
        "layer_norm_eps": attributes["eps"],
    }


def _gelu(attributes: Attributes) -> str:
    return "gelu" if attributes["gelu"] == "erf" else "gelu_new"


_ROBERTAS = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}


def _bert(attributes: Attributes, source: str) -> dict[str, Any]:
    if attributes["token_types"] == 0:
        return _distilbert(attributes)
    config = _sizes(attributes) | {"type_vocab_size": attributes["token_types"]}
    if attributes["pad_id"] is None:
        return _named("bert", "Bert", attributes) | config
    kind = source if source in _ROBERTAS else "roberta"
    return _named(kind, _ROBERTAS[kind], attributes) | config | {"pad_token_id": attributes["pad_id"]}


def _distilbert(attributes: Attributes) -> dict[str, Any]:
    if attributes["eps"] != 1e-12:
        raise InputError(f"transformers has no such network: only eps=1e-12, not {attributes['eps']!r}")
    return {
        **_named("distilbert", "DistilBert", attributes),
        "vocab_size": attributes["vocabulary"],
        "max_position_embeddings": attributes["positions"],
        "dim": attributes["width"],
        "n_layers": attributes["depth"],
        "n_heads": attributes["heads"],
        "hidden_dim": attributes["mlp_width"] or 4 * attributes["width"],
        "activation": _gelu(attributes),
    }


def _mpnet(attributes: Attributes, source: str) -> dict[str, Any]:
    del source
    config = _named("mpnet", "MPNet", attributes) | _sizes(attributes)
    return config | {"relative_attention_num_buckets": 32, "pad_token_id": attributes["pad_id"]}


def _electra(attributes: Attributes, source: str) -> dict[str, Any]:
    del source
    config = _named("electra", "Electra", attributes) | _sizes(attributes)
    narrow = attributes["embedding_width"] or attributes["width"]
    return config | {"type_vocab_size": attributes["token_types"], "embedding_size": narrow}


def _albert(attributes: Attributes, source: str) -> dict[str, Any]:
    del source
    config = _named("albert", "Albert", attributes) | _sizes(attributes)
    config |= {"type_vocab_size": attributes["token_types"], "embedding_size": attributes["embedding_width"]}
    layers = attributes["depth"] * attributes["repeats"]
    return config | {"num_hidden_layers": layers, "num_hidden_groups": attributes["depth"], "inner_group_num": 1}


def _modernbert(attributes: Attributes, source: str) -> dict[str, Any]:
    del source
    sizes, every = _sizes(attributes), attributes["global_every"]
    activation, eps = sizes.pop("hidden_act"), sizes.pop("layer_norm_eps")
    periods = {"full_attention": attributes["global_period"], "sliding_attention": attributes["local_period"]}
    pool = attributes["pool"].partition("_")[0]
    config = _named("modernbert", "ModernBert", attributes) | sizes
    if attributes["vocabulary"] <= _MODERNBERT_PAD:
        config["pad_token_id"] = 0  # as that library's own is beyond the vocabulary
    return config | {
        "hidden_activation": activation,
        "classifier_activation": activation,
        "norm_eps": eps,
        "local_attention": attributes["window"],
        "global_attn_every_n_layers": every,
        "layer_types": ["sliding_attention" if i % every else "full_attention" for i in range(attributes["depth"])],
        # In the words of transformers 4 and of 5.
        "global_rope_theta": attributes["global_period"],
        "local_rope_theta": attributes["local_period"],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in periods.items()},
        "classifier_pooling": pool if pool in ("cls", "mean") else "mean",
    }


_MODERNBERT_PAD = 50283


def _deberta(attributes: Attributes, source: str) -> dict[str, Any]:
    del source
    farthest = attributes["farthest"]
    config = _named("deberta-v2", "DebertaV2", attributes) | _sizes(attributes)
    config |= {"relative_attention": True, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    config |= {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    config |= {"position_buckets": attributes["buckets"], "type_vocab_size": attributes["token_types"]}
    config["max_relative_positions"] = -1 if farthest == attributes["positions"] else farthest
    config |= {"pooler_hidden_size": attributes["width"], "pooler_hidden_act": "gelu"}
    conv = {"conv_kernel_size": attributes["conv_size"], "conv_act": attributes["conv_activation"]}
    return config | (conv if attributes["conv_size"] else {})


# Each class of `models.text` -> its config.
KINDS = {
    "Bert": _bert,
    "MPNet": _mpnet,
    "Electra": _electra,
    "Albert": _albert,
    "ModernBert": _modernbert,
    "Deberta": _deberta,
}
