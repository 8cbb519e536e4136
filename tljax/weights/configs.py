"""Reads the `config.json` that timm and transformers put beside a checkpoint: network, preprocessing, class names."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tljax.errors import InputError
from tljax.preprocessing import Preprocessing
from tljax.weights import Pretrained
from tljax.weights.surgery import with_channels

Config = Mapping[str, Any]
FILTERS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as transformers stores them


def read(folder: Path, uri: str) -> Pretrained | None:
    """The row that a folder with a `config.json` describes, or None if there is none.

    Raises:
        InputError: the file is damaged, or describes a network that tljax does not have.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{uri}: config.json is damaged ({error})") from error
    if "architecture" in config:
        return _timm(config, uri)
    kind = config.get("model_type", "nothing")
    if kind not in _TRANSFORMERS:
        raise InputError(f"{uri}: config.json describes {kind!r}; known: timm's, {', '.join(_TRANSFORMERS)}")
    name, source, attributes = _TRANSFORMERS[kind]
    try:
        architecture = attributes(config)
    except KeyError as error:
        raise InputError(f"{uri}: config.json lacks {error}") from error
    labels = config.get("id2label") or {}
    classes = tuple(labels[key] for key in sorted(labels, key=int))
    named = not all(label == f"LABEL_{i}" for i, label in enumerate(classes))
    path = folder / "preprocessor_config.json"
    images = preprocessing(json.loads(path.read_text())) if path.is_file() else Preprocessing()
    images = with_channels(images, config.get("num_channels", 3))
    return Pretrained(uri, "", name, source, images, "unknown", "bicubic", architecture, classes if named else ())


def _vit(config: Config) -> dict[str, Any]:
    """transformers' `ViTConfig`."""
    _only(config, qkv_bias=True)
    side = config.get("image_size", 224) // config.get("patch_size", 16)
    return {
        "width": config.get("hidden_size", 768),
        "depth": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "mlp_width": config.get("intermediate_size", 3072),
        "patch_size": config.get("patch_size", 16),
        "grid": [side, side],
        "gelu": _gelu(config),
        "eps": config.get("layer_norm_eps", 1e-12),
    }


def _dinov2(config: Config) -> dict[str, Any]:
    """transformers' `Dinov2Config`; its classifier reads the class token and the mean of the patches."""
    _only(config, qkv_bias=True, use_swiglu_ffn=False)
    classifier = any("ForImageClassification" in name for name in config.get("architectures") or [])
    width = config.get("hidden_size", 768)
    return _vit({"patch_size": 14, "image_size": 518, "layer_norm_eps": 1e-6, **config}) | {
        "mlp_width": int(width * config.get("mlp_ratio", 4)),
        "layer_scale": config.get("layerscale_value", 1.0),
        "registers": config.get("num_register_tokens", 0),
        "pool": "class_mean" if classifier else "class",
    }


def _resnet(config: Config) -> dict[str, Any]:
    """transformers' `ResNetConfig`."""
    _only(config, hidden_act="relu", downsample_in_first_stage=False)
    kind = config.get("layer_type", "bottleneck")
    widths = config.get("hidden_sizes", [256, 512, 1024, 2048])
    return {
        "depths": list(config.get("depths", [3, 4, 6, 3])),
        "widths": [width // (4 if kind == "bottleneck" else 1) for width in widths],
        "stem_width": config.get("embedding_size", 64),
        "kind": kind,
        "stride_on": "1x1" if config.get("downsample_in_bottleneck") else "3x3",
    }


def _bert(config: Config) -> dict[str, Any]:
    """transformers' `BertConfig`."""
    return {
        "width": config.get("hidden_size", 768),
        "depth": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "mlp_width": config.get("intermediate_size", 3072),
        "vocabulary": config["vocab_size"],
        "positions": config.get("max_position_embeddings", 512),
        "token_types": config.get("type_vocab_size", 2),
        "gelu": _gelu(config),
        "eps": config.get("layer_norm_eps", 1e-12),
        "pool": config.get("tljax_pool", "cls_tanh"),
    }


def _roberta(config: Config) -> dict[str, Any]:
    """transformers' `RobertaConfig`."""
    pad = config.get("pad_token_id", 1)
    return _bert({"layer_norm_eps": 1e-5, **config}) | {"pad_id": pad, "pool": _pool(config, "cls_tanh")}


def _distilbert(config: Config) -> dict[str, Any]:
    """transformers' `DistilBertConfig`, which has words of its own."""
    names = {"dim": "width", "n_layers": "depth", "n_heads": "heads", "hidden_dim": "mlp_width"}
    defaults = {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}
    found = {ours: config.get(theirs, defaults[theirs]) for theirs, ours in names.items()}
    shared = _bert({**config, "hidden_act": config.get("activation", "gelu"), "type_vocab_size": 0})
    return shared | found | {"pool": _pool(config, "cls_relu")}


def _pool(config: Config, of_classifier: str) -> str:
    """Only a classifier has a dense layer after the blocks. How else to pool, transformers has no word for."""
    classifies = any("ForSequenceClassification" in name for name in config.get("architectures") or [])
    return of_classifier if classifies else config.get("tljax_pool", "cls")


_TRANSFORMERS: dict[str, tuple[str, str, Callable[[Config], dict[str, Any]]]] = {
    "vit": ("vit_base_patch16", "hf", _vit),
    "dinov2": ("vit_base_patch14_dinov2", "hf", _dinov2),
    "dinov2_with_registers": (
        "vit_base_patch14_dinov2",
        "hf",
        lambda config: _dinov2({"num_register_tokens": 4, **config}),
    ),
    "resnet": ("resnet50", "hf", _resnet),
    "bert": ("bert_base", "bert", _bert),
    "roberta": ("roberta_base", "roberta", _roberta),
    "distilbert": ("distilbert_base", "distilbert", _distilbert),
}


def _only(config: Config, **wanted: Any) -> None:
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise InputError(f"config.json: {key}={config[key]!r} is not supported, only {value!r}")


def _gelu(config: Config) -> str:
    kinds = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
    activation = config.get("hidden_act", "gelu")
    if activation not in kinds:
        raise InputError(f"config.json: hidden_act={activation!r} is not supported, only {', '.join(kinds)}")
    return kinds[activation]


def preprocessing(config: Config) -> Preprocessing:
    """transformers' `preprocessor_config.json`: grey levels there are 0 to 1."""
    size, resized = config.get("size", 224), config.get("size", 224)
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    # A plain number is a height and a width, but for those who call it the shortest edge.
    squash = not kind.startswith(("ConvNext", "Bit")) if isinstance(resized, int) else "height" in resized
    if config.get("do_center_crop"):
        size = config.get("crop_size", 224)
    fraction = _side(size) / _side(resized)
    if kind.startswith("ConvNext"):  # which crops unless the picture is large
        squash = _side(size) >= 384
        fraction = 1.0 if squash else config.get("crop_pct") or 224 / 256
    mean, std = (tuple(255 * value for value in config.get(name, (0.5,) * 3)) for name in ("image_mean", "image_std"))
    return Preprocessing(
        size=_side(size),
        crop_fraction=fraction,
        mean=mean,
        std=std,
        channels="grey" if len(mean) == 1 else "rgba"[: len(mean)],
        interpolation=FILTERS.get(config.get("resample", 2), "bilinear"),
        resize="squash" if squash else "crop",
    )


def _side(size: int | Mapping[str, int]) -> int:
    return size if isinstance(size, int) else size.get("shortest_edge") or size["height"]


def _timm(config: Config, uri: str) -> Pretrained:
    """timm's hub `config.json`: an architecture's name, arguments that change it, and `pretrained_cfg`."""
    cfg, args = config.get("pretrained_cfg", {}), config.get("model_args", {})
    mode = cfg.get("crop_mode") or "center"
    if mode not in CROP_MODES:
        raise InputError(f"{uri}: config.json: crop_mode={mode!r} is not supported, only {', '.join(CROP_MODES)}")
    mean = tuple(255 * value for value in cfg.get("mean", (0.485, 0.456, 0.406)))
    images = Preprocessing(
        size=cfg.get("input_size", (3, 224, 224))[-1],
        crop_fraction=cfg.get("crop_pct", 0.875),
        mean=mean,
        std=tuple(255 * value for value in cfg.get("std", (0.229, 0.224, 0.225))),
        channels="grey" if len(mean) == 1 else "rgba"[: len(mean)],
        interpolation=cfg.get("interpolation", "bicubic"),
        resize=CROP_MODES[mode],
    )
    images = with_channels(images, args.get("in_chans", 3))
    name, grid = _named(config["architecture"])
    architecture = grid | _from_timm_args(args, uri)
    if config.get("global_pool") == "avg" and config["architecture"].startswith(("vit", "deit")):
        architecture["pool"] = "mean"
    classes = tuple(config.get("label_names", ()))
    licence = cfg.get("license") or "unknown"
    return Pretrained(uri, "", name, "timm", images, licence, architecture=architecture, classes=classes)


def _named(architecture: str) -> tuple[str, dict[str, Any]]:
    """Our name of a timm architecture, and the grid of patches where the name ends with a size: `…_patch16_384`."""
    sized = re.fullmatch(r"(.*_patch(\d+).*)_(\d+)", architecture)
    if not sized:
        return architecture, {}
    return sized[1], {"grid": [int(sized[3]) // int(sized[2])] * 2}


CROP_MODES = {"center": "crop", "squash": "squash"}  # timm's word -> ours
# timm's argument -> our attribute, where the values are the same.
TIMM_ARGS = {
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "patch_size": "patch_size",
    "init_values": "layer_scale",
    "reg_tokens": "registers",
    "layers": "depths",
    "channels": "widths",
}


def _from_timm_args(args: Config, uri: str) -> dict[str, Any]:
    found = {ours: args[theirs] for theirs, ours in TIMM_ARGS.items() if theirs in args}
    special = {"img_size", "in_chans", "mlp_ratio", "no_embed_class", "num_classes", "global_pool", "stem_width"}
    for key in args:
        if key not in TIMM_ARGS and key not in special:
            raise InputError(f"{uri}: config.json: model_args.{key}={args[key]!r} is not supported")
    if "img_size" in args:
        found["grid"] = [args["img_size"] // args.get("patch_size", 16)] * 2
    if "mlp_ratio" in args:
        found["mlp_width"] = round(args["embed_dim"] * args["mlp_ratio"])
    if "stem_width" in args:  # of a deep stem, which ends with twice as many channels
        found["stem_width"] = 2 * args["stem_width"]
    if args.get("no_embed_class"):
        found["positions"] = "patches"
    if args.get("global_pool") == "avg":
        found["pool"] = "mean"
    return found
