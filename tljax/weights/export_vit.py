"""The configs with which timm and transformers load a Vision Transformer back; inverse of `configs`."""

import math
import re
from collections.abc import Mapping
from typing import Any

from tljax.errors import InputError
from tljax.models.base import attributes as module_attributes
from tljax.models.registry import build
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import timm_vit as read_timm
from tljax.weights.configs.limits import only, timm_pool
from tljax.weights.configs.transformers_vit import gated_width

Attributes = Mapping[str, Any]
# What timm's names decide, and no argument changes; of DINOv3, more.
_NAMED = ("gated", "eps")
_NAMED_OF_DINOV3 = ("positions", "qkv_bias", "registers", "gelu", *read_timm.FLAGS)
_ACTIVATIONS = {"erf": "gelu", "tanh": "gelu_new", "quick": "quick_gelu"}


def timm_vit(attributes: Attributes, row: Pretrained) -> tuple[str, str, dict[str, Any], str | list[str], str]:
    """Returns timm's architecture, pooling, arguments, and the names of its head and first layer.

    Args:
        attributes: of the network.
        row: names the row of `BACKBONES` that it is a variant of.

    Raises:
        InputError: timm has no such network.
    """
    named = module_attributes(build(row.backbone, {}))
    is_rotary = attributes["positions"] == "rotary"
    decided = (*_NAMED, *_NAMED_OF_DINOV3) if is_rotary else _NAMED
    only("timm", attributes, **{key: named[key] for key in decided})
    size = named["grid"][0] * named["patch_size"]
    args = {theirs: attributes[ours] for theirs, ours in read_timm.ARGS.items()}
    args |= {"patch_size": attributes["patch_size"], "init_values": attributes["layer_scale"]}
    args["img_size"] = attributes["grid"][0] * attributes["patch_size"]
    hidden = attributes["mlp_width"] or 4 * attributes["width"]
    args["mlp_ratio"] = _ratio(hidden * (2 if attributes["gated"] and not is_rotary else 1), attributes["width"])
    if is_rotary:
        pool = timm_pool(attributes, read_timm.DINOV3_POOLS)
    else:
        pool, options = _timm_options(attributes, named)
        args |= options
    args["global_pool"] = pool  # what stands outside model_args, timm writes and does not read
    # `img_size` changes what the name says of it.
    name = row.backbone if re.search(r"dinov\d|_miil$|_\d{3}$", row.backbone) else f"{row.backbone}_{size}"
    return name, pool, args, ["head", "head_dist"] if attributes["distilled"] else "head", "patch_embed.proj"


def _ratio(hidden: int, width: int) -> float:
    """Returns a number whose product with the width timm rounds down to `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _timm_options(attributes: Attributes, named: Attributes) -> tuple[str, dict[str, Any]]:
    """Returns timm's word for how its VisionTransformer pools, and what options it has other than its name says."""
    only("timm", attributes, qkv_bias="all" if attributes["qkv_bias"] == "query_value" else attributes["qkv_bias"])
    options = {"reg_tokens": attributes["registers"], "no_embed_class": attributes["positions"] == "patches"}
    options |= {key: attributes[key] for key in read_timm.FLAGS if attributes[key] != named[key]}
    if attributes["qkv_bias"] != named["qkv_bias"]:
        options["qkv_bias"] = attributes["qkv_bias"] == "all"
    if attributes["gelu"] != named["gelu"]:
        words = {ours: theirs for theirs, ours in read_timm.ACTIVATIONS.items()}
        options["act_layer"] = words[attributes["gelu"]]
    if attributes["pool"] == "normed_mean" and not attributes["distilled"]:
        return "avg", options | {"fc_norm": False}
    # A distilled network there has the mean of its two tokens' heads, whatever it says of its pooling.
    pool = timm_pool(attributes, {"token": "distilled"} if attributes["distilled"] else read_timm.POOLS)
    return pool, options | ({"fc_norm": True} if pool == "avg" and named["pool"] == "normed_mean" else {})


def transformers_vit(attributes: Attributes, classifies: bool) -> dict[str, Any]:
    """Returns the config of transformers' ViT, DINOv2, DINOv3, CLIP or SigLIP.

    Args:
        attributes: of the network.
        classifies: whether it has a head.

    Raises:
        InputError: transformers has no such network.
    """
    config = {
        "hidden_size": attributes["width"],
        "num_hidden_layers": attributes["depth"],
        "num_attention_heads": attributes["heads"],
        "image_size": attributes["grid"][0] * attributes["patch_size"],
        "patch_size": attributes["patch_size"],
        "hidden_act": _ACTIVATIONS[attributes["gelu"]],
        "layer_norm_eps": attributes["eps"],
    }
    if attributes["positions"] == "rotary":
        return config | _dinov3(attributes, classifies)
    only("transformers", attributes, distilled=False, qkv_bias="all", qk_norm=False, final_norm=True)
    if attributes["pre_norm"] or not attributes["class_token"]:
        return _tower(config, attributes, classifies)
    dinov2 = attributes["layer_scale"] is not None
    only("transformers", attributes, positions="all")
    pool = "class_mean" if dinov2 else "class"
    if classifies and attributes["pool"] != pool:
        why = f"its {'DINOv2' if dinov2 else 'ViT'} classifier reads {pool}: train with backbone.pool={pool}"
        raise InputError(f"transformers has no such network: the head here reads {attributes['pool']}, and {why}")
    ending = "ForImageClassification" if classifies else "Model"
    if dinov2:
        return config | _dinov2(attributes, ending)
    only("transformers", attributes, gated=False)
    hidden = attributes["mlp_width"] or 4 * attributes["width"]
    return config | {"model_type": "vit", "architectures": [f"ViT{ending}"], "intermediate_size": hidden}


def _tower(config: dict[str, Any], attributes: Attributes, classifies: bool) -> dict[str, Any]:
    """Returns the config of an image tower; the classifier of SigLIP's has it inside, as texts' would be beside it."""
    only("transformers", attributes, gated=False, registers=0, layer_scale=None)
    config["intermediate_size"] = attributes["mlp_width"] or 4 * attributes["width"]
    if attributes["class_token"]:
        only("transformers", attributes, positions="all", pool="class")
        kind = "CLIPVisionModelWithProjection" if classifies else "CLIPVisionModel"
        return config | {"model_type": "clip_vision_model", "architectures": [kind], "projection_dim": 512}
    only("transformers", attributes, pre_norm=False)
    if classifies:
        why = "its SigLIP classifier reads normed_mean: train with backbone.pool=normed_mean"
        if attributes["pool"] != "normed_mean":
            raise InputError(f"transformers has no such network: the head here reads {attributes['pool']}, and {why}")
        tower = config | {"model_type": "siglip_vision_model", "vision_use_head": False}
        return {"model_type": "siglip", "architectures": ["SiglipForImageClassification"], "vision_config": tower}
    has_head = attributes["pool"] == "attention"
    names = {"model_type": "siglip_vision_model", "architectures": ["SiglipVisionModel"]}
    return config | names | {"vision_use_head": has_head}


def _dinov2(attributes: Attributes, ending: str) -> dict[str, Any]:
    width, registers = attributes["width"], attributes["registers"]
    hidden = attributes["mlp_width"] or 4 * width
    if attributes["gated"]:  # of which transformers gives the width that an MLP would have
        if hidden != gated_width(4 * width):
            raise InputError(f"transformers has no such network: only mlp_width={gated_width(4 * width)}, not {hidden}")
        hidden = 4 * width
    if hidden % width:
        raise InputError(f"transformers has no such network: only mlp_width a multiple of {width}, not {hidden}")
    config = {"mlp_ratio": hidden // width, "layerscale_value": attributes["layer_scale"]}
    config |= {"use_swiglu_ffn": True} if attributes["gated"] else {}
    if registers:
        names = {"model_type": "dinov2_with_registers", "num_register_tokens": registers}
        return config | names | {"architectures": [f"Dinov2WithRegisters{ending}"]}
    return config | {"model_type": "dinov2", "architectures": [f"Dinov2{ending}"]}


def _dinov3(attributes: Attributes, classifies: bool) -> dict[str, Any]:
    if classifies:
        raise InputError("transformers has no DINOv3 ViT with a classifier: convert it to timm, or without its head")
    has_bias = {"all": (True, True, True), "query_value": (True, False, True), "none": (False, False, False)}
    config = dict(zip(("query_bias", "key_bias", "value_bias"), has_bias[attributes["qkv_bias"]], strict=True))
    if attributes["gated"]:
        config |= {"use_gated_mlp": True, "hidden_act": "silu"}
    return config | {
        "model_type": "dinov3_vit",
        "architectures": ["DINOv3ViTModel"],
        "intermediate_size": attributes["mlp_width"] or 4 * attributes["width"],
        "num_register_tokens": attributes["registers"],
        "layerscale_value": attributes["layer_scale"],
    }
