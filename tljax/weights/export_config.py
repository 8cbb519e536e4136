"""The `config.json` and preprocessing with which timm and transformers load a checkpoint back; inverse of `configs`."""

from collections.abc import Mapping
from typing import Any

from tljax.data.preprocessing import Preprocessing
from tljax.errors import InputError
from tljax.models.registry import attributes as module_attributes
from tljax.models.registry import build
from tljax.problems.registry import problem_of
from tljax.weights.catalog import Pretrained
from tljax.weights.configs.processors import FILTERS
from tljax.weights.configs.timm import CONVNEXT_ARGS, CROP_MODES, REGNET_ARGS, RESNET_POOLS, VIT_ARGS, VIT_POOLS

Attributes = Mapping[str, Any]  # of a module of tljax.models


def timm(kind: str, attributes: Attributes, row: Pretrained) -> dict[str, Any]:
    """Returns the config that timm's `create_model("local-dir:FOLDER")` reads.

    Args:
        kind: the module's class.
        attributes: its attributes.
        row: preprocessing, licence and class names.

    Raises:
        InputError: timm has no such network.
    """
    if kind not in _TIMM:
        raise InputError(f"timm has no {kind}; it has: {', '.join(_TIMM)}")
    name, pool, args, classifier, first_conv = _TIMM[kind](attributes, row)
    images = row.preprocessing
    _check_order("timm", images)
    if images.resize not in CROP_MODES.values():
        raise InputError(f"timm resizes every picture, and these weights take none but of {images.size} pixels")
    if images.inputs != 3:
        # Without a `first_conv`, timm takes the kernel as it is, and does not adapt it once more.
        args, first_conv = args | {"in_chans": images.inputs}, None
    return {
        "architecture": name,
        "num_classes": len(row.classes),
        "global_pool": pool,
        "model_args": args,
        "label_names": list(row.classes),
        "pretrained_cfg": {
            "input_size": [images.inputs, images.size, images.size],
            "mean": [value / 255 for value in images.mean],
            "std": [value / 255 for value in images.std],
            "crop_pct": images.crop_fraction,
            "crop_mode": next(theirs for theirs, ours in CROP_MODES.items() if ours == images.resize),
            "interpolation": images.interpolation,
            "num_classes": len(row.classes),
            "classifier": classifier,
            "first_conv": first_conv,
            "license": row.licence,
        },
    }


def _timm_vit(attributes: Attributes, row: Pretrained):
    _only("timm", attributes, eps=1e-6, gelu="erf")
    distilled = attributes["distilled"]
    # A distilled network there has the mean of its two tokens' heads, whatever it says of its pooling.
    pool = _timm_pool(attributes, {"token": "distilled"} if distilled else VIT_POOLS)
    args = {theirs: attributes[ours] for theirs, ours in VIT_ARGS.items()}
    args |= {"patch_size": attributes["patch_size"], "init_values": attributes["layer_scale"]}
    args["reg_tokens"] = attributes["registers"]
    args["img_size"] = attributes["grid"][0] * attributes["patch_size"]
    args["mlp_ratio"] = (attributes["mlp_width"] or 4 * attributes["width"]) / attributes["width"]
    args["global_pool"] = pool  # what stands outside model_args, timm writes and does not read
    args["no_embed_class"] = attributes["positions"] == "patches"
    name = row.backbone if "dinov2" in row.backbone else f"{row.backbone}_224"  # img_size changes it
    return name, pool, args, ["head", "head_dist"] if distilled else "head", "patch_embed.proj"


def _timm_pool(attributes: Attributes, pools: Mapping[str, str]) -> str:
    """Returns timm's word for how the network pools."""
    for theirs, ours in pools.items():
        if ours == attributes["pool"]:
            return theirs
    raise InputError(f"timm has no such network that pools by {attributes['pool']!r}, only {', '.join(pools.values())}")


def _timm_resnet(attributes: Attributes, row: Pretrained):
    named = module_attributes(build(row.backbone, {}))
    _only("timm", attributes, norm="batch", stride_on="3x3", stem_pool_padding=(1, 1), attention=named["attention"])
    args = {"layers": list(attributes["depths"]), "channels": list(attributes["widths"])}
    if attributes["stem"] == "deep":
        args["stem_width"] = attributes["stem_width"] // 2
    else:
        _only("timm", attributes, stem_width=64)
    args |= {key: attributes[key] for key in ("cardinality", "base_width") if attributes[key] != named[key]}
    pool = _timm_pool(attributes, RESNET_POOLS)
    if pool != "avg":
        args["global_pool"] = pool
    return row.backbone, pool, args, "fc", "conv1.0" if attributes["stem"] == "deep" else "conv1"


def _timm_bit(attributes: Attributes, row: Pretrained):
    return row.backbone, "avg", {}, "head.fc", "stem.conv"


def _timm_efficientnet(attributes: Attributes, row: Pretrained):
    # No argument changes its stages: they are those of the name.
    named = module_attributes(build(row.backbone, {}))
    _only("timm", attributes, **{key: value for key, value in named.items() if key not in ("pool", "eps")})
    pool = _timm_pool(attributes, RESNET_POOLS)
    args = {"global_pool": pool} if pool != "avg" else {}
    if attributes["eps"] != named["eps"]:
        args["bn_eps"] = attributes["eps"]
    return row.backbone, pool, args, "classifier", "conv_stem"


def _timm_convnext(attributes: Attributes, row: Pretrained):
    _only("timm", attributes, eps=1e-6)
    args = {theirs: list(attributes[ours]) for theirs, ours in CONVNEXT_ARGS.items()}
    args |= {"ls_init_value": attributes["layer_scale"], "use_grn": attributes["response_norm"]}
    pool = _timm_pool(attributes, RESNET_POOLS)
    args |= {"conv_mlp": attributes["conv_mlp"], "global_pool": pool}
    return row.backbone, pool, args, "head.fc", "stem.0"


_TIMM = {"ViT": _timm_vit, "ResNet": _timm_resnet, "BiT": _timm_bit, "EfficientNet": _timm_efficientnet}


def _timm_regnet(attributes: Attributes, row: Pretrained):
    pool = _timm_pool(attributes, RESNET_POOLS)
    args = {theirs: attributes[ours] for theirs, ours in REGNET_ARGS.items()}
    args |= {"se_ratio": attributes["squeeze"], "global_pool": pool}
    return row.backbone, pool, args, "head.fc", "stem.conv"


_TIMM |= {"ConvNeXt": _timm_convnext, "MobileNetV3": _timm_efficientnet, "RegNet": _timm_regnet}


def transformers(kind: str, attributes: Attributes, row: Pretrained) -> dict[str, Any]:
    """Returns the config that transformers' `from_pretrained(FOLDER)` reads, with a classifier or without.

    Args:
        kind: the module's class.
        attributes: its attributes.
        row: preprocessing and class names.

    Raises:
        InputError: transformers has no such network.
    """
    if kind not in _TRANSFORMERS:
        raise InputError(f"transformers: no export of a {kind}; there are: {', '.join(_TRANSFORMERS)}")
    config = _TRANSFORMERS[kind](attributes, bool(row.classes))
    if kind != "Bert":
        _check_order("transformers", row.preprocessing)
        config["num_channels"] = row.preprocessing.inputs
    if row.classes:
        config["id2label"] = {str(i): name for i, name in enumerate(row.classes)}
        config["label2id"] = {name: i for i, name in enumerate(row.classes)}
    if row.problem and (problem_type := problem_of(row.problem).hf_problem_type):
        config["problem_type"] = problem_type  # by which a pipeline makes scores of logits
    return config


def _transformers_vit(attributes: Attributes, classifies: bool) -> dict[str, Any]:
    dinov2 = attributes["layer_scale"] is not None
    _only("transformers", attributes, positions="all", distilled=False)
    pool = "class_mean" if dinov2 else "class"
    if classifies and attributes["pool"] != pool:
        why = f"its {'DINOv2' if dinov2 else 'ViT'} classifier reads {pool}: train with backbone.pool={pool}"
        raise InputError(f"transformers has no such network: the head here reads {attributes['pool']}, and {why}")
    ending = "ForImageClassification" if classifies else "Model"
    width, registers = attributes["width"], attributes["registers"]
    config = {
        "hidden_size": width,
        "num_hidden_layers": attributes["depth"],
        "num_attention_heads": attributes["heads"],
        "image_size": attributes["grid"][0] * attributes["patch_size"],
        "patch_size": attributes["patch_size"],
        "hidden_act": "gelu" if attributes["gelu"] == "erf" else "gelu_new",
        "layer_norm_eps": attributes["eps"],
    }
    hidden = attributes["mlp_width"] or 4 * width
    if not dinov2:
        kind = {"model_type": "vit", "architectures": [f"ViT{ending}"], "intermediate_size": hidden}
        return config | kind
    if hidden % width:
        raise InputError(f"transformers has no such network: only mlp_width a multiple of {width}, not {hidden}")
    config |= {"mlp_ratio": hidden // width, "layerscale_value": attributes["layer_scale"]}
    if registers:
        names = {"model_type": "dinov2_with_registers", "num_register_tokens": registers}
        return config | names | {"architectures": [f"Dinov2WithRegisters{ending}"]}
    return config | {"model_type": "dinov2", "architectures": [f"Dinov2{ending}"]}


def _transformers_resnet(attributes: Attributes, classifies: bool) -> dict[str, Any]:
    _only("transformers", attributes, norm="batch", stem_pool_padding=(1, 1), stem="plain", avg_down=False, pool="mean")
    _only("transformers", attributes, cardinality=1, base_width=64, attention="none")
    expansion = 4 if attributes["kind"] == "bottleneck" else 1
    return {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification" if classifies else "ResNetModel"],
        "depths": list(attributes["depths"]),
        "hidden_sizes": [width * expansion for width in attributes["widths"]],
        "embedding_size": attributes["stem_width"],
        "layer_type": attributes["kind"],
        "downsample_in_bottleneck": attributes["stride_on"] == "1x1",
        "hidden_act": "relu",
    }


def _transformers_convnext(attributes: Attributes, classifies: bool) -> dict[str, Any]:
    is_second = attributes["response_norm"]
    _only("transformers", attributes, pool="mean", **({"layer_scale": None} if is_second else {}))
    config = {
        "model_type": "convnextv2" if is_second else "convnext",
        "architectures": [f"ConvNext{'V2' * is_second}{'ForImageClassification' if classifies else 'Model'}"],
        "depths": list(attributes["depths"]),
        "hidden_sizes": list(attributes["widths"]),
        "num_stages": len(attributes["depths"]),
        "layer_norm_eps": attributes["eps"],
        "hidden_act": "gelu",
    }
    return config if is_second else config | {"layer_scale_init_value": attributes["layer_scale"] or 0}


def _transformers_bert(attributes: Attributes, classifies: bool) -> dict[str, Any]:
    width = attributes["width"]
    sizes = width, attributes["depth"], attributes["heads"], attributes["mlp_width"] or 4 * width
    gelu = "gelu" if attributes["gelu"] == "erf" else "gelu_new"
    shared = {"vocab_size": attributes["vocabulary"], "max_position_embeddings": attributes["positions"]}
    classifies = attributes["pool"] in ("cls_tanh", "cls_relu")  # which have the layer that a classifier reads
    if not classifies:
        shared["tljax_pool"] = attributes["pool"]
    if attributes["normalize"]:
        shared["tljax_normalize"] = True
    if attributes["token_types"] == 0:
        _only("transformers", attributes, eps=1e-12)
        names = dict(zip(("dim", "n_layers", "n_heads", "hidden_dim"), sizes, strict=True))
        return {**_text("distilbert", "DistilBert", classifies), **shared, **names, "activation": gelu}
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = {**shared, **dict(zip(names, sizes, strict=True)), "hidden_act": gelu}
    config |= {"type_vocab_size": attributes["token_types"], "layer_norm_eps": attributes["eps"]}
    if attributes["pad_id"] is None:
        return _text("bert", "Bert", classifies) | config
    return _text("roberta", "Roberta", classifies) | config | {"pad_token_id": attributes["pad_id"]}


def _text(kind: str, name: str, classifies: bool) -> dict[str, Any]:
    return {"model_type": kind, "architectures": [f"{name}{'ForSequenceClassification' if classifies else 'Model'}"]}


_TRANSFORMERS = {"ViT": _transformers_vit, "ResNet": _transformers_resnet, "Bert": _transformers_bert}
_TRANSFORMERS |= {"ConvNeXt": _transformers_convnext}


def processor(images: Preprocessing) -> dict[str, Any]:
    """Returns transformers' `preprocessor_config.json`."""
    squash = images.resize == "squash"
    return {
        "image_processor_type": "DeiTImageProcessor" if squash else "BitImageProcessor",
        "do_resize": images.resize != "none",
        "size": {"height": images.edge, "width": images.edge} if squash else {"shortest_edge": images.edge},
        "do_center_crop": images.resize != "none",
        "crop_size": {"height": images.size, "width": images.size},
        "do_convert_rgb": images.inputs == 3,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": images.rescaled(images.mean),
        "image_std": images.rescaled(images.std),
        "resample": {name: number for number, name in FILTERS.items()}[images.interpolation],
        "rescale_factor": images.rescale,
    }


def _check_order(library: str, images: Preprocessing) -> None:
    if images.channels not in ("rgb", "rgba", "grey"):
        raise InputError(f"{library} feeds its networks rgb, this one wants {images.channels}")


def _only(library: str, attributes: Attributes, **values: Any) -> None:
    for key, value in values.items():
        if attributes.get(key, value) != value:
            raise InputError(f"{library} has no such network: only {key}={value!r}, not {attributes[key]!r}")
