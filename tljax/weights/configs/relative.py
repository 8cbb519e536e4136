"""Swin, BEiT and EVA in timm's and transformers' `config.json`: what their keys mean here, and what we write."""

import re
from typing import Any

from tljax.io.json_keys import Keys
from tljax.models.registry import BACKBONES, Backbone, build
from tljax.weights.catalog import Pretrained
from tljax.weights.configs.limits import Attributes, only, timm_pool

SWIN_POOLS = {"avg": "mean", "max": "max"}
PATCHES_POOLS = {"avg": "mean", "token": "class"}
# timm's argument -> our attribute, where the values are the same.
_PATCHES_ARGS = {"embed_dim": "width", "depth": "depth", "num_heads": "heads"}
_EVA_ARGS = {"use_rot_pos_emb": "rotary", "swiglu_mlp": "gated"}
_EVA_ARGS |= {"scale_mlp": "mlp_norm", "scale_attn_inner": "attention_norm"}
_OWN_WINDOWS = [[0] * stages for stages in range(1, 9)]  # where biases are of no other window than the network's
_SWIN_ARGS = {"depths": "depths", "num_heads": "heads"}


def sized(architecture: str) -> tuple[str, int]:
    """Returns our name of timm's architecture, and the image size at the end of its own."""
    parts = re.fullmatch(r"(.*)_(\d+)", architecture)
    if not parts:
        return architecture, 224
    return architecture if architecture in BACKBONES else parts[1], int(parts[2])


def _timm_name(row: Pretrained) -> str:
    """Returns timm's name of an architecture, which ends with the image size that its row here has."""
    size = build(row.backbone, {}).input_spec.size[0]
    return row.backbone if row.backbone.endswith(f"_{size}") else f"{row.backbone}_{size}"


def swin_from_timm(architecture: str, args: Keys) -> tuple[str, dict[str, Any]]:
    """Returns our name of timm's architecture, and the attributes that its arguments change.

    Raises:
        InputError: a value is not supported.
    """
    name, size = sized(architecture)
    base = build(name, {})
    patch, size = args.square("patch_size", 4), args.square("img_size", size)
    if size < patch:
        raise args.refusal("img_size", f"is less than the patch size of {patch}")
    changes: dict[str, Any] = {"patch_size": patch, "grid": [size // patch] * 2}
    changes |= {ours: args.wholes(theirs) for theirs, ours in _SWIN_ARGS.items() if theirs in args}
    if "embed_dim" in args:
        changes["width"] = args.whole("embed_dim")
    if "window_size" in args:
        changes["window"] = args.square("window_size")
    if "mlp_ratio" in args:
        changes["mlp_ratio"] = args.number("mlp_ratio")
    if base.version == 2 and args.get("pretrained_window_sizes", [0]) not in _OWN_WINDOWS:
        changes["pretrained_windows"] = args.wholes("pretrained_window_sizes")
    stages = len(changes.get("depths", base.depths))
    for theirs, ours in (("num_heads", "heads"), ("pretrained_window_sizes", "pretrained_windows")):
        if len(changes.get(ours, getattr(base, ours)) or [0] * stages) != stages:
            raise args.refusal(theirs, f"is not of the {stages} stages that depths has")
    args.only(qkv_bias=True, head_dim=None, always_partition=False, norm_layer="layernorm")
    return name, changes


def _swin_to_timm(attributes: Attributes, row: Pretrained):
    only("timm", attributes, eps=1e-5)
    pool = timm_pool(attributes, SWIN_POOLS)
    args = {theirs: list(attributes[ours]) for theirs, ours in _SWIN_ARGS.items()}
    args |= {"embed_dim": attributes["width"], "window_size": attributes["window"], "global_pool": pool}
    args |= {"patch_size": attributes["patch_size"], "mlp_ratio": attributes["mlp_ratio"]}
    args["img_size"] = [side * attributes["patch_size"] for side in attributes["grid"]]
    if attributes["pretrained_windows"]:
        args["pretrained_window_sizes"] = list(attributes["pretrained_windows"])
    return _timm_name(row), pool, args, "head.fc", "patch_embed.proj"


def swin(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `SwinConfig`.

    Raises:
        InputError: a value is not supported.
    """
    patch, side = keys.square("patch_size", 4), keys.square("image_size", 224)
    if side < patch:
        raise keys.refusal("image_size", f"is less than the patch size of {patch}")
    depths, heads = keys.wholes("depths", [2, 2, 6, 2]), keys.wholes("num_heads", [3, 6, 12, 24])
    width = keys.whole("embed_dim", 96)
    if len(heads) != len(depths):
        raise keys.refusal("num_heads", f"has {len(heads)} stages, and depths {len(depths)}")
    if any(width * 2**stage % count for stage, count in enumerate(heads)):
        raise keys.refusal("num_heads", f"does not divide the widths of the stages, {width} and twice that each")
    for key in ("hidden_size", "num_layers"):  # which follow from the others
        keys.get(key)
    keys.only(qkv_bias=True, use_absolute_embeddings=False, hidden_act="gelu", path_norm=True)
    return {
        "width": width,
        "depths": depths,
        "heads": heads,
        "window": keys.whole("window_size", 7),
        "mlp_ratio": keys.number("mlp_ratio", 4.0),
        "patch_size": patch,
        "grid": [side // patch] * 2,
        "eps": keys.number("layer_norm_eps", 1e-5),
    }


def _swin_to_transformers(attributes: Attributes, classifies: bool) -> dict[str, Any]:
    only("transformers", attributes, version=1, pool="mean", grid=(attributes["grid"][0],) * 2)
    return {
        "model_type": "swin",
        "architectures": [f"Swin{'ForImageClassification' if classifies else 'Model'}"],
        "embed_dim": attributes["width"],
        "depths": list(attributes["depths"]),
        "num_heads": list(attributes["heads"]),
        "window_size": attributes["window"],
        "mlp_ratio": attributes["mlp_ratio"],
        "image_size": attributes["grid"][0] * attributes["patch_size"],
        "patch_size": attributes["patch_size"],
        "layer_norm_eps": attributes["eps"],
        "hidden_act": "gelu",
    }


def _patches_from_timm(architecture: str, args: Keys) -> tuple[str, Backbone, dict[str, Any]]:
    """Returns our name and network of timm's architecture, and what arguments change that BEiT and EVA have."""
    name, size = sized(architecture)
    base = build(name, {})
    patch, size = args.square("patch_size", base.patch_size), args.square("img_size", size)
    if size < patch:
        raise args.refusal("img_size", f"is less than the patch size of {patch}")
    changes: dict[str, Any] = {"patch_size": patch, "grid": [size // patch] * 2}
    changes |= {ours: args.whole(theirs) for theirs, ours in _PATCHES_ARGS.items() if theirs in args}
    args.only(qkv_bias=True, norm_layer="layernorm")
    return name, base, changes


def _patches_to_timm(attributes: Attributes, row: Pretrained) -> tuple[str, str, dict[str, Any]]:
    """Returns timm's name of a transformer with a class token, how it pools, and its arguments."""
    only("timm", attributes, eps=1e-6)
    pool = timm_pool(attributes, PATCHES_POOLS)
    args = {theirs: attributes[ours] for theirs, ours in _PATCHES_ARGS.items()}
    args |= {"patch_size": attributes["patch_size"], "global_pool": pool}
    args["img_size"] = [side * attributes["patch_size"] for side in attributes["grid"]]
    args["mlp_ratio"] = (attributes["mlp_width"] or 4 * attributes["width"]) / attributes["width"]
    return _timm_name(row), pool, args


def beit_from_timm(architecture: str, args: Keys) -> tuple[str, dict[str, Any]]:
    """Returns our name of timm's architecture, and the attributes that its arguments change.

    Raises:
        InputError: a value is not supported.
    """
    name, base, changes = _patches_from_timm(architecture, args)
    if "mlp_ratio" in args:
        changes["mlp_width"] = int(changes.get("width", base.width) * args.number("mlp_ratio"))
    if "init_values" in args or args.is_null("init_values"):
        changes["layer_scale"] = args.number("init_values") if "init_values" in args else None
    if "use_abs_pos_emb" in args:
        changes["positions"] = args.flag("use_abs_pos_emb", False)
    shared = args.flag("use_shared_rel_pos_bias", False)  # a table that every block here has a copy of
    args.only(use_rel_pos_bias=not shared, swiglu_mlp=False, scale_mlp=False)
    return name, changes


def _beit_to_timm(attributes: Attributes, row: Pretrained):
    name, pool, args = _patches_to_timm(attributes, row)
    args |= {"use_abs_pos_emb": attributes["positions"], "init_values": attributes["layer_scale"]}
    return name, pool, args, "head", "patch_embed.proj"


def beit(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `BeitConfig`.

    Raises:
        InputError: a value is not supported.
    """
    patch, side, width = keys.square("patch_size", 16), keys.square("image_size", 224), keys.whole("hidden_size", 768)
    heads, layer_scale = keys.whole("num_attention_heads", 12), keys.number("layer_scale_init_value", 0.1, least=-1.0)
    if side < patch:
        raise keys.refusal("image_size", f"is less than the patch size of {patch}")
    if width % heads:
        raise keys.refusal("num_attention_heads", f"does not divide the width of {width}")
    keys.get("vocab_size")  # of the visual words that pretraining predicts
    shared = keys.flag("use_shared_relative_position_bias", False)  # a table that every block here has a copy of
    keys.only(use_relative_position_bias=not shared, hidden_act="gelu")
    if "use_relative_position_bias" not in keys and not shared:
        raise keys.refusal("use_relative_position_bias", "is true of a BEiT, and false where nothing is said")
    return {
        "width": width,
        "depth": keys.whole("num_hidden_layers", 12),
        "heads": heads,
        "mlp_width": keys.whole("intermediate_size", 3072),
        "patch_size": patch,
        "grid": [side // patch] * 2,
        "positions": keys.flag("use_absolute_position_embeddings", False),
        "pool": "mean" if keys.flag("use_mean_pooling", True) else "class",
        "layer_scale": layer_scale if layer_scale > 0 else None,
        "eps": keys.number("layer_norm_eps", 1e-12),
    }


def _beit_to_transformers(attributes: Attributes, classifies: bool) -> dict[str, Any]:
    only("transformers", attributes, grid=(attributes["grid"][0],) * 2)
    return {
        "model_type": "beit",
        "architectures": [f"Beit{'ForImageClassification' if classifies else 'Model'}"],
        "hidden_size": attributes["width"],
        "num_hidden_layers": attributes["depth"],
        "num_attention_heads": attributes["heads"],
        "intermediate_size": attributes["mlp_width"] or 4 * attributes["width"],
        "image_size": attributes["grid"][0] * attributes["patch_size"],
        "patch_size": attributes["patch_size"],
        "use_relative_position_bias": True,
        "use_shared_relative_position_bias": False,
        "use_absolute_position_embeddings": attributes["positions"],
        "use_mean_pooling": attributes["pool"] == "mean",
        "use_mask_token": False,
        "layer_scale_init_value": attributes["layer_scale"] or 0,
        "layer_norm_eps": attributes["eps"],
        "hidden_act": "gelu",
    }


def eva_from_timm(architecture: str, args: Keys) -> tuple[str, dict[str, Any]]:
    """Returns our name of timm's architecture, and the attributes that its arguments change.

    Raises:
        InputError: a value is not supported.
    """
    name, base, changes = _patches_from_timm(architecture, args)
    changes |= {ours: args.flag(theirs, False) for theirs, ours in _EVA_ARGS.items() if theirs in args}
    gated, normed = (changes.get(key, getattr(base, key)) for key in ("gated", "mlp_norm"))
    if normed and not gated:
        raise args.refusal("scale_mlp", "is not supported without swiglu_mlp")
    # What the published networks have, which say it by their names.
    ratio = args.number("mlp_ratio", 4 * 2 / 3 if gated else base.mlp_width / base.width)
    if changes.keys() & {"width", "gated"} or "mlp_ratio" in args:
        changes["mlp_width"] = int(changes.get("width", base.width) * ratio)
    args.only(qkv_fused=not normed, init_values=None, attn_type="eva", class_token=True, num_reg_tokens=0)
    args.only(no_embed_class=False, use_abs_pos_emb=True, use_post_norm=False, use_pre_transformer_norm=False)
    args.only(swiglu_align_to=0, rope_type="cat", rope_temperature=10000.0, rope_rotate_half=False)
    if args.get("ref_feat_shape", 16) not in (16, [16, 16]):
        raise args.refusal("ref_feat_shape", "is not supported, only 16")
    return name, changes


def _eva_to_timm(attributes: Attributes, row: Pretrained):
    name, pool, args = _patches_to_timm(attributes, row)
    args |= {theirs: attributes[ours] for theirs, ours in _EVA_ARGS.items()}
    args |= {"qkv_fused": not attributes["mlp_norm"], "ref_feat_shape": [16, 16]}
    return name, pool, args, "head", "patch_embed.proj"


TO_TIMM = {"Swin": _swin_to_timm, "BEiT": _beit_to_timm, "EVA": _eva_to_timm}
TO_TRANSFORMERS = {"Swin": _swin_to_transformers, "BEiT": _beit_to_transformers}
