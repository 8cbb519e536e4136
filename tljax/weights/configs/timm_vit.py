"""Reads what timm's `config.json` says of a Vision Transformer: its architecture, and arguments that change it."""

import re
from collections.abc import Mapping
from typing import Any

from tljax.io.json_keys import Keys
from tljax.models.base import Backbone
from tljax.models.registry import BACKBONES

# timm's argument -> our attribute, where the values are the same.
ARGS = {"embed_dim": "width", "depth": "depth", "num_heads": "heads"}
FLAGS = ("qk_norm", "class_token", "pre_norm", "final_norm")  # arguments that are attributes
ACTIVATIONS = {"gelu": "erf", "gelu_tanh": "tanh", "quick_gelu": "quick"}
POOLS = {"token": "class", "avg": "mean", "map": "attention"}  # timm's word -> ours
DINOV3_POOLS = {"token": "class", "avg": "normed_mean"}
# Hidden units of an MLP to its width, where an architecture has others than 4; a gate and a value are counted alike.
_RATIOS = {"vit_giant_patch14": 5.33334, "vit_so400m": 3.7362}


def read(architecture: str, args: Keys) -> tuple[str, dict[str, Any], Mapping[str, str]]:
    """Returns our name of an architecture, the attributes that arguments change, and how it may pool.

    Args:
        architecture: timm's name, which may end with a size (`…_patch16_384`).
        args: the arguments.

    Raises:
        InputError: an argument has a value that is not supported.
    """
    sized = re.fullmatch(r"(.*_patch\d+.*)_(\d+)", architecture)
    name = sized[1] if sized else architecture
    named = BACKBONES.get(name, BACKBONES["vit_base_patch16"])  # an unknown one is refused where it is built
    changes: dict[str, Any] = {ours: args.whole(theirs) for theirs, ours in ARGS.items() if theirs in args}
    changes |= _grid(args, architecture, int(sized[2]) if sized else 0, named)
    changes |= _mlp(args, name, named, changes)
    if "init_values" in args:
        changes["layer_scale"] = args.number("init_values")
    elif args.is_null("init_values"):
        changes["layer_scale"] = None
    if named.positions == "rotary":
        args.only(num_reg_tokens=named.registers, qkv_bias=named.qkv_bias != "none", use_fc_norm=False)
        return name, changes, DINOV3_POOLS
    changes |= _options(args, named)
    pools = {"token": "class"} if changes.get("class_token", named.class_token) else {}
    return name, changes, pools | {"avg": _mean(args, named), "map": "attention"}


def patch_of(architecture: str) -> int:
    """Returns the patch size that an architecture's name has in it."""
    size = re.search(r"_patch(\d+)", architecture)
    return int(size[1]) if size else 16


def mlp_ratio(name: str) -> float:
    """Returns timm's `mlp_ratio` of an architecture: the first layer's outputs to the width."""
    return next((ratio for start, ratio in _RATIOS.items() if name.startswith(start)), 4.0)


def _grid(args: Keys, architecture: str, size: int, named: Backbone) -> dict[str, Any]:
    """Returns patch size and grid, where a name's `size` or arguments decide them."""
    patch = args.square("patch_size", patch_of(architecture))
    changes: dict[str, Any] = {"patch_size": patch} if "patch_size" in args else {}
    if size or "img_size" in args or changes:
        size = args.square("img_size", size or named.grid[0] * named.patch_size)
        if size < patch:
            raise args.refusal("img_size", f"is less than the patch size of {patch}")
        changes["grid"] = [size // patch] * 2
    return changes


def _mlp(args: Keys, name: str, named: Backbone, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the MLP's width, of which a gated one's first layer has two in timm's VisionTransformer."""
    if "mlp_ratio" not in args and ("width" not in changes or named.mlp_width is None):
        return {}
    hidden = int(changes.get("width", named.width) * args.number("mlp_ratio", mlp_ratio(name)))
    if not named.gated:
        return {"mlp_width": hidden}
    return {"mlp_width": -(-hidden // 8) * 8 if named.positions == "rotary" else hidden // 2}


def _options(args: Keys, named: Backbone) -> dict[str, Any]:
    """Returns what options of timm's VisionTransformer change."""
    changes: dict[str, Any] = {name: args.flag(name, True) for name in FLAGS if name in args}
    if "act_layer" in args:
        changes["gelu"] = args.choice("act_layer", "gelu", ACTIVATIONS if not named.gated else {"silu": "erf"})
    if "qkv_bias" in args:
        changes["qkv_bias"] = "all" if args.flag("qkv_bias", True) else "none"
    if "reg_tokens" in args:
        changes["registers"] = args.whole("reg_tokens", least=0)
    if "no_embed_class" in args:
        changes["positions"] = "patches" if args.flag("no_embed_class", False) else "all"
    if changes.get("registers", named.registers) and changes.get("positions", named.positions) == "all":
        raise args.refusal("reg_tokens", "is not supported without no_embed_class: registers have no positions here")
    if "fc_norm" in args and named.pool in ("mean", "normed_mean"):
        changes["pool"] = _mean(args, named)
    args.only(
        **dict.fromkeys(("scale_attn_norm", "scale_mlp_norm", "dynamic_img_pad", "pool_include_prefix"), False),
        **{"proj_bias": True, "pos_embed": "learn", "norm_layer": "layernorm"},
    )
    return changes


def _mean(args: Keys, named: Backbone) -> str:
    """Returns our word for timm's `avg`, whose norm stands after the mean unless `fc_norm` is false."""
    return "mean" if args.flag("fc_norm", named.pool != "normed_mean") else "normed_mean"
