"""What ResNets' parameters are called in the checkpoints that people have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tljax.models.convolution import blocks
from tljax.weights.mapping import CONV, ParamMapping, Table, torch_linear

if TYPE_CHECKING:
    from tljax.models.vision.resnet import ResNet


def tables(model: ResNet) -> dict[str, Table]:
    """Returns the table for each library whose names a checkpoint may have."""
    return {"timm": _timm(model), "hf": _hf(model), "open_nsfw": _open_nsfw(model)}


def _convs(model: ResNet) -> range:
    """Returns the numbers of a block's convolutions."""
    return range(1, 3 if model.kind == "basic" else 4)


def conv_norm(conv: str, norm: str, target: str) -> Iterator[ParamMapping]:
    """Yields a convolution and its BatchNorm, under torch's words for their arrays.

    Args:
        conv, norm: their names in the file.
        target: that of both here.
    """
    yield ParamMapping(f"{conv}.weight", f"params/{target}/conv/kernel", CONV)
    yield ParamMapping(f"{norm}.weight", f"params/{target}/norm/scale")
    yield ParamMapping(f"{norm}.bias", f"params/{target}/norm/bias")
    yield ParamMapping(f"{norm}.running_mean", f"batch_stats/{target}/norm/mean")
    yield ParamMapping(f"{norm}.running_var", f"batch_stats/{target}/norm/var")


def squeeze_excite(source: str, target: str) -> Iterator[ParamMapping]:
    """Yields the two layers of squeeze and excite, under timm's words."""
    for theirs, ours in (("fc1", "reduce"), ("fc2", "expand")):
        yield ParamMapping(f"{source}.{theirs}.weight", f"{target}/{ours}/kernel", CONV)
        yield ParamMapping(f"{source}.{theirs}.bias", f"{target}/{ours}/bias")


def _timm(model: ResNet) -> Table:
    """Returns the table of timm and torchvision: `layer1.0.conv1.weight`."""
    mappings = [*torch_linear("fc", "head")]
    if model.stem == "deep":
        # timm numbers what stands in a Sequential: 2 and 5 are its ReLUs.
        for n, (conv, norm) in enumerate((("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")), 1):
            mappings += conv_norm(conv, norm, f"stem/conv{n}")
    else:
        mappings += conv_norm("conv1", "bn1", "stem/conv1")
    # With an average pool before it, the convolution of the shortcut is the second of its Sequential.
    first = 1 if model.avg_down else 0
    for n, (stage, i) in enumerate(blocks(model.depths)):
        source = f"layer{stage + 1}.{i}"
        for k in _convs(model):
            mappings += conv_norm(f"{source}.conv{k}", f"{source}.bn{k}", f"block_{n}/conv{k}")
        if model.attention == "se":
            mappings += squeeze_excite(f"{source}.se", f"params/block_{n}/attention")
        elif model.attention == "eca":
            mappings.append(
                ParamMapping(f"{source}.se.conv.weight", f"params/block_{n}/attention/kernel", fold=(1, 1, -1))
            )
        down = f"{source}.downsample"
        mappings += conv_norm(f"{down}.{first}", f"{down}.{first + 1}", f"block_{n}/downsample")
    return Table(tuple(mappings), (r".*\.num_batches_tracked",))


def _hf(model: ResNet) -> Table:
    """Returns the table of transformers' ResNet, v1 and v1.5; a file saved from a bare model lacks the prefix."""

    def layer(name: str, target: str) -> Iterator[ParamMapping]:
        return conv_norm(f"{name}.convolution", f"{name}.normalization", target)

    mappings = [*torch_linear("classifier.1", "head"), *layer("resnet.embedder.embedder", "stem/conv1")]
    for n, (stage, i) in enumerate(blocks(model.depths)):
        source = f"resnet.encoder.stages.{stage}.layers.{i}"
        for k in _convs(model):
            mappings += layer(f"{source}.layer.{k - 1}", f"block_{n}/conv{k}")
        mappings += layer(f"{source}.shortcut", f"block_{n}/downsample")
    return Table(tuple(mappings), (r".*\.num_batches_tracked",), ((r"^(?=(embedder|encoder)\.)", "resnet."),))


def _open_nsfw(model: ResNet) -> Table:
    """Returns the table of Yahoo's open_nsfw as exported to ONNX: Caffe names, BatchNorm folded into the convolutions.

    `weights.readers.files` names an array by the node that reads it where the exporter made its name up.
    """

    def fused(name: str, target: str) -> list[ParamMapping]:
        source = f"{name}/BiasAdd"
        return [
            ParamMapping(f"{source}_weights_fused_bn", f"params/{target}/conv/kernel", CONV),
            ParamMapping(f"{source}_bias_fused_bn", f"params/{target}/conv/bias"),
        ]

    def made_up(name: str, target: str) -> list[ParamMapping]:
        node = f"{name}/FusedBatchNormV3:0"
        return [
            ParamMapping(f"{node}#1", f"params/{target}/conv/kernel", CONV),
            ParamMapping(f"{node}#2", f"params/{target}/conv/bias"),
        ]

    mappings = [
        *made_up("bn_1", "stem/conv1"),
        ParamMapping("fc_nsfw/MatMul/ReadVariableOp:0", "head/kernel"),
        ParamMapping("fc_nsfw/BiasAdd/ReadVariableOp:0", "head/bias"),
    ]
    for n, (stage, i) in enumerate(blocks(model.depths)):
        place = f"stage{stage}_block{i}"
        mappings += [
            *fused(f"conv_{place}_branch2a", f"block_{n}/conv1"),
            *made_up(f"bn_{place}_branch2b", f"block_{n}/conv2"),
            *fused(f"conv_{place}_branch2c", f"block_{n}/conv3"),
            *fused(f"conv_{place}_proj_shortcut", f"block_{n}/downsample"),
        ]
    return Table(tuple(mappings), (r"(pool|Reshape)[/:].*",))
