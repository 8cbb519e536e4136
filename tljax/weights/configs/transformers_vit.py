"""Reads transformers' `config.json` of Vision Transformers, and what other families' share with theirs."""

import math
from collections.abc import Callable
from typing import Any

from tljax.io import harmless_keys
from tljax.io.json_keys import Keys
from tljax.weights.configs.encoder_sizes import GELU, sizes

_TOWER_GELU = GELU | {"quick_gelu": "quick"}


def _shared(keys: Keys, patch_size: int, image_size: int, eps: float, **defaults: int) -> dict[str, Any]:
    patch, side = keys.square("patch_size", patch_size), keys.square("image_size", image_size)
    if side < patch:
        raise keys.refusal("image_size", f"is less than the patch size of {patch}")
    keys.only(qkv_bias=True)
    shared = {"patch_size": patch, "grid": [side // patch] * 2, "eps": keys.number("layer_norm_eps", eps)}
    return sizes(keys, **defaults) | shared


def _gelu(keys: Keys) -> dict[str, Any]:
    return {"gelu": keys.choice("hidden_act", "gelu", GELU)}


def vit(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `ViTConfig`."""
    return _shared(keys, 16, 224, 1e-12) | _gelu(keys) | {"mlp_width": keys.whole("intermediate_size", 3072)}


def dinov2(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `Dinov2Config`; a classifier reads class token and mean of patches."""
    classifies = any("ForImageClassification" in name for name in keys.texts("architectures"))
    shared, gated = _shared(keys, 14, 518, 1e-6) | _gelu(keys), keys.flag("use_swiglu_ffn", False)
    hidden = math.floor(shared["width"] * keys.number("mlp_ratio", 4))
    return shared | {
        "mlp_width": gated_width(hidden) if gated else hidden,
        "gated": gated,
        "layer_scale": keys.number("layerscale_value", 1.0, least=-1.0),
        "pool": "class_mean" if classifies else "class",
    }


def gated_width(hidden: int) -> int:
    """Returns the width of DINOv2's SwiGLU in place of an MLP of `hidden` units: two thirds, a multiple of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def dinov2_with_registers(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `Dinov2WithRegistersConfig`."""
    return dinov2(keys) | {"registers": keys.whole("num_register_tokens", 4, least=0)}


def dinov3(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `DINOv3ViTConfig`."""
    biases = tuple(keys.flag(f"{name}_bias", name != "key") for name in ("query", "key", "value"))
    known = {(True, True, True): "all", (True, False, True): "query_value", (False, False, False): "none"}
    if biases not in known:
        raise keys.refusal(
            "query_bias", "is not supported with such key_bias and value_bias: only of all, none, or q and v"
        )
    keys.only(proj_bias=True, mlp_bias=True, rope_theta=100.0)
    gated = keys.flag("use_gated_mlp", False)
    activation = {"gelu": keys.choice("hidden_act", "silu", {"silu": "erf"})} if gated else _gelu(keys)
    return {
        **_shared(keys, 16, 224, 1e-5, width=384, heads=6),
        **activation,
        "mlp_width": keys.whole("intermediate_size", 1536),
        "gated": gated,
        "registers": keys.whole("num_register_tokens", 0, least=0),
        "layer_scale": keys.number("layerscale_value", 1.0, least=-1.0),
        "qkv_bias": known[biases],
        "pool": "class",
    }


def siglip_vision(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `SiglipVisionConfig`."""
    pool = "attention" if keys.flag("vision_use_head", True) else "normed_mean"
    return _tower(keys, 16, "gelu_pytorch_tanh", 1e-6) | {"pool": pool}


def siglip(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `SiglipConfig`; its classifier reads the mean of normalized patches."""
    classifies = any("ForImageClassification" in name for name in keys.texts("architectures"))
    return _inside(keys, siglip_vision) | ({"pool": "normed_mean"} if classifies else {})


def clip_vision(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `CLIPVisionConfig`."""
    return _tower(keys, 32, "quick_gelu", 1e-5)


def clip(keys: Keys) -> dict[str, Any]:
    """Returns attributes from transformers' `CLIPConfig`."""
    if any("ForImageClassification" in name for name in keys.texts("architectures")):
        raise keys.refusal("architectures", "is not supported: its classifier reads patches that are not normalized")
    return _inside(keys, clip_vision)


def _tower(keys: Keys, patch_size: int, gelu: str, eps: float) -> dict[str, Any]:
    shared = _shared(keys, patch_size, 224, eps)
    hidden = keys.whole("intermediate_size", 3072)
    return shared | {"gelu": keys.choice("hidden_act", gelu, _TOWER_GELU), "mlp_width": hidden}


def _inside(keys: Keys, attributes: Callable[[Keys], dict[str, Any]]) -> dict[str, Any]:
    """Returns attributes of the image tower that a config of two describes."""
    keys.only(vision_config_dict=None)
    tower = keys.inside("vision_config", harmless_keys.TRANSFORMERS)
    values = attributes(tower)
    tower.only(num_channels=3, is_decoder=False, is_encoder_decoder=False, add_cross_attention=False, pruned_heads={})
    tower.texts("architectures"), tower.get("id2label"), tower.get("problem_type")  # the whole network's are outside
    tower.finish()
    return values
