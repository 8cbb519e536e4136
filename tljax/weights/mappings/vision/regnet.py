"""What RegNets' parameters are called in timm's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tljax.models.convolution import blocks
from tljax.weights.mapping import ParamMapping, Table, torch_linear
from tljax.weights.mappings.vision.resnet import conv_norm, squeeze_excite

if TYPE_CHECKING:
    from tljax.models.vision.regnet import RegNet


def tables(model: RegNet) -> dict[str, Table]:
    """Returns the table for each library whose names a checkpoint may have: timm's, `s1.b1.conv1.conv.weight`."""

    def layer(name: str, target: str) -> Iterator[ParamMapping]:
        return conv_norm(f"{name}.conv", f"{name}.bn", target)

    mappings = [*torch_linear("head.fc", "head"), *layer("stem", "stem/conv1")]
    for n, (stage, i) in enumerate(blocks(tuple(depth for depth, *_ in model.stages))):
        source, target = f"s{stage + 1}.b{i + 1}", f"block_{n}"
        for name in ("conv1", "conv2", "conv3", "downsample"):
            mappings += layer(f"{source}.{name}", f"{target}/{name}")
        if model.squeeze:
            mappings += squeeze_excite(f"{source}.se", f"params/{target}/squeeze_excite")
    return {"timm": Table(tuple(mappings), (r".*\.num_batches_tracked",))}
