"""What ConvNeXts' parameters are called in the checkpoints that people have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tljax.models.convolution import blocks
from tljax.weights.mapping import CONV, ParamMapping, Table, torch_linear, torch_norm

if TYPE_CHECKING:
    from tljax.models.vision.convnext import ConvNeXt


def tables(model: ConvNeXt) -> dict[str, Table]:
    """Returns the table for each library whose names a checkpoint may have."""
    return {"timm": _timm(model), "hf": _hf(model)}


def _conv(source: str, target: str) -> Iterator[ParamMapping]:
    """Yields a convolution with a bias, under torch's words for its arrays."""
    yield ParamMapping(f"{source}.weight", f"{target}/kernel", CONV)
    yield ParamMapping(f"{source}.bias", f"{target}/bias")


def _one_by_one(source: str, target: str, inputs: int) -> Iterator[ParamMapping]:
    """Yields a linear layer that the file has as a 1x1 convolution."""
    yield ParamMapping(f"{source}.weight", f"{target}/kernel", CONV, fold=(1, 1, inputs, -1))
    yield ParamMapping(f"{source}.bias", f"{target}/bias")


def _timm(model: ConvNeXt) -> Table:
    """Returns the table of timm: `stages.1.blocks.0.mlp.fc1.weight`."""
    mappings = [*torch_linear("head.fc", "head"), *torch_norm("head.norm", "params/norm")]
    mappings += [*_conv("stem.0", "params/stem/conv"), *torch_norm("stem.1", "params/stem/norm")]
    for n, (stage, i) in enumerate(blocks(model.depths)):
        source, target = f"stages.{stage}.blocks.{i}", f"params/block_{n}"
        if i == 0 and stage > 0:
            mappings += torch_norm(f"stages.{stage}.downsample.0", f"{target}/norm_downsample")
            mappings += _conv(f"stages.{stage}.downsample.1", f"{target}/downsample")
        mappings += [*_conv(f"{source}.conv_dw", f"{target}/conv_dw"), *torch_norm(f"{source}.norm", f"{target}/norm")]
        for layer, share in (("fc1", 1), ("fc2", 4)):
            names = f"{source}.mlp.{layer}", f"{target}/mlp/{layer}"
            mappings += _one_by_one(*names, share * model.widths[stage]) if model.conv_mlp else torch_linear(*names)
        if model.response_norm:
            mappings += torch_norm(f"{source}.mlp.grn", f"{target}/mlp/grn")
        if model.layer_scale is not None:
            mappings.append(ParamMapping(f"{source}.gamma", f"{target}/layer_scale"))
    return Table(tuple(mappings))


def _hf(model: ConvNeXt) -> Table:
    """Returns the table of transformers' ConvNeXt and ConvNeXt V2; a file saved from a bare model lacks the prefix."""
    top = "convnextv2" if model.response_norm else "convnext"
    mappings = [*torch_linear("classifier", "head"), *torch_norm(f"{top}.layernorm", "params/norm")]
    mappings += _conv(f"{top}.embeddings.patch_embeddings", "params/stem/conv")
    mappings += torch_norm(f"{top}.embeddings.layernorm", "params/stem/norm")
    for n, (stage, i) in enumerate(blocks(model.depths)):
        place, target = f"{top}.encoder.stages.{stage}", f"params/block_{n}"
        if i == 0 and stage > 0:
            mappings += torch_norm(f"{place}.downsampling_layer.0", f"{target}/norm_downsample")
            mappings += _conv(f"{place}.downsampling_layer.1", f"{target}/downsample")
        source = f"{place}.layers.{i}"
        mappings += _conv(f"{source}.dwconv", f"{target}/conv_dw")
        mappings += torch_norm(f"{source}.layernorm", f"{target}/norm")
        for number in (1, 2):
            mappings += torch_linear(f"{source}.pwconv{number}", f"{target}/mlp/fc{number}")
        if model.response_norm:
            for theirs, ours in (("weight", "scale"), ("bias", "bias")):
                grn = f"{source}.grn.{theirs}"
                mappings.append(ParamMapping(grn, f"{target}/mlp/grn/{ours}", fold=(1, 1, 1, -1)))
        if model.layer_scale is not None:
            mappings.append(ParamMapping(f"{source}.layer_scale_parameter", f"{target}/layer_scale"))
    return Table(tuple(mappings), aliases=((r"^(?=(embeddings|encoder|layernorm)\.)", f"{top}."),))
