"""The `config.json` and preprocessing with which timm and transformers load a checkpoint back; inverse of `configs`."""

from typing import Any

from tljax.data.preprocessing import Preprocessing
from tljax.errors import InputError
from tljax.models.registry import attributes as module_attributes
from tljax.models.registry import build
from tljax.problems.registry import problem_of
from tljax.weights import export_text
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import relative
from tljax.weights.configs.limits import Attributes
from tljax.weights.configs.limits import only as _only
from tljax.weights.configs.limits import timm_pool as _timm_pool
from tljax.weights.configs.processors import FILTERS
from tljax.weights.configs.timm import CONVNEXT_ARGS, CROP_MODES, REGNET_ARGS, RESNET_POOLS
from tljax.weights.export_vit import timm_vit, transformers_vit


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


def _timm_regnet(attributes: Attributes, row: Pretrained):
    pool = _timm_pool(attributes, RESNET_POOLS)
    args = {theirs: attributes[ours] for theirs, ours in REGNET_ARGS.items()}
    args |= {"se_ratio": attributes["squeeze"], "global_pool": pool}
    return row.backbone, pool, args, "head.fc", "stem.conv"


_TIMM = {"ViT": timm_vit, "ResNet": _timm_resnet, "BiT": _timm_bit, "EfficientNet": _timm_efficientnet}
_TIMM |= {"ConvNeXt": _timm_convnext, "MobileNetV3": _timm_efficientnet, "RegNet": _timm_regnet, **relative.TO_TIMM}


def transformers(kind: str, attributes: Attributes, row: Pretrained) -> dict[str, Any]:
    """Returns the config that transformers' `from_pretrained(FOLDER)` reads, with a classifier or without.

    Args:
        kind: the module's class.
        attributes: its attributes.
        row: preprocessing and class names.

    Raises:
        InputError: transformers has no such network.
    """
    if kind not in _TRANSFORMERS and kind not in export_text.KINDS:
        known = ", ".join((*_TRANSFORMERS, *export_text.KINDS))
        raise InputError(f"transformers: no export of a {kind}; there are: {known}")
    if kind in export_text.KINDS:
        config = export_text.transformers(kind, attributes, row.source)
    else:
        config = _TRANSFORMERS[kind](attributes, bool(row.classes))
        _check_order("transformers", row.preprocessing)
        config.get("vision_config", config)["num_channels"] = row.preprocessing.inputs
    if "projection_dim" in config:  # a head that tells no classes apart, in a network that has no other
        if any(name != f"LABEL_{i}" for i, name in enumerate(row.classes)):
            why = "its CLIP classifier reads patches that are not normalized: convert it to timm"
            raise InputError(f"transformers has no such network: {why}")
        return config | {"projection_dim": len(row.classes) or config["projection_dim"]}
    if row.classes:
        config["id2label"] = {str(i): name for i, name in enumerate(row.classes)}
        config["label2id"] = {name: i for i, name in enumerate(row.classes)}
    if row.problem and (problem_type := problem_of(row.problem).hf_problem_type):
        config["problem_type"] = problem_type  # by which a pipeline makes scores of logits
    return config


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


_TRANSFORMERS = {"ViT": transformers_vit, "ResNet": _transformers_resnet, "ConvNeXt": _transformers_convnext}
_TRANSFORMERS |= relative.TO_TRANSFORMERS


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
