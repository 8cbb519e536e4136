"""Reads timm's `config.json`: an architecture's name, arguments that change it, and how it was pretrained."""

from collections.abc import Mapping
from typing import Any

from tljax.data.preprocessing import INTERPOLATIONS, Preprocessing
from tljax.io import harmless_keys
from tljax.io.json_keys import Keys
from tljax.weights.adapt import with_channels
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import relative, timm_vit

_FAMILIES = ("vit", "deit", "resnet", "efficientnet", "tf_efficientnet", "mobilenetv2")  # BiT's are `resnetv2`
_FAMILIES += ("swin_", "swinv2_tiny", "swinv2_small", "swinv2_base")
_FAMILIES += ("beit_", "beitv2_", "eva_", "eva02_")
_FAMILIES += ("convnext", "resnext", "wide_resnet", "seresne", "ecaresnet")
_FAMILIES += ("mobilenetv3", "tf_mobilenetv3", "regnet")
CROP_MODES = {"center": "crop", "squash": "squash"}  # timm's word -> ours
RESNET_POOLS = {"avg": "mean", "max": "max", "avgmax": "avgmax"}
# timm's argument -> our attribute, where the values are the same.
RESNET_ARGS = {"layers": "depths", "channels": "widths"}
CONVNEXT_ARGS = {"depths": "depths", "dims": "widths"}
REGNET_ARGS = {"depth": "depth", "w0": "width_start", "wa": "width_slope", "wm": "width_factor"}
REGNET_ARGS |= {"group_size": "group_size", "stem_width": "stem_width"}
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation


def read(config: Mapping[str, Any], uri: str) -> Pretrained:
    """Returns the row that a folder with such a `config.json` describes.

    Raises:
        InputError: a key is unknown, or has a value that is not supported.
    """
    flat = "pretrained_cfg" not in config  # as older files say it
    keys = Keys(config, "config.json", uri, harmless_keys.TIMM | (harmless_keys.TIMM_CFG if flat else {}))
    architecture = keys.text("architecture")
    args = keys.inside("model_args", harmless_keys.TIMM_ARGS)
    cfg = keys if flat else keys.inside("pretrained_cfg", harmless_keys.TIMM_CFG)
    keys.only(do_pooling=True)
    if not architecture.startswith(_FAMILIES):
        raise keys.refusal("architecture", f"is none of timm's families that are here: {', '.join(_FAMILIES)}")
    name, attributes, pools = _network(architecture, args)
    pool, pool_origin = _pool(keys, args, architecture, pools)
    attributes |= {"pool": pool} if pool else {}
    if pool in ("class", "attention"):  # before which tokens are normalized
        args.only(fc_norm=False)
    size = (
        attributes["grid"][0] * attributes.get("patch_size", timm_vit.patch_of(architecture))
        if "grid" in attributes
        else 224
    )
    images, origins = _images(cfg, size)
    images = with_channels(images, args.whole("in_chans", 3))
    classes = keys.texts("label_names") or cfg.texts("label_names") or cfg.texts("labels")
    licence = cfg.text("license", "unknown")
    for part in (args, cfg, keys):
        part.finish()
    return Pretrained(
        *(uri, "", name, "timm", images, licence),
        architecture=attributes,
        classes=tuple(classes),
        origins=origins | {"pool": pool_origin},
    )


def _network(architecture: str, args: Keys) -> tuple[str, dict[str, Any], Mapping[str, str]]:
    """Returns our name of an architecture, the attributes that its arguments change, and how its family may pool."""
    if architecture.startswith(("vit", "deit", "eva_large")):  # the last is a plain one, but for its training
        return timm_vit.read(architecture, args)
    if architecture.startswith("swin"):
        return *relative.swin_from_timm(architecture, args), relative.SWIN_POOLS
    if architecture.startswith("beit"):
        return *relative.beit_from_timm(architecture, args), relative.PATCHES_POOLS
    if architecture.startswith("eva"):
        return *relative.eva_from_timm(architecture, args), relative.PATCHES_POOLS
    if architecture.startswith("convnext"):
        return architecture, _convnext(args), RESNET_POOLS
    if architecture.startswith("regnet"):
        return architecture, _regnet(args), RESNET_POOLS
    if "efficientnet" in architecture or "mobilenet" in architecture:
        return architecture, _efficientnet(args), RESNET_POOLS
    return architecture, _resnet(args), {"avg": "mean"} if architecture.startswith("resnetv2") else RESNET_POOLS


def _images(cfg: Keys, size: int) -> tuple[Preprocessing, dict[str, str]]:
    """Returns the preprocessing that `pretrained_cfg` describes, with timm's defaults, and each part's origin."""
    cfg.only(label_offset=0, state_dict=None)
    if cfg.get("custom_load") == "hf":
        raise cfg.refusal("custom_load", "is not supported: it is loaded by code of timm's")
    if "input_size" in cfg:
        sides = cfg.get("input_size")
        if not isinstance(sides, list | tuple) or len(sides) != 3 or not all(type(n) is int and n > 0 for n in sides):
            raise cfg.refusal("input_size", "must be three whole numbers: channels, height and width")
        if sides[1] != sides[2]:
            raise cfg.refusal("input_size", "is no square, and networks here take squares")
        size = sides[1]
    crop = cfg.number("crop_pct", 0.875)
    if crop > 1:
        raise cfg.refusal("crop_pct", "is above 1, and pads pictures: not supported")
    mean, std = (tuple(255 * value for value in values) for values in cfg.statistics("mean", "std", _IMAGENET))
    images = Preprocessing(
        size=size,
        crop_fraction=crop,
        mean=mean,
        std=std,
        channels="grey" if len(mean) == 1 else "rgba"[: len(mean)],
        interpolation=cfg.choice("interpolation", "bicubic", {name: name for name in INTERPOLATIONS}),
        resize=cfg.choice("crop_mode", "center", CROP_MODES),
    )
    assumed = "assumed, as config.json says nothing: "
    places = {"resize": "crop_mode", "crop": "crop_pct", "interpolation": "interpolation", "mean": "mean", "std": "std"}
    origins = {what: cfg.origin(key, f"{assumed}timm's default") for what, key in places.items()}
    origins |= {"size": cfg.origin("input_size", f"{assumed}the network's own image size"), "rescaling": "timm's way"}
    return images, origins


def _pool(keys: Keys, args: Keys, architecture: str, known: Mapping[str, str]) -> tuple[str, str]:
    """Returns our word for how it pools, or none for what the architecture does; and where that comes from.

    What stands outside `model_args` timm writes, of the model that it saved, and does not read.
    """
    keys.get("global_pool")
    place = args if "global_pool" in args else keys
    if "global_pool" not in place:
        return "", f"the default of timm's {architecture}"
    origin = place.origin("global_pool", "")
    pool = place.choice("global_pool", "", known)
    # A distilled network has the mean of its two tokens' heads.
    return ("" if "distilled" in architecture and pool == "class" else pool), origin


def _resnet(args: Keys) -> dict[str, Any]:
    """Returns what arguments of a ResNet, or of a BiT, change."""
    changes: dict[str, Any] = {ours: args.wholes(theirs) for theirs, ours in RESNET_ARGS.items() if theirs in args}
    if "stem_width" in args:  # of a deep stem, which ends with twice as many channels
        changes["stem_width"] = 2 * args.whole("stem_width")
    changes |= {name: args.whole(name) for name in ("cardinality", "base_width") if name in args}
    args.only(output_stride=32, act_layer="relu", replace_stem_pool=False)
    args.only(block_reduce_first=1, down_kernel_size=1, norm_layer="batchnorm2d", aa_layer="")
    return changes


def _efficientnet(args: Keys) -> dict[str, Any]:
    """Returns what arguments of an EfficientNet change."""
    changes = {"eps": args.number("bn_eps")} if "bn_eps" in args else {}
    args.only(output_stride=32, fix_stem=False, bn_momentum=None, group_size=None)
    return changes


def _convnext(args: Keys) -> dict[str, Any]:
    """Returns what arguments of a ConvNeXt change."""
    changes: dict[str, Any] = {ours: args.wholes(theirs) for theirs, ours in CONVNEXT_ARGS.items() if theirs in args}
    if "ls_init_value" in args:
        changes["layer_scale"] = args.number("ls_init_value")
    elif args.is_null("ls_init_value"):
        changes["layer_scale"] = None
    for theirs, ours in (("use_grn", "response_norm"), ("conv_mlp", "conv_mlp")):
        if theirs in args:
            changes[ours] = args.flag(theirs, False)
    args.only(output_stride=32, kernel_sizes=7, patch_size=4, stem_type="patch", conv_bias=True, act_layer="gelu")
    args.only(head_norm_first=False, head_hidden_size=None, norm_layer=None, norm_eps=1e-6)
    return changes


def _regnet(args: Keys) -> dict[str, Any]:
    """Returns what arguments of a RegNet change."""
    changes: dict[str, Any] = {}
    for theirs, ours in REGNET_ARGS.items():
        if theirs in args:
            changes[ours] = args.number(theirs) if theirs in ("wa", "wm") else args.whole(theirs)
    if "se_ratio" in args:
        changes["squeeze"] = args.number("se_ratio") if args.get("se_ratio") else 0.0
    args.only(output_stride=32, bottle_ratio=1.0, group_min_ratio=0.0, downsample="conv1x1", linear_out=False)
    args.only(preact=False, num_features=0, act_layer="relu", norm_layer="batchnorm")
    return changes
