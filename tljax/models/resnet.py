"""ResNet v1 and v1.5 (1512.03385), basic and bottleneck, of any depth and width."""

from collections.abc import Collection
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.models import ops
from tljax.weights.rules import CONV, SAME, Rule

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class _Conv(nn.Module):
    features: int
    size: int = 1
    stride: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x):
        # torch pads both sides alike; XLA's SAME would pad even sizes on one side only.
        pad = (self.size // 2, self.size // 2)
        kernel = self.param("kernel", _he_normal, (self.size, self.size, x.shape[-1], self.features))
        x = ops.conv(x, kernel, self.stride, (pad, pad))
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,))
        return x


class _ConvNorm(nn.Module):
    """A convolution and what normalises it: a BatchNorm, or only the bias that one was folded into."""

    features: int
    size: int = 1
    stride: int = 1
    norm: str = "batch"
    zero_init: bool = False

    @nn.compact
    def __call__(self, x, train):
        x = _Conv(self.features, self.size, self.stride, use_bias=self.norm == "folded", name="conv")(x)
        if self.norm == "folded":
            return x
        scale = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, scale_init=scale, name="norm")(x)


class _Stem(nn.Module):
    width: int
    norm: str
    pool_padding: tuple[int, int]

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(_ConvNorm(self.width, 7, 2, self.norm, name="conv1")(x, train))
        return nn.max_pool(x, (3, 3), (2, 2), (self.pool_padding, self.pool_padding))


class _Block(nn.Module):
    """A residual block; `kind` is what stands between the shortcut's ends."""

    kind: str
    width: int
    stride: int
    stride_on: str
    norm: str

    @nn.compact
    def __call__(self, x, train):
        conv = partial(_ConvNorm, norm=self.norm)
        if self.kind == "basic":
            out = self.width
            y = nn.relu(conv(self.width, 3, self.stride, name="conv1")(x, train))
            y = conv(out, 3, zero_init=True, name="conv2")(y, train)
        else:
            out = 4 * self.width
            first, second = (self.stride, 1) if self.stride_on == "1x1" else (1, self.stride)
            y = nn.relu(conv(self.width, 1, first, name="conv1")(x, train))
            y = nn.relu(conv(self.width, 3, second, name="conv2")(y, train))
            y = conv(out, 1, zero_init=True, name="conv3")(y, train)
        if self.stride != 1 or x.shape[-1] != out:
            x = conv(out, 1, self.stride, name="downsample")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network that ends in globally average-pooled features.

    Attributes:
        depths: blocks per stage.
        widths: channels per stage (inside the block; a bottleneck ends with four times as many).
        kind: `basic` (two 3x3) or `bottleneck` (1x1, 3x3, 1x1).
        stride_on: which convolution of a bottleneck strides: `1x1` (v1, the paper) or `3x3` (v1.5).
        norm: `batch`, or `folded` for weights whose BatchNorm was folded into convolution biases.
        stem_pool_padding: zeros before and after each axis of the stem's max pool: (1, 1) in PyTorch,
            (0, 1) in Caffe's ceil mode.

    Groups: `stem`, one `block_i` per residual block in order.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 64
    kind: Literal["basic", "bottleneck"] = "bottleneck"
    stride_on: Literal["1x1", "3x3"] = "3x3"
    norm: Literal["batch", "folded"] = "batch"
    stem_pool_padding: tuple[int, int] = (1, 1)

    @property
    def groups(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(sum(self.depths))))

    @property
    def feature_dim(self) -> int:
        return self.widths[-1] * (1 if self.kind == "basic" else 4)

    def setup(self):
        self.stem = _Stem(self.stem_width, self.norm, self.stem_pool_padding)
        self.block = [
            _Block(self.kind, width, 2 if i == 0 and stage > 0 else 1, self.stride_on, self.norm)
            for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True))
            for i in range(depth)
        ]

    def __call__(
        self,
        x: Float[Array, "batch ..."],
        *,
        start: int = 0,
        stop: int | None = None,
        train: bool = False,
        frozen: Collection[str] = (),
    ) -> Float[Array, "batch ..."]:
        """Runs `groups[start:stop]`.

        Args:
            x: normalised images [batch, height, width, 3], or what `groups[:start]` gave.
            start: the first group to run.
            stop: the group to stop before; the whole network by default.
            train: whether BatchNorm normalises with, and records, batch statistics.
            frozen: groups whose BatchNorm normalises with its stored statistics and keeps them, always.

        Returns:
            Pooled features [batch, feature_dim] at the end, else the feature map after `groups[stop - 1]`.
        """
        names = self.groups[start:stop]
        for name, layer in list(zip(self.groups, [self.stem, *self.block], strict=True))[start:stop]:
            x = layer(x, train and name not in frozen)
        return jnp.mean(x, axis=(1, 2)) if names and names[-1] == self.groups[-1] else x

    def for_image_size(self, size: int) -> "ResNet":
        """Itself: a convolution takes any size."""
        return self

    def rules(self) -> dict[str, tuple[Rule, ...]]:
        """Whose names -> the table that converts them."""
        return {"torch": _torch_rules(self), "open_nsfw": _open_nsfw_rules(self)}

    def _stage_of_block(self):
        return [(stage, i) for stage, depth in enumerate(self.depths) for i in range(depth)]


def _torch_rules(model: ResNet) -> tuple[Rule, ...]:
    """timm and torchvision names: `layer1.0.conv1.weight`."""
    places = [("", "stem/")] + [
        (rf"layer{stage + 1}\.{i}\.", f"block_{n}/") for n, (stage, i) in enumerate(model._stage_of_block())
    ]
    rules = [Rule(r"fc\..*", None), Rule(r".*\.num_batches_tracked", None)]
    for source, target in places:
        rules += [
            Rule(rf"{source}conv(\d)\.weight", rf"params/{target}conv\1/conv/kernel", CONV),
            Rule(rf"{source}downsample\.0\.weight", rf"params/{target}downsample/conv/kernel", CONV),
        ]
        for norm, name in (
            (rf"{source}bn(\d)", rf"{target}conv\1"),
            (rf"{source}downsample\.1", rf"{target}downsample"),
        ):
            rules += [
                Rule(rf"{norm}\.weight", rf"params/{name}/norm/scale", SAME),
                Rule(rf"{norm}\.bias", rf"params/{name}/norm/bias", SAME),
                Rule(rf"{norm}\.running_mean", rf"batch_stats/{name}/norm/mean", SAME),
                Rule(rf"{norm}\.running_var", rf"batch_stats/{name}/norm/var", SAME),
            ]
    return tuple(rules)


def _open_nsfw_rules(model: ResNet) -> tuple[Rule, ...]:
    """Yahoo's open_nsfw as exported to ONNX: Caffe names, BatchNorm folded into the convolutions."""
    rules = [
        Rule(r"bn_1/.*#1", "params/stem/conv1/conv/kernel", CONV),
        Rule(r"bn_1/.*#2", "params/stem/conv1/conv/bias", SAME),
        Rule(r"(fc_nsfw|pool|Reshape)[/:].*", None),
    ]
    for n, (stage, i) in enumerate(model._stage_of_block()):
        for branch, name in (("branch2a", "conv1"), ("branch2c", "conv3"), ("proj_shortcut", "downsample")):
            source, target = rf"conv_stage{stage}_block{i}_{branch}/BiasAdd", f"params/block_{n}/{name}/conv"
            rules += [
                Rule(rf"{source}_weights_fused_bn", f"{target}/kernel", CONV),
                Rule(rf"{source}_bias_fused_bn", f"{target}/bias", SAME),
            ]
        rules += [
            Rule(rf"bn_stage{stage}_block{i}_branch2b/.*#1", f"params/block_{n}/conv2/conv/kernel", CONV),
            Rule(rf"bn_stage{stage}_block{i}_branch2b/.*#2", f"params/block_{n}/conv2/conv/bias", SAME),
        ]
    return tuple(rules)
