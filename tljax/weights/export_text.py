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


# Each class of `models.text` -> its config.
KINDS = {"Bert": _bert}
