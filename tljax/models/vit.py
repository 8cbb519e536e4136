"""Vision Transformer (2010.11929), with LayerScale (2103.17239) where a checkpoint has it, as DINOv2 does."""

from collections.abc import Collection

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.errors import InputError
from tljax.models import ops
from tljax.weights.rules import CONV, LINEAR, SAME, Rule

_trunc_normal = nn.initializers.truncated_normal(0.02)


class _Dense(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (x.shape[-1], self.features))
        return ops.linear(x, kernel, self.param("bias", nn.initializers.zeros, (self.features,)))


class _Stem(nn.Module):
    """Patches, projected; the class token before them; position embeddings on all."""

    width: int
    patch_size: int
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, x):
        p, (rows, columns) = self.patch_size, self.grid
        if x.shape[1:3] != (rows * p, columns * p):
            raise ValueError(f"images are {x.shape[1:3]}, a {self.grid} grid of {p}-pixel patches is not")
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        # Patches do not overlap, so the convolution is a matrix product of flattened patches.
        x = x.reshape(x.shape[0], rows, p, columns, p, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
        x = ops.linear(x.reshape(x.shape[0], rows * columns, -1), kernel.reshape(-1, self.width), bias)
        class_token = self.param("class_token", _trunc_normal, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(class_token, (x.shape[0], 1, self.width)), x], axis=1)
        return x + self.param("pos_embed", _trunc_normal, (1, 1 + rows * columns, self.width))


class _Attention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x):
        batch, tokens, width = x.shape
        qkv = _Dense(3 * width, name="qkv")(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        x = ops.attention(q, k, v).transpose(0, 2, 1, 3).reshape(batch, tokens, width)
        return _Dense(width, name="out")(x)


class _Mlp(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        return _Dense(width, name="fc2")(ops.gelu(_Dense(self.hidden, name="fc1")(x)))


class _LayerScale(nn.Module):
    init: float

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.constant(self.init), (x.shape[-1],))


class _Block(nn.Module):
    heads: int
    mlp_ratio: int
    layer_scale: float | None
    eps: float

    @nn.compact
    def __call__(self, x):
        branches = (
            ("1", _Attention(self.heads, name="attention")),
            ("2", _Mlp(self.mlp_ratio * x.shape[-1], name="mlp")),
        )
        for number, branch in branches:
            y = branch(nn.LayerNorm(self.eps, name=f"norm{number}")(x))
            if self.layer_scale is not None:
                y = _LayerScale(self.layer_scale, name=f"layer_scale{number}")(y)
            x = x + y
        return x


class ViT(nn.Module):
    """A pre-norm Vision Transformer whose features are the class token of the normalised sequence.

    Attributes:
        width, depth, heads, mlp_ratio: the usual sizes.
        patch_size: pixels along a patch's side.
        grid: patches (down, across); the image is `grid * patch_size` pixels.
        layer_scale: initial LayerScale, or None for a network without.
        eps: LayerNorm's epsilon.

    Groups: `stem` (patches, class token, positions), `block_0` …, `norm`.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch_size: int = 16
    grid: tuple[int, int] = (14, 14)
    mlp_ratio: int = 4
    layer_scale: float | None = None
    eps: float = 1e-6

    @property
    def groups(self) -> tuple[str, ...]:
        return ("stem", *(f"block_{i}" for i in range(self.depth)), "norm")

    @property
    def feature_dim(self) -> int:
        return self.width

    def setup(self):
        self.stem = _Stem(self.width, self.patch_size, self.grid)
        self.block = [_Block(self.heads, self.mlp_ratio, self.layer_scale, self.eps) for _ in range(self.depth)]
        self.norm = nn.LayerNorm(self.eps)

    def __call__(
        self,
        x: Float[Array, "batch ..."],
        *,
        start: int = 0,
        stop: int | None = None,
        train: bool = False,
        frozen: Collection[str] = (),
    ) -> Float[Array, "batch ..."]:
        """Runs `groups[start:stop]`; see `ResNet.__call__`. There is no BatchNorm: `train` and `frozen` do nothing.

        Returns:
            The class token's features [batch, width] at the end, else the tokens [batch, 1 + patches, width]
            after `groups[stop - 1]`.
        """
        del train, frozen
        names = self.groups[start:stop]
        for layer in [self.stem, *self.block, self.norm][start:stop]:
            x = layer(x)
        return x[:, 0] if names and names[-1] == self.groups[-1] else x

    def for_image_size(self, size: int) -> "ViT":
        """The same network on another grid of patches.

        Raises:
            InputError: the patches do not tile the image.
        """
        if size % self.patch_size:
            raise InputError(f"image size {size} is no multiple of the patch size {self.patch_size}")
        return self.clone(grid=(size // self.patch_size,) * 2)

    def rules(self) -> dict[str, tuple[Rule, ...]]:
        """Whose names -> the table that converts them."""
        return {"timm": _timm_rules(), "hf_onnx": _hf_onnx_rules()}


def _timm_rules() -> tuple[Rule, ...]:
    block, target = r"blocks\.(\d+)\.", r"params/block_\1/"
    rules = [
        Rule(r"patch_embed\.proj\.weight", "params/stem/kernel", CONV),
        Rule(r"patch_embed\.proj\.bias", "params/stem/bias", SAME),
        Rule(r"cls_token", "params/stem/class_token", SAME),
        Rule(r"pos_embed", "params/stem/pos_embed", SAME),
        Rule(r"head\..*", None),
        Rule(r"norm\.weight", "params/norm/scale", SAME),
        Rule(r"norm\.bias", "params/norm/bias", SAME),
        Rule(rf"{block}norm(\d)\.weight", rf"{target}norm\2/scale", SAME),
        Rule(rf"{block}norm(\d)\.bias", rf"{target}norm\2/bias", SAME),
        Rule(rf"{block}ls(\d)\.gamma", rf"{target}layer_scale\2/scale", SAME),
    ]
    for source, name in (
        (r"attn\.qkv", "attention/qkv"),
        (r"attn\.proj", "attention/out"),
        (r"mlp\.(fc\d)", r"mlp/\2"),
    ):
        rules += [
            Rule(rf"{block}{source}\.weight", f"{target}{name}/kernel", LINEAR),
            Rule(rf"{block}{source}\.bias", f"{target}{name}/bias", SAME),
        ]
    return tuple(rules)


def _hf_onnx_rules() -> tuple[Rule, ...]:
    """transformers' Dinov2Model inside a larger network, exported to ONNX with its position embedding split in two.

    Linear kernels come as `MatMul` initializers, [in, out] already, which `weights.files` names by their node.
    """
    bias, node, target = r"backbone\.encoder\.layer\.(\d+)\.", r"/backbone/encoder/layer\.(\d+)/", r"params/block_\1/"
    rules = [
        Rule(r"backbone\.embeddings\.patch_embeddings\.projection\.weight", "params/stem/kernel", CONV),
        Rule(r"backbone\.embeddings\.patch_embeddings\.projection\.bias", "params/stem/bias", SAME),
        Rule(r"backbone\.embeddings\.cls_token", "params/stem/class_token", SAME),
        Rule(r"backbone\.layernorm\.weight", "params/norm/scale", SAME),
        Rule(r"backbone\.layernorm\.bias", "params/norm/bias", SAME),
        Rule(rf"{bias}norm(\d)\.weight", rf"{target}norm\2/scale", SAME),
        Rule(rf"{bias}norm(\d)\.bias", rf"{target}norm\2/bias", SAME),
        Rule(rf"{bias}layer_scale(\d)\.lambda1", rf"{target}layer_scale\2/scale", SAME),
        Rule(r"/backbone/embeddings/Concat_6_output_0#0", "params/stem/pos_embed", SAME, part=0, axis=1),
        Rule(r"/backbone/embeddings/Reshape_1_output_0#0", "params/stem/pos_embed", SAME, part=1, axis=1),
        Rule(r"decoder\..*", None),
    ]
    for part, name in enumerate(("query", "key", "value")):
        rules += [
            Rule(rf"{node}attention/attention/{name}/MatMul_output_0#1", f"{target}attention/qkv/kernel", SAME, part),
            Rule(rf"{bias}attention\.attention\.{name}\.bias", f"{target}attention/qkv/bias", SAME, part),
        ]
    for layer, name in (("attention/output/dense", "attention/out"), ("mlp/fc1", "mlp/fc1"), ("mlp/fc2", "mlp/fc2")):
        dots = layer.replace("/", r"\.")
        rules += [
            Rule(rf"{node}{layer}/MatMul_output_0#1", f"{target}{name}/kernel", SAME),
            Rule(rf"{bias}{dots}\.bias", f"{target}{name}/bias", SAME),
        ]
    return tuple(rules)
