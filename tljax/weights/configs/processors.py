"""Reads transformers' `preprocessor_config.json`: how pictures are prepared."""

import math
from typing import Any

from tljax.data.preprocessing import INTERPOLATIONS, Preprocessing
from tljax.io import harmless_keys
from tljax.io.json_keys import Keys

FILTERS = dict(enumerate(INTERPOLATIONS))  # PIL's numbers, as transformers stores them

Origins = dict[str, str]  # what is said of a picture -> where that comes from

_HALF = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CLIP = {"image_mean": _CLIP_MEAN, "image_std": _CLIP_STD, "size": {"shortest_edge": 224}, "do_center_crop": True}
_SQUARE = {"height": 224, "width": 224}
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What each of transformers' processors does where its file is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {**_HALF, "size": _SQUARE, "resample": 2},
    "Beit": {**_HALF, "size": _SQUARE, "resample": 3},
    "DeiT": {**_HALF, "size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": True},
    "Bit": {**_CLIP, "resample": 3},
    "CLIP": {**_CLIP, "resample": 3},
    "EfficientNet": {**_HALF, "size": {"height": 346, "width": 346}, "resample": 0},
    "MobileNetV2": {**_HALF, "size": {"shortest_edge": 256}, "resample": 2, "do_center_crop": True},
    "ConvNext": {**_HALF, "size": {"shortest_edge": 384}, "resample": 3},
}
_DEFAULTS |= {
    "Siglip": {**_HALF, "size": _SQUARE, "resample": 3},
    "DINOv3ViT": {"image_mean": _IMAGENET[0], "image_std": _IMAGENET[1], "size": _SQUARE, "resample": 2},
}
_SHORTER_SIDE = (
    "Bit",
    "CLIP",
    "ConvNext",
    "MobileNetV2",
)  # for whom a plain number is that, and not a height and a width
_SUFFIXES = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
_KINDS = {f"{kind}{suffix}": kind for kind in _DEFAULTS for suffix in _SUFFIXES}
_OF_MODEL = {"dinov2": "Bit", "dinov2_with_registers": "Bit", "resnet": "ConvNext"}  # where a file names none
_OF_MODEL |= {"dinov3_vit": "DINOv3ViT", "siglip": "Siglip", "siglip_vision_model": "Siglip"}
_OF_MODEL |= {"clip": "CLIP", "clip_vision_model": "CLIP"}
_OF_MODEL |= {"efficientnet": "EfficientNet", "mobilenet_v2": "MobileNetV2"}
_OF_MODEL |= {"beit": "Beit"}
_OF_MODEL |= {"convnext": "ConvNext", "convnextv2": "ConvNext"}


def read(config: Any, model_type: str = "", folder: str = "") -> tuple[Preprocessing, Origins]:
    """Returns the preprocessing that a file describes, and where each part of it comes from.

    Args:
        config: what the file holds.
        model_type: of the network that it lies beside.
        folder: where it lies, as errors call it.

    Raises:
        InputError: a key is unknown, or has a value that cannot be followed here.
    """
    keys = Keys(config, "preprocessor_config.json", folder, harmless_keys.PROCESSOR)
    key = "image_processor_type" if "image_processor_type" in keys else "feature_extractor_type"
    kind = keys.choice(key, f"{_OF_MODEL.get(model_type, 'ViT')}ImageProcessor", _KINDS)
    keys.get("feature_extractor_type")  # which old files keep beside the new one
    defaults = _DEFAULTS[kind]
    keys.only(do_pad=False, rescale_offset=False, offset=False)
    size, fraction, resize = _cut(keys, kind, defaults)
    rescale = keys.number("rescale_factor", 1 / 255)
    rescale = rescale if keys.flag("do_rescale", True) else 1.0
    mean, std = _statistics(keys, defaults)
    if kind == "EfficientNet" and keys.flag("include_top", True):
        std = tuple(value**2 for value in std)  # it divides once more, where a classifier follows
    channels = "grey" if len(mean) == 1 else "rgba"[: len(mean)]
    if keys.flag("do_flip_channel_order", False):
        channels = {"rgb": "bgr", "rgba": "bgra"}.get(channels, channels)
    interpolation = keys.choice("resample", defaults["resample"], FILTERS)
    # Grey levels become x · rescale, and then (x · rescale − mean) / std.
    scale = 255 if math.isclose(rescale, 1 / 255, rel_tol=1e-9) else 1 / rescale
    mean, std = (tuple(scale * value for value in values) for values in (mean, std))
    rescale = 1 / 255 if scale == 255 else rescale
    keys.finish()
    images = Preprocessing(size, fraction, mean, std, channels, interpolation, resize, rescale)
    return images, _origins(keys, kind)


def _cut(keys: Keys, kind: str, defaults: dict[str, Any]) -> tuple[int, float, str]:
    """Returns size, crop fraction and way of resizing."""
    edge, squash = _side(keys, "size", defaults["size"], kind not in _SHORTER_SIDE)
    crops = keys.flag("do_center_crop", defaults.get("do_center_crop", False))
    size, resizes = _side(keys, "crop_size", _SQUARE, True)[0] if crops else edge, keys.flag("do_resize", True)
    crop_pct = keys.number("crop_pct", 224 / 256) if kind == "ConvNext" else None
    if not crops:
        keys.get("crop_size")  # of no effect
    if not resizes:
        if crops:
            raise keys.refusal("do_resize", "with do_center_crop is not supported: resize the pictures first")
        return edge, 1.0, "none"
    if kind == "ConvNext":
        if squash:
            raise keys.refusal("size", "is not supported, only the shortest_edge that this processor reads")
        keys.only(do_center_crop=False)
        # It crops unless the picture is large.
        return (edge, 1.0, "squash") if edge >= 384 else (edge, crop_pct, "crop")
    if size > edge:
        raise keys.refusal("crop_size", f"is more than the size of {edge}, and pads pictures: not supported")
    return size, size / edge, "squash" if squash else "crop"


def _side(keys: Keys, key: str, default: Any, to_square: bool) -> tuple[int, bool]:
    """Returns the pixels of a side, and whether it is that of a square rather than the shorter one."""
    value = keys.get(key, default)
    if not isinstance(value, dict):
        # A plain number is a square, but for those who call it the shorter side.
        return keys.square(key, default), isinstance(value, list) or keys.flag("default_to_square", to_square)
    sides = keys.inside(key, default=default)
    keys.get("default_to_square")
    if "longest_edge" in sides or "max_height" in sides or "max_width" in sides:
        why = "keeps a picture's shape, and networks here take squares: give shortest_edge, or height and width"
        raise keys.refusal(key, why)
    if "shortest_edge" in sides:
        side, square = sides.whole("shortest_edge"), False
    else:
        side, square = sides.whole("height"), True
        if sides.whole("width") != side:
            raise keys.refusal(key, "is no square, and networks here take squares")
    sides.finish()
    return side, square


def _statistics(keys: Keys, defaults: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std as the file gives them, or 0 and 1 where it does not normalize."""
    names = ("image_mean", "image_std")
    mean, std = keys.statistics(*names, [defaults[name] for name in names], one_for_all=True)
    if keys.flag("do_normalize", True):
        return mean, std
    return (0.0,) * len(mean), (1.0,) * len(mean)


def _origins(keys: Keys, kind: str) -> Origins:
    default = f"the default of transformers' {kind}ImageProcessor"
    crop, resize, rescale = ("crop_pct" if kind == "ConvNext" else "do_center_crop"), "size", "rescale_factor"
    if not keys.get("do_resize", True):
        resize = "do_resize"
    if not keys.get("do_rescale", True):
        rescale = "do_rescale"
    mean, std = ("image_mean", "image_std") if keys.get("do_normalize", True) else ("do_normalize",) * 2
    size = "crop_size" if keys.get("do_center_crop", _DEFAULTS[kind].get("do_center_crop")) else "size"
    places = {"size": size, "resize": resize, "crop": crop, "interpolation": "resample", "rescaling": rescale}
    return {what: keys.origin(key, default) for what, key in (places | {"mean": mean, "std": std}).items()}
