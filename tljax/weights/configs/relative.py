"""Swin in timm's and transformers' `config.json`, both ways: what their keys mean here, and what we write."""

import re
from typing import Any

from tljax.io.json_keys import Keys
from tljax.models.registry import build
from tljax.weights.catalog import Pretrained
from tljax.weights.configs.limits import Attributes, only, timm_pool

SWIN_POOLS = {"avg": "mean", "max": "max"}
_SWIN_ARGS = {"depths": "depths", "num_heads": "heads"}


def sized(architecture: str) -> tuple[str, int]:
    """Returns our name of timm's architecture, and the image size at the end of its own."""
    parts = re.fullmatch(r"(.*)_(\d+)", architecture)
    return (parts[1], int(parts[2])) if parts else (architecture, 224)


def _timm_name(row: Pretrained) -> str:
    """Returns timm's name of an architecture, which ends with the image size that its row here has."""
    return f"{row.backbone}_{build(row.backbone, {}).input_spec.size[0]}"


def swin_from_timm(architecture: str, args: Keys) -> tuple[str, dict[str, Any]]:
    """Returns our name of timm's architecture, and the attributes that its arguments change.

    Raises:
        InputError: a value is not supported.
    """
    name, size = sized(architecture)
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
    if "pretrained_window_sizes" in args and name.startswith("swinv2"):
        windows = args.get("pretrained_window_sizes")
        changes["pretrained_windows"] = args.wholes("pretrained_window_sizes") if any(windows) else []
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
    if len(heads) != len(depths):
        raise keys.refusal("num_heads", f"has {len(heads)} stages, and depths {len(depths)}")
    for key in ("hidden_size", "num_layers"):  # which follow from the others
        keys.get(key)
    keys.only(qkv_bias=True, use_absolute_embeddings=False, hidden_act="gelu", path_norm=True)
    return {
        "width": keys.whole("embed_dim", 96),
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


TO_TIMM = {"Swin": _swin_to_timm}
TO_TRANSFORMERS = {"Swin": _swin_to_transformers}
