"""Reads transformers' `config.json`: the network, as attributes of ours."""

import difflib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tljax.data.preprocessing import Preprocessing
from tljax.io import harmless_keys
from tljax.io.json_keys import Keys, load_json
from tljax.models.convolution import rounded
from tljax.models.registry import BACKBONES
from tljax.problems.registry import PROBLEMS
from tljax.weights.adapt import with_channels
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import processors, relative, transformers_vit
from tljax.weights.configs.encoder_sizes import GELU
from tljax.weights.configs.transformers_text import TEXTS

_PROBLEMS = {problem.hf_problem_type: name for name, problem in PROBLEMS.items()}
SILENT = "the default of transformers"  # where no key says for which head the weights are


class _Family(NamedTuple):
    """One `model_type`.

    Attributes:
        backbone: the row of `models.registry.BACKBONES` that its attributes change.
        source: whose names its files use.
        attributes: config -> attributes.
        reads: `image` or `text`.
        pos_embed: the rule of `adapt.RESAMPLINGS` by which it resamples positions.
    """

    backbone: str
    source: str
    attributes: Callable[[Keys], dict[str, Any]]
    reads: str = "image"
    pos_embed: str = "bicubic"


def read(config: Mapping[str, Any], folder: Path, uri: str) -> Pretrained:
    """Returns the row that a folder with such a `config.json` describes.

    Args:
        config: what is in it.
        folder: where the preprocessor's config lies beside it.
        uri: what errors call it.

    Raises:
        InputError: the network is not known here, or a key is unknown or has a value that is not supported.
    """
    keys = Keys(config, "config.json", uri, harmless_keys.TRANSFORMERS)
    kind = keys.get("model_type", "nothing")
    if not isinstance(kind, str) or kind not in FAMILIES:
        near = ", ".join(difflib.get_close_matches(str(kind), FAMILIES, n=1, cutoff=0.4))
        known = f"known: timm's, {', '.join(FAMILIES)}"
        raise keys.refusal(
            "model_type", f"describes a network that is not here{near and f' (nearest: {near})'}; {known}"
        )
    family = FAMILIES[kind]
    architecture = family.attributes(keys)
    keys.only(is_encoder_decoder=False, pruned_heads={}, quantization_config=None, auto_map=None)
    keys.texts("architectures")
    problem = keys.choice("problem_type", "", {"": "", **_PROBLEMS})
    classes = _classes(keys)
    images, origins = Preprocessing(), {}
    if family.reads == "image":
        images, origins = _images(keys, kind, architecture, folder, uri)
    says = "tljax_pool" if "tljax_pool" in keys else "architectures"
    origins = origins | {"pool": keys.origin(says, SILENT)}
    keys.finish()
    return Pretrained(
        *(uri, "", family.backbone, family.source, images, "unknown", family.pos_embed, architecture, classes),
        problem=problem,
        origins=origins,
    )


def _classes(keys: Keys) -> tuple[str, ...]:
    """Returns names of classes, or none where they are only numbered."""
    labels = keys.get("id2label", {})
    numbers = isinstance(labels, Mapping) and all(str(key).isdecimal() for key in labels)
    if not numbers or not all(isinstance(label, str | int) for label in labels.values()):
        raise keys.refusal("id2label", "must give each class's number a name")
    classes = tuple(str(labels[key]) for key in sorted(labels, key=int))
    return () if all(label == f"LABEL_{i}" for i, label in enumerate(classes)) else classes


def _images(
    keys: Keys, kind: str, architecture: Mapping[str, Any], folder: Path, uri: str
) -> tuple[Preprocessing, dict[str, str]]:
    channels = keys.whole("num_channels", 3)
    config = load_json(folder / "preprocessor_config.json", f"{uri}: preprocessor_config.json")
    if config is not None:
        images, origins = processors.read(config, kind, uri)
        return with_channels(images, channels), origins
    why = "assumed, as there is no preprocessor_config.json"
    origins = dict.fromkeys(("resize", "crop", "interpolation", "rescaling", "mean", "std"), f"{why}: ImageNet's")
    if "grid" not in architecture:
        return with_channels(Preprocessing(), channels), origins | {"size": f"{why}: ImageNet's"}
    size = architecture["grid"][0] * architecture["patch_size"]
    origins["size"] = f"{why}: {keys.origin('image_size', 'the usual image_size')}"
    return with_channels(Preprocessing(size=size), channels), origins


def _resnet(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `ResNetConfig`."""
    keys.only(hidden_act="relu", downsample_in_first_stage=False)
    kind = keys.choice("layer_type", "bottleneck", {name: name for name in ("basic", "bottleneck")})
    widths, depths = keys.wholes("hidden_sizes", [256, 512, 1024, 2048]), keys.wholes("depths", [3, 4, 6, 3])
    if len(widths) != len(depths):
        raise keys.refusal("depths", f"has {len(depths)} stages, and hidden_sizes {len(widths)}")
    return {
        "depths": depths,
        "widths": [width // (4 if kind == "bottleneck" else 1) for width in widths],
        "stem_width": keys.whole("embedding_size", 64),
        "kind": kind,
        "stride_on": "1x1" if keys.flag("downsample_in_bottleneck", False) else "3x3",
    }


def _efficientnet(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `EfficientNetConfig`."""
    columns = {"sizes": "kernel_sizes", "strides": "strides", "expansions": "expand_ratios"}
    defaults = {ours: list(getattr(BACKBONES["efficientnet_b0"], ours)) for ours in (*columns, "widths", "depths")}
    width, depth = keys.number("width_coefficient", 2.0), keys.number("depth_coefficient", 3.1)
    changes: dict[str, Any] = {ours: keys.wholes(theirs, defaults[ours]) for ours, theirs in columns.items()}
    changes["widths"] = [rounded(n * width) for n in keys.wholes("out_channels", defaults["widths"])]
    changes["depths"] = [math.ceil(n * depth) for n in keys.wholes("num_block_repeats", defaults["depths"])]
    for key in ("in_channels", "hidden_dim", "num_hidden_layers"):  # which follow from the others
        keys.get(key)
    if len(set(map(len, changes.values()))) > 1:
        raise keys.refusal("out_channels", "has another number of stages than num_block_repeats and the other columns")
    keys.only(depth_divisor=8)
    keys.choice("hidden_act", "swish", dict.fromkeys(("swish", "silu"), "silu"))
    changes |= {"operators": ["mbconv"] * len(changes["depths"]), "padding": "same"}
    _check_padding(keys, changes)
    changes |= {"stem_width": rounded(32 * width), "head_width": rounded(1280 * width)}
    changes |= {"squeeze": keys.number("squeeze_expansion_ratio", 0.25), "eps": keys.number("batch_norm_eps", 1e-3)}
    pool = keys.choice("pooling_type", "mean", {name: name for name in ("mean", "max")})
    return changes | {"pool": pool}


def _check_padding(keys: Keys, changes: Mapping[str, Any]) -> None:
    """Raises InputError where a file pads maps of its image size otherwise than TensorFlow: there odd ones alike.

    Only what strides is asked: elsewhere both sides are alike anyhow.
    """
    side, number, alike = -(-keys.square("image_size", 600) // 2), 0, []
    for depth, stride in zip(changes["depths"], changes["strides"], strict=True):
        alike += [number] * (stride == 2 and side % 2)
        side, number = -(-side // stride), number + depth
    strided = {sum(changes["depths"][:i]) for i, stride in enumerate(changes["strides"]) if stride == 2}
    if strided & set(keys.get("depthwise_padding", [])) != set(alike):
        raise keys.refusal("depthwise_padding", f"is not TensorFlow's SAME at this image_size, which is {alike}")


def _mobilenet_v2(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `MobileNetV2Config`."""
    width, base = keys.number("depth_multiplier", 1.0), BACKBONES["mobilenetv2_100"]
    keys.only(depth_divisible_by=8, min_depth=8, expand_ratio=6.0, output_stride=32, hidden_act="relu6")
    keys.only(first_layer_is_expansion=True)
    keys.square("image_size", 224)  # any will do
    fine = keys.flag("finegrained_output", True) and width < 1
    return {
        "widths": [rounded(round(n * width)) for n in base.widths],
        "stem_width": rounded(round(32 * width)),
        "head_width": 1280 if fine else rounded(round(1280 * width)),
        "first_shortcut": False,
        "padding": "same" if keys.flag("tf_padding", True) else "symmetric",
        "eps": keys.number("layer_norm_eps", 1e-3),
    }


def _convnext(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `ConvNextConfig`; LayerScale starts from 0 in a network without."""
    initial = keys.get("layer_scale_init_value", 1e-6)
    if initial == 0:
        return _convnext_of(keys) | {"layer_scale": None}
    return _convnext_of(keys) | {"layer_scale": keys.number("layer_scale_init_value", 1e-6)}


def _convnext_v2(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `ConvNextV2Config`."""
    return _convnext_of(keys) | {"layer_scale": None, "response_norm": True}


def _convnext_of(keys: Keys) -> dict[str, Any]:
    """Returns the attributes that both versions share."""
    depths, widths = keys.wholes("depths", [3, 3, 9, 3]), keys.wholes("hidden_sizes", [96, 192, 384, 768])
    if len(depths) != keys.whole("num_stages", 4) or len(widths) != len(depths):
        raise keys.refusal("num_stages", "is another number of stages than that of depths or hidden_sizes")
    keys.only(patch_size=4)
    keys.choice("hidden_act", "gelu", {name: kind for name, kind in GELU.items() if kind == "erf"})
    keys.square("image_size", 224)  # any will do
    return {"depths": depths, "widths": widths, "eps": keys.number("layer_norm_eps", 1e-12)}


FAMILIES = {
    "vit": _Family("vit_base_patch16", "hf", transformers_vit.vit),
    "dinov2": _Family("vit_base_patch14_dinov2", "hf", transformers_vit.dinov2),
    # Unlike those without registers, these resample with antialiasing.
    "dinov2_with_registers": _Family(
        "vit_base_patch14_dinov2", "hf", transformers_vit.dinov2_with_registers, pos_embed="bicubic_antialias"
    ),
    "dinov3_vit": _Family("vit_small_patch16_dinov3_qkvb", "hf", transformers_vit.dinov3),
    "siglip": _Family("vit_base_patch16_siglip", "hf", transformers_vit.siglip),
    "siglip_vision_model": _Family("vit_base_patch16_siglip", "hf", transformers_vit.siglip_vision),
    "clip": _Family("vit_base_patch16_clip_quickgelu", "hf", transformers_vit.clip),
    "clip_vision_model": _Family("vit_base_patch16_clip_quickgelu", "hf", transformers_vit.clip_vision),
    "vit_mae": _Family("vit_base_patch16", "hf", transformers_vit.vit),
    "resnet": _Family("resnet50", "hf", _resnet),
    "efficientnet": _Family("efficientnet_b0", "hf", _efficientnet),
    "mobilenet_v2": _Family("mobilenetv2_100", "hf_mobilenet_v2", _mobilenet_v2),
    "convnext": _Family("convnext_tiny", "hf", _convnext),
    "convnextv2": _Family("convnextv2_tiny", "hf", _convnext_v2),
    "swin": _Family("swin_tiny_patch4_window7", "hf", relative.swin),
    "beit": _Family("beit_base_patch16", "hf", relative.beit),
    **{kind: _Family(*family, "text") for kind, family in TEXTS.items()},
}
