"""The backbones that come with tljax, by name (timm's, without an image size, where timm has it), and users' own."""

from collections.abc import Mapping
from typing import Any

from tljax.config.references import is_reference, resolve_reference, source_hash
from tljax.errors import InputError
from tljax.models.base import Backbone, attributes
from tljax.models.convolution import BATCH_NORM_MODES
from tljax.models.text.albert import Albert
from tljax.models.text.bert import Bert
from tljax.models.text.deberta import Deberta
from tljax.models.text.electra import Electra
from tljax.models.text.modernbert import ModernBert
from tljax.models.text.mpnet import MPNet
from tljax.models.vision.beit import BEiT
from tljax.models.vision.bit import BiT
from tljax.models.vision.convnext import ConvNeXt
from tljax.models.vision.efficientnet import EfficientNet, scaled
from tljax.models.vision.eva import EVA
from tljax.models.vision.mobilenetv3 import MobileNetV3
from tljax.models.vision.mobilenetv3 import scaled as scaled_v3
from tljax.models.vision.regnet import RegNet
from tljax.models.vision.resnet import ResNet
from tljax.models.vision.swin import Swin
from tljax.models.vision.vit import ViT

__all__ = ["BACKBONES", "BATCH_NORM_MODES", "Backbone", "attributes", "build"]

_HALF = (32, 64, 128, 256)
_TINY = {"width": 192, "heads": 3}
_BASE = {"width": 768, "heads": 12}
_LARGE = {"width": 1024, "depth": 24, "heads": 16}
_DINOV2 = {"patch_size": 14, "grid": (37, 37), "layer_scale": 1e-5}
_REG4 = {**_DINOV2, "registers": 4, "positions": "patches"}
_DINOV3 = {"grid": (16, 16), "layer_scale": 1e-5, "registers": 4, "positions": "rotary", "eps": 1e-5}
_DINOV3 |= {"pool": "normed_mean", "qkv_bias": "none"}
_GIANT = {"width": 1536, "depth": 40, "heads": 24, "mlp_width": 4096, "gated": True}
_HUGE_PLUS = {"width": 1280, "depth": 32, "heads": 20, "gated": True}
_SIGLIP = {"class_token": False, "pool": "attention"}
_SO400M = {"width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304, "patch_size": 14, **_SIGLIP}
_CLIP = {"pre_norm": True, "eps": 1e-5}
_QUICK = {**_CLIP, "gelu": "quick"}
_PATCH14, _PATCH32 = {"patch_size": 14, "grid": (16, 16)}, {"patch_size": 32, "grid": (7, 7)}
_HUGE = {"width": 1280, "depth": 32, "heads": 16}
_GAP = {"class_token": False, "pool": "mean"}
_REG4_GAP = {**_GAP, "grid": (16, 16), "registers": 4, "positions": "patches"}
_DISTILLED = {"distilled": True, "pool": "distilled"}
_DEIT3 = {"layer_scale": 1e-6, "positions": "patches"}
_D = {"stem": "deep", "avg_down": True}


_101 = (3, 4, 23, 3)  # depths
_RESNEXTS = {
    "resnext50_32x4d": ResNet(cardinality=32, base_width=4),
    "resnext50d_32x4d": ResNet(cardinality=32, base_width=4, **_D),
    "resnext101_32x4d": ResNet(depths=_101, cardinality=32, base_width=4),
    "resnext101_32x8d": ResNet(depths=_101, cardinality=32, base_width=8),
    "resnext101_64x4d": ResNet(depths=_101, cardinality=64, base_width=4),
    "seresnext50_32x4d": ResNet(cardinality=32, base_width=4, attention="se"),
    "seresnext101_32x4d": ResNet(depths=_101, cardinality=32, base_width=4, attention="se"),
    "wide_resnet50_2": ResNet(base_width=128),
    "wide_resnet101_2": ResNet(depths=_101, base_width=128),
}


def _bit(width: int, **depths: tuple[int, ...]) -> BiT:
    """A BiT that is `width` times as wide."""
    return BiT(widths=tuple(width * n for n in (64, 128, 256, 512)), stem_width=64 * width, **depths)


_TF = {"padding": "same", "eps": 1e-3}
# Width and depth of B0 to B7, and of Lite0 to Lite4.
_COMPOUND = ((1, 1), (1, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2, 3.1))


def _efficientnet_v2(*depths: int, widths: tuple[int, ...], **rest: Any) -> EfficientNet:
    """An EfficientNetV2: three stages without a depthwise convolution, and then three or four with."""
    return EfficientNet(
        operators=("conv", "fused", "fused", *("mbconv",) * (len(depths) - 3)),
        depths=depths,
        widths=widths,
        sizes=(3,) * len(depths),
        strides=(1, 2, 2, 2, 1, 2, 1)[: len(depths)],
        expansions=(1, 4, 4, 4, 6, 6, 6)[: len(depths)],
        **rest,
    )


_B0, _LITE0 = EfficientNet(), EfficientNet(squeeze=0, activation="relu6")
_V2_B0 = _efficientnet_v2(1, 2, 2, 3, 5, 8, widths=(16, 32, 48, 96, 112, 192))
_V2_S = _efficientnet_v2(2, 4, 4, 6, 9, 15, widths=(24, 48, 64, 128, 160, 256), stem_width=24)
_V2_M = _efficientnet_v2(3, 5, 5, 7, 14, 18, 5, widths=(24, 48, 80, 160, 176, 304, 512), stem_width=24)
_V2_L = _efficientnet_v2(4, 7, 7, 10, 19, 25, 7, widths=(32, 64, 96, 192, 224, 384, 640))
_EFFICIENTNETS: dict[str, EfficientNet] = {
    **{f"efficientnet_b{i}": scaled(_B0, *scale) for i, scale in enumerate(_COMPOUND)},
    **{f"efficientnet_lite{i}": scaled(_LITE0, *_COMPOUND[i], fixed_ends=True) for i in range(5)},
    # These take the nearest width, however much less it is.
    **{f"efficientnetv2_b{i}": scaled(_V2_B0, *_COMPOUND[i], least=0) for i in range(4)},
    "efficientnetv2_s": _V2_S,
    "efficientnetv2_m": _V2_M,
    "efficientnetv2_l": _V2_L,
}
_MOBILENETV2 = EfficientNet(
    depths=(1, 2, 3, 4, 3, 3, 1),
    widths=(16, 24, 32, 64, 96, 160, 320),
    sizes=(3,) * 7,
    strides=(1, 2, 2, 2, 1, 2, 1),
    squeeze=0,
    activation="relu6",
)
# Ross Wightman's, of before the paper's own code was out.
_EFFICIENTNETS_RW = {
    "efficientnetv2_rw_t": scaled(_V2_S, 0.8, 0.9),
    "efficientnetv2_rw_s": _V2_S.clone(
        operators=("fused", *_V2_S.operators[1:]), widths=(*_V2_S.widths[:-1], 272), head_width=1792
    ),
}
_MOBILENETV3_SMALL = MobileNetV3(
    depths=(1, 2, 3, 2, 3),
    widths=(16, 24, 40, 48, 96),
    sizes=(3, 3, 5, 5, 5),
    strides=(2, 2, 2, 1, 2),
    expansions=(1, 4.5, 3.67, 4, 6, 6, 3, 3, 6, 6, 6),
    squeezes=(0, 2, 3, 4),
    relu_stages=2,
    last_width=576,
    head_width=1024,
)
_MOBILENETV3S = {
    "mobilenetv3_small_050": scaled_v3(_MOBILENETV3_SMALL, 0.5),
    "mobilenetv3_small_075": scaled_v3(_MOBILENETV3_SMALL, 0.75),
    "mobilenetv3_small_100": _MOBILENETV3_SMALL,
    "mobilenetv3_large_075": scaled_v3(MobileNetV3(), 0.75),
    "mobilenetv3_large_100": MobileNetV3(),
}


def _regnets(name: str, squeeze: float, *lines: tuple[str, int, float, float, int, int]) -> dict[str, RegNet]:
    """RegNets by size, from rows of size, w_0, w_a, w_m, group size and depth."""
    return {f"{name}_{size}": RegNet(depth, *line, squeeze) for size, *line, depth in lines}


_REGNETS = _regnets(
    *("regnetx", 0.0),
    ("002", 24, 36.44, 2.49, 8, 13),
    ("004", 24, 24.48, 2.54, 16, 22),
    ("008", 56, 35.73, 2.28, 16, 16),
    ("016", 80, 34.01, 2.25, 24, 18),
    ("032", 88, 26.31, 2.25, 48, 25),
    ("080", 80, 49.56, 2.88, 120, 23),
) | _regnets(
    *("regnety", 0.25),
    ("002", 24, 36.44, 2.49, 8, 13),
    ("004", 48, 27.89, 2.09, 8, 16),
    ("006", 48, 32.54, 2.32, 16, 15),
    ("008", 56, 38.84, 2.4, 16, 14),
    ("016", 48, 20.71, 2.65, 24, 27),
    ("032", 80, 42.63, 2.66, 24, 21),
    ("040", 96, 31.41, 2.24, 64, 22),
    ("064", 112, 33.22, 2.27, 72, 25),
    ("080", 192, 76.82, 2.19, 56, 17),
    ("120", 168, 73.36, 2.37, 112, 19),
    ("160", 200, 106.23, 2.48, 112, 18),
    ("320", 232, 115.89, 2.53, 232, 20),
)


def _convnext(depth: int, width: int, **rest: Any) -> ConvNeXt:
    """A ConvNeXt with `depth` blocks in its third stage and few in the others, each twice as wide as the one before."""
    ends = 3 if depth > 8 else 2
    widths = tuple(width * 2**stage for stage in range(4))
    return ConvNeXt(depths=(ends, ends, depth, ends), widths=widths, **rest)


_CONVNEXTS = {
    "atto": _convnext(6, 40, conv_mlp=True),
    "femto": _convnext(6, 48, conv_mlp=True),
    "pico": _convnext(6, 64, conv_mlp=True),
    "nano": _convnext(8, 80, conv_mlp=True),
    "tiny": _convnext(9, 96),
    "small": _convnext(27, 96),
    "base": _convnext(27, 128),
    "large": _convnext(27, 192),
}
_V2 = {"layer_scale": None, "response_norm": True}

_SWIN_S = {"depths": (2, 2, 18, 2)}
_SWIN_B = {**_SWIN_S, "width": 128, "heads": (4, 8, 16, 32)}
_SWIN_L = {**_SWIN_S, "width": 192, "heads": (6, 12, 24, 48)}
_SIZE_384 = {"window": 12, "grid": (96, 96)}
_SWIN_V2 = {"version": 2, "window": 8, "grid": (64, 64)}
_SWINS: dict[str, Backbone] = {
    "swin_tiny_patch4_window7": Swin(),
    "swin_small_patch4_window7": Swin(**_SWIN_S),
    "swin_base_patch4_window7": Swin(**_SWIN_B),
    "swin_base_patch4_window12": Swin(**_SWIN_B, **_SIZE_384),
    "swin_large_patch4_window7": Swin(**_SWIN_L),
    "swin_large_patch4_window12": Swin(**_SWIN_L, **_SIZE_384),
    "swinv2_tiny_window8": Swin(**_SWIN_V2),
    "swinv2_small_window8": Swin(**_SWIN_S, **_SWIN_V2),
    "swinv2_base_window8": Swin(**_SWIN_B, **_SWIN_V2),
    "swinv2_base_window16": Swin(**_SWIN_B, **{**_SWIN_V2, "window": 16}),
}
_EVA = {"rotary": False, "gated": False, "mlp_norm": False}


_ROBERTA = Bert(vocabulary=50265, positions=514, token_types=1, pad_id=1, eps=1e-5, pool="cls")
_XLM_R = _ROBERTA.clone(vocabulary=250002)
_SENTENCE = {"pool": "mean", "normalize": True}  # embeddings of sentences, to be compared by their cosine

BACKBONES: dict[str, Backbone] = {
    "resnet18": ResNet(depths=(2, 2, 2, 2), kind="basic"),
    "resnet34": ResNet(kind="basic"),
    "resnet50": ResNet(),
    "resnet50_v1": ResNet(stride_on="1x1"),
    "resnet50_half_v1": ResNet(widths=_HALF, stride_on="1x1"),
    "resnet50_half_v1_folded": ResNet(widths=_HALF, stride_on="1x1", norm="folded", stem_pool_padding=(0, 1)),
    "resnet101": ResNet(depths=(3, 4, 23, 3)),
    "resnet152": ResNet(depths=(3, 8, 36, 3)),
    "resnet18d": ResNet(depths=(2, 2, 2, 2), kind="basic", **_D),
    "resnet34d": ResNet(kind="basic", **_D),
    "resnet50d": ResNet(**_D),
    "resnet101d": ResNet(depths=(3, 4, 23, 3), **_D),
    "resnet152d": ResNet(depths=(3, 8, 36, 3), **_D),
    **_RESNEXTS,
    "seresnet50": ResNet(attention="se"),
    "ecaresnet50d": ResNet(attention="eca", **_D),
    "ecaresnet101d": ResNet(depths=(3, 4, 23, 3), attention="eca", **_D),
    "ecaresnetlight": ResNet(depths=(1, 1, 11, 3), attention="eca", avg_down=True),
    "resnetv2_50x1_bit": _bit(1),
    "resnetv2_50x3_bit": _bit(3),
    "resnetv2_101x1_bit": _bit(1, depths=(3, 4, 23, 3)),
    "resnetv2_101x3_bit": _bit(3, depths=(3, 4, 23, 3)),
    "resnetv2_152x2_bit": _bit(2, depths=(3, 8, 36, 3)),
    "resnetv2_152x4_bit": _bit(4, depths=(3, 8, 36, 3)),
    **_EFFICIENTNETS,
    **{f"tf_{name}": module.clone(**_TF) for name, module in _EFFICIENTNETS.items()},  # as TensorFlow trained them
    **_EFFICIENTNETS_RW,
    "mobilenetv2_050": scaled(_MOBILENETV2, 0.5, 1).clone(head_width=1280),
    "mobilenetv2_100": _MOBILENETV2,
    "mobilenetv2_140": scaled(_MOBILENETV2, 1.4, 1),
    **_MOBILENETV3S,
    **{f"tf_{name}": module.clone(**_TF) for name, module in _MOBILENETV3S.items() if "050" not in name},
    **_REGNETS,
    **{f"convnext_{size}": module for size, module in _CONVNEXTS.items()},
    "convnext_xlarge": _convnext(27, 256),
    **{f"convnextv2_{size}": module.clone(**_V2) for size, module in _CONVNEXTS.items()},
    "convnextv2_huge": _convnext(27, 352, **_V2),
    "vit_tiny_patch16": ViT(**_TINY),
    "vit_small_patch16": ViT(),
    "vit_small_patch32": ViT(patch_size=32, grid=(7, 7)),
    "vit_small_patch8": ViT(patch_size=8, grid=(28, 28)),
    "vit_base_patch8": ViT(**_BASE, patch_size=8, grid=(28, 28)),
    "vit_base_patch16": ViT(**_BASE),
    "vit_base_patch32": ViT(**_BASE, patch_size=32, grid=(7, 7)),
    "vit_large_patch14": ViT(**_LARGE, patch_size=14, grid=(16, 16)),
    "vit_large_patch16": ViT(**_LARGE),
    "vit_large_patch32": ViT(**_LARGE, patch_size=32, grid=(7, 7)),
    "vit_small_patch14_dinov2": ViT(**_DINOV2),
    "vit_base_patch14_dinov2": ViT(**_BASE, **_DINOV2),
    "vit_large_patch14_dinov2": ViT(**_LARGE, **_DINOV2),
    "vit_small_patch14_reg4_dinov2": ViT(**_REG4),
    "vit_base_patch14_reg4_dinov2": ViT(**_BASE, **_REG4),
    "vit_large_patch14_reg4_dinov2": ViT(**_LARGE, **_REG4),
    "vit_giant_patch14_dinov2": ViT(**_GIANT, **_DINOV2),
    "vit_giant_patch14_reg4_dinov2": ViT(**_GIANT, **_REG4),
    "vit_small_patch16_dinov3": ViT(**_DINOV3),
    "vit_small_plus_patch16_dinov3": ViT(**_DINOV3, gated=True),
    "vit_base_patch16_dinov3": ViT(**_BASE, **_DINOV3),
    "vit_large_patch16_dinov3": ViT(**_LARGE, **_DINOV3),
    "vit_huge_plus_patch16_dinov3": ViT(**_HUGE_PLUS, **_DINOV3),
    "vit_small_patch16_dinov3_qkvb": ViT(**_DINOV3).clone(qkv_bias="query_value"),
    "vit_small_plus_patch16_dinov3_qkvb": ViT(**_DINOV3, gated=True).clone(qkv_bias="query_value"),
    "vit_base_patch16_dinov3_qkvb": ViT(**_BASE, **_DINOV3).clone(qkv_bias="query_value"),
    "vit_large_patch16_dinov3_qkvb": ViT(**_LARGE, **_DINOV3).clone(qkv_bias="query_value"),
    "vit_huge_plus_patch16_dinov3_qkvb": ViT(**_HUGE_PLUS, **_DINOV3).clone(qkv_bias="query_value"),
    "vit_base_patch16_siglip": ViT(**_BASE, **_SIGLIP),
    "vit_base_patch16_siglip_384": ViT(**_BASE, **_SIGLIP, grid=(24, 24)),
    "vit_base_patch16_siglip_gap": ViT(**_BASE, **_SIGLIP).clone(pool="normed_mean"),
    "vit_large_patch16_siglip": ViT(**_LARGE, **_SIGLIP, grid=(16, 16)),
    "vit_so400m_patch14_siglip": ViT(**_SO400M, grid=(16, 16)),
    "vit_so400m_patch14_siglip_384": ViT(**_SO400M, grid=(27, 27)),
    "vit_base_patch16_clip": ViT(**_BASE, **_CLIP),
    "vit_base_patch32_clip": ViT(**_BASE, **_CLIP, **_PATCH32),
    "vit_large_patch14_clip": ViT(**_LARGE, **_CLIP, **_PATCH14),
    "vit_base_patch16_clip_quickgelu": ViT(**_BASE, **_QUICK),
    "vit_base_patch32_clip_quickgelu": ViT(**_BASE, **_QUICK, **_PATCH32),
    "vit_large_patch14_clip_quickgelu": ViT(**_LARGE, **_QUICK, **_PATCH14),
    "vit_huge_patch14": ViT(**_HUGE, **_PATCH14),
    "vit_base_patch16_224_miil": ViT(**_BASE, qkv_bias="none"),
    "vit_medium_patch16_reg4_gap": ViT(width=512, heads=8, layer_scale=1e-5, **_REG4_GAP),
    "vit_base_patch16_reg4_gap": ViT(**_BASE, **_REG4_GAP),
    "deit_tiny_patch16": ViT(**_TINY),
    "deit_small_patch16": ViT(),
    "deit_base_patch16": ViT(**_BASE),
    "deit_tiny_distilled_patch16": ViT(**_TINY, **_DISTILLED),
    "deit_small_distilled_patch16": ViT(**_DISTILLED),
    "deit_base_distilled_patch16": ViT(**_BASE, **_DISTILLED),
    "deit3_small_patch16": ViT(**_DEIT3),
    "deit3_base_patch16": ViT(**_BASE, **_DEIT3),
    "deit3_large_patch16": ViT(**_LARGE, **_DEIT3),
    **_SWINS,
    "beit_base_patch16": BEiT(),
    "beit_large_patch16": BEiT(**_LARGE, layer_scale=1e-5),
    "beitv2_base_patch16": BEiT(layer_scale=1e-5),
    "beitv2_large_patch16": BEiT(**_LARGE, layer_scale=1e-5),
    "beit_base_patch16_384": BEiT(grid=(24, 24)),  # names with a size are of weights that timm has at two
    "eva_large_patch14": ViT(**_LARGE, patch_size=14, grid=(14, 14), pool="mean"),
    "eva_large_patch14_336": ViT(**_LARGE, patch_size=14, grid=(24, 24), pool="mean"),
    "eva_giant_patch14": EVA(**_EVA, width=1408, depth=40, heads=16, mlp_width=6144),
    "eva02_tiny_patch14": EVA(**_TINY, mlp_width=512, mlp_norm=False),
    "eva02_small_patch14": EVA(width=384, heads=6, mlp_width=1024, mlp_norm=False),
    "eva02_base_patch14": EVA(),
    "eva02_base_patch14_448": EVA(grid=(32, 32)),
    "eva02_large_patch14_448": EVA(**_LARGE, mlp_width=2730, grid=(32, 32)),
    "eva02_base_patch16_clip": EVA(patch_size=16, grid=(14, 14), attention_norm=True, pool="class"),
    "bert_base": Bert(),
    "bert_large": Bert(**_LARGE),
    "minilm_l6": Bert(width=384, depth=6, pool="mean"),
    "distilbert_base": Bert(depth=6, token_types=0, pool="cls"),
    "roberta_base": _ROBERTA,
    "roberta_large": _ROBERTA.clone(**_LARGE),
    "bert_base_cased": Bert(vocabulary=28996),
    "xlm_roberta_base": _XLM_R,
    "xlm_roberta_large": _XLM_R.clone(**_LARGE),
    "camembert_base": _ROBERTA.clone(vocabulary=32005),
    "multilingual_e5_small": Bert(width=384, vocabulary=250037, **_SENTENCE),
    "multilingual_e5_base": _XLM_R.clone(**_SENTENCE),
    "multilingual_e5_large": _XLM_R.clone(**_LARGE, **_SENTENCE),
    "e5_small": Bert(width=384, **_SENTENCE),
    "e5_base": Bert(**_SENTENCE),
    "bge_small": Bert(width=384, pool="cls", normalize=True),
    "bge_base": Bert(pool="cls", normalize=True),
    "mpnet_base": MPNet(),
    "all_mpnet_base": MPNet(**_SENTENCE),
    "electra_small": Electra(),
    "electra_base": Electra(**_BASE, embedding_width=None),
    "electra_large": Electra(**_LARGE, embedding_width=None),
    "albert_base": Albert(pool="cls"),
    "albert_large": Albert(width=1024, heads=16, repeats=24, pool="cls"),
    "modernbert_base": ModernBert(),
    "modernbert_large": ModernBert(width=1024, depth=28, heads=16, mlp_width=2624),
    "deberta_v3_xsmall": Deberta(width=384, heads=6),
    "deberta_v3_small": Deberta(depth=6),
    "deberta_v3_base": Deberta(),
    "deberta_v3_large": Deberta(**_LARGE),
    "mdeberta_v3_base": Deberta(vocabulary=251000),
    "deberta_v2_xlarge": Deberta(width=1536, depth=24, heads=24, conv_size=3, conv_activation="gelu"),
}


def build(name: str, architecture: Mapping[str, Any]) -> Backbone:
    """Returns a row of `BACKBONES`, or a user's `module:name`, with the attributes in which a checkpoint differs.

    Raises:
        InputError: there is no such row or module, it is no backbone, or it has no such attribute.
    """
    module = _imported(name) if is_reference(name) else BACKBONES.get(name)
    if module is None:
        raise InputError(f"no backbone.name {name!r}; there are: {', '.join(BACKBONES)}, and yours as module:name")
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in architecture.items()}
    unknown = plain.keys() - attributes(module).keys()
    if unknown:
        raise InputError(f"{name} has no attribute {', '.join(sorted(unknown))}")
    return module.clone(**plain)


def _imported(name: str) -> Backbone:
    """Returns the backbone that a reference names, a class with its attributes' defaults or an instance.

    Raises:
        InputError: it is none, or has attributes without a default, or some that cannot be compared.
    """
    reference = resolve_reference(name, "backbone.name")
    is_class = isinstance(reference, type) and issubclass(reference, Backbone)
    if not is_class and not isinstance(reference, Backbone):
        raise InputError(f"backbone.name={name} is no backbone: give a subclass of tljax.models.base.Backbone")
    try:
        module = reference() if is_class else reference
        hash((module, module.groups, module.feature_dim))  # which have no default
    except TypeError as error:
        message = "its attributes cannot be hashed: give them tuples, not lists or dicts"
        raise InputError(f"backbone.name={name}: {message}") from error
    return module


def user_source(module: Backbone) -> tuple[str, ...]:
    """Returns the SHA-256 of the file that a user's backbone stands in, for keys of caches; () of ours."""
    if type(module).__module__.startswith("tljax."):
        return ()
    return (source_hash(type(module)),)
