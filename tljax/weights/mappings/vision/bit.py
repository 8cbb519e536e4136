"""What BiT's parameters are called in the checkpoints that people have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tljax.models.convolution import blocks
from tljax.weights.mapping import CONV, ParamMapping, Table, torch_norm

if TYPE_CHECKING:
    from tljax.models.vision.bit import BiT


def tables(model: BiT) -> dict[str, Table]:
    """Returns the table for each library whose names a checkpoint may have."""
    return {"timm": _timm(model), "google": _google(model)}


def _timm(model: BiT) -> Table:
    """Returns the table of timm's `resnetv2_*_bit` (`stages.0.blocks.0.conv1.weight`), whose head is a convolution."""
    mappings = [
        ParamMapping("stem.conv.weight", "params/stem/conv/kernel", CONV),
        *torch_norm("norm", "params/norm"),
        ParamMapping("head.fc.weight", "head/kernel", CONV, fold=(1, 1, model.feature_dim, -1)),
        ParamMapping("head.fc.bias", "head/bias"),
    ]
    for n, (stage, i) in enumerate(blocks(model.depths)):
        source, target = f"stages.{stage}.blocks.{i}", f"params/block_{n}"
        for k in (1, 2, 3):
            mappings += torch_norm(f"{source}.norm{k}", f"{target}/norm{k}")
            mappings += [ParamMapping(f"{source}.conv{k}.weight", f"{target}/conv{k}/kernel", CONV)]
        if i == 0:
            mappings += [ParamMapping(f"{source}.downsample.conv.weight", f"{target}/downsample/kernel", CONV)]
    return Table(tuple(mappings))


def _google(model: BiT) -> Table:
    """Returns the table of google-research/big_transfer's `.npz` (`resnet/block1/unit01/a/…`), already HWIO."""

    def norm(source: str, target: str) -> list[ParamMapping]:
        return [
            ParamMapping(f"{source}/group_norm/gamma", f"{target}/scale"),
            ParamMapping(f"{source}/group_norm/beta", f"{target}/bias"),
        ]

    mappings = [
        ParamMapping("resnet/root_block/standardized_conv2d/kernel", "params/stem/conv/kernel"),
        *norm("resnet", "params/norm"),
        ParamMapping("resnet/head/conv2d/kernel", "head/kernel", fold=(1, 1, model.feature_dim, -1)),
        ParamMapping("resnet/head/conv2d/bias", "head/bias"),
    ]
    for n, (stage, i) in enumerate(blocks(model.depths)):
        source, target = f"resnet/block{stage + 1}/unit{i + 1:02d}", f"params/block_{n}"
        for k, letter in enumerate("abc", 1):
            mappings += norm(f"{source}/{letter}", f"{target}/norm{k}")
            mappings += [ParamMapping(f"{source}/{letter}/standardized_conv2d/kernel", f"{target}/conv{k}/kernel")]
        if i == 0:
            mappings += [ParamMapping(f"{source}/a/proj/standardized_conv2d/kernel", f"{target}/downsample/kernel")]
    return Table(tuple(mappings))
