"""What EfficientNets' parameters are called in the checkpoints that people have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tljax.models.convolution import blocks
from tljax.weights.mapping import CONV, ParamMapping, Table, torch_linear

if TYPE_CHECKING:
    from tljax.models.vision.efficientnet import BlockSpec, EfficientNet
    from tljax.models.vision.mobilenetv3 import MobileNetV3

_COUNTERS = (r".*\.num_batches_tracked",)


def tables(model: EfficientNet) -> dict[str, Table]:
    """Returns the table for each library whose names a checkpoint may have."""
    named = {"timm": _timm, "lukemelas": _lukemelas, "hf": _hf, "hf_mobilenet_v2": _hf_mobilenet_v2}
    return {library: table(model) for library, table in named.items()}


def _layer(conv: str, norm: str, target: str) -> Iterator[ParamMapping]:
    """Yields a convolution and its BatchNorm, under torch's words for their arrays."""
    yield ParamMapping(f"{conv}.weight", f"params/{target}/conv/kernel", CONV)
    yield ParamMapping(f"{norm}.weight", f"params/{target}/norm/scale")
    yield ParamMapping(f"{norm}.bias", f"params/{target}/norm/bias")
    yield ParamMapping(f"{norm}.running_mean", f"batch_stats/{target}/norm/mean")
    yield ParamMapping(f"{norm}.running_var", f"batch_stats/{target}/norm/var")


def _squeeze_excite(reduce: str, expand: str, target: str) -> Iterator[ParamMapping]:
    for source, name in ((reduce, "reduce"), (expand, "expand")):
        yield ParamMapping(f"{source}.weight", f"params/{target}/squeeze_excite/{name}/kernel", CONV)
        yield ParamMapping(f"{source}.bias", f"params/{target}/squeeze_excite/{name}/bias")


def _parts(spec: BlockSpec) -> list[str]:
    """Returns the names of a block's convolutions, in order."""
    if spec.operator == "conv":
        return ["conv"]
    expand = ["expand"] if spec.operator == "fused" or spec.hidden != spec.inputs else []
    return [*expand, *(["depthwise"] if spec.operator == "mbconv" else []), "project"]


def _timm_words(spec: BlockSpec) -> Mapping[str, str]:
    """Returns timm's name of each convolution, which differ by the kind of block."""
    if spec.operator == "fused":
        return {"expand": "conv_exp", "project": "conv_pwl"}
    project = "conv_pw" if spec.hidden == spec.inputs else "conv_pwl"
    return {"conv": "conv", "expand": "conv_pw", "depthwise": "conv_dw", "project": project}


def _timm(model: EfficientNet) -> Table:
    """Returns the table of timm: `blocks.1.0.conv_pw.weight`, norms numbered in their order."""
    mappings = [*_layer("conv_head", "bn2", "conv_head"), *_timm_body(model.depths, model.specs)]
    return Table(tuple(mappings), _COUNTERS)


def mobilenetv3_tables(model: MobileNetV3) -> dict[str, Table]:
    """Returns the table of timm, where the 1x1 convolution after the stages is a stage of its own."""
    mappings = [*_timm_body((*model.depths, 1), model.specs)]
    mappings.append(ParamMapping("conv_head.weight", "params/conv_head/kernel", CONV))
    mappings.append(ParamMapping("conv_head.bias", "params/conv_head/bias"))
    return {"timm": Table(tuple(mappings), _COUNTERS)}


def _timm_body(depths: tuple[int, ...], specs: list[BlockSpec]) -> list[ParamMapping]:
    """Returns what timm's networks of inverted residuals share: stem, blocks and classifier."""
    mappings = [*torch_linear("classifier", "head"), *_layer("conv_stem", "bn1", "stem")]
    for n, ((stage, i), spec) in enumerate(zip(blocks(depths), specs, strict=True)):
        source, words = f"blocks.{stage}.{i}", _timm_words(spec)
        for k, part in enumerate(_parts(spec), 1):
            mappings += _layer(f"{source}.{words[part]}", f"{source}.bn{k}", f"block_{n}/{part}")
        if spec.squeeze:
            mappings += _squeeze_excite(f"{source}.se.conv_reduce", f"{source}.se.conv_expand", f"block_{n}")
    return mappings


def _lukemelas(model: EfficientNet) -> Table:
    """Returns the table of efficientnet_pytorch and its kin: `_blocks.1._expand_conv.weight`, blocks of all stages."""
    words = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
    words |= {"project": ("_project_conv", "_bn2")}
    mappings = [*torch_linear("_fc", "head"), *_layer("_conv_stem", "_bn0", "stem")]
    mappings += _layer("_conv_head", "_bn1", "conv_head")
    for n, spec in enumerate(model.specs):
        for part in (part for part in _parts(spec) if part in words):
            conv, norm = (f"_blocks.{n}.{name}" for name in words[part])
            mappings += _layer(conv, norm, f"block_{n}/{part}")
        if spec.squeeze:
            mappings += _squeeze_excite(f"_blocks.{n}._se_reduce", f"_blocks.{n}._se_expand", f"block_{n}")
    return Table(tuple(mappings), _COUNTERS)


def _hf(model: EfficientNet) -> Table:
    """Returns the table of transformers' EfficientNet; a file saved from a bare model lacks the prefix."""
    words = {
        "expand": ("expansion.expand_conv", "expansion.expand_bn"),
        "depthwise": ("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm"),
        "project": ("projection.project_conv", "projection.project_bn"),
    }
    stem, top = "efficientnet.embeddings", "efficientnet.encoder.top"
    mappings = [*torch_linear("classifier", "head"), *_layer(f"{stem}.convolution", f"{stem}.batchnorm", "stem")]
    mappings += _layer(f"{top}_conv", f"{top}_bn", "conv_head")
    for n, spec in enumerate(model.specs):
        source = f"efficientnet.encoder.blocks.{n}"
        for part in (part for part in _parts(spec) if part in words):
            conv, norm = (f"{source}.{name}" for name in words[part])
            mappings += _layer(conv, norm, f"block_{n}/{part}")
        if spec.squeeze:
            names = (f"{source}.squeeze_excite.{name}" for name in ("reduce", "expand"))
            mappings += _squeeze_excite(*names, f"block_{n}")
    return Table(tuple(mappings), _COUNTERS, ((r"^(?=(embeddings|encoder)\.)", "efficientnet."),))


def _hf_mobilenet_v2(model: EfficientNet) -> Table:
    """Returns the table of transformers' MobileNetV2, whose stem has the first block in it."""
    words = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}

    def layer(name: str, target: str) -> Iterator[ParamMapping]:
        source = f"mobilenet_v2.{name}"
        return _layer(f"{source}.convolution", f"{source}.normalization", target)

    mappings = [*torch_linear("classifier", "head"), *layer("conv_stem.first_conv", "stem")]
    mappings += layer("conv_1x1", "conv_head")
    for n, spec in enumerate(model.specs):
        source = "conv_stem" if n == 0 else f"layer.{n - 1}"
        for part in (part for part in _parts(spec) if part in words):
            mappings += layer(f"{source}.{words[part]}", f"block_{n}/{part}")
    return Table(tuple(mappings), _COUNTERS, ((r"^(?=(conv_stem|layer|conv_1x1)\.)", "mobilenet_v2."),))
