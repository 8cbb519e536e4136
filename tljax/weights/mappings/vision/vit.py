"""What Vision Transformers' parameters are called in the checkpoints that people have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tljax.weights.mapping import CONV, LINEAR, ParamMapping, Table, torch_linear, torch_norm

if TYPE_CHECKING:
    from tljax.models.vision.vit import ViT


def tables(model: ViT) -> dict[str, Table]:
    """Returns the table for each library whose names a checkpoint may have."""
    return {
        "timm": timm(model),
        "hf": _hf(model),
        "hf_onnx": _hf_onnx(model),
        "google": _google(model),
        "dinov2": _dinov2(model),
        "torchvision": _torchvision(model),
    }


def attributes_in(model: ViT, names: Iterable[str]) -> dict[str, Any]:
    """Returns how a network pools, by the name of its last norm alone: `fc_norm` stands after a mean."""
    table = timm(model)
    ends = {table.canonical(name) for name in names} & {"norm.weight", "fc_norm.weight"}
    return {"pool": "mean"} if ends == {"fc_norm.weight"} else {}


def patches(model: ViT, source: str) -> Iterator[ParamMapping]:
    """Yields the convolution that makes tokens of patches, `source` in the file, as `model` has it."""
    yield ParamMapping(f"{source}.weight", "params/stem/kernel", CONV)
    if not model.pre_norm:
        yield ParamMapping(f"{source}.bias", "params/stem/bias")


def thirds(width: int) -> list[tuple[str, tuple[int, int]]]:
    """Returns query, key and value as parts of our joint projection."""
    return [(name, (i * width, (i + 1) * width)) for i, name in enumerate(("query", "key", "value"))]


def timm(model: ViT) -> Table:
    """Returns the table of timm's `VisionTransformer`, with what `model` has of its options."""
    mappings = [*patches(model, "patch_embed.proj"), *torch_linear("head", "head")]
    mappings += [ParamMapping("pos_embed", "params/stem/pos_embed"), *_ends(model)]
    if model.class_token:
        mappings += [ParamMapping("cls_token", "params/stem/class_token")]
    if model.distilled:
        mappings += [
            ParamMapping("dist_token", "params/stem/distillation_token"),
            *torch_linear("head_dist", "head_dist"),
        ]
    if model.registers:
        mappings += [ParamMapping("reg_token", "params/stem/registers")]
    for i in range(model.depth):
        source, target = f"blocks.{i}", f"params/block_{i}"
        mappings += [
            *torch_norm(f"{source}.norm1", f"{target}/norm1"),
            *torch_norm(f"{source}.norm2", f"{target}/norm2"),
            ParamMapping(f"{source}.attn.qkv.weight", f"{target}/attention/qkv/kernel", LINEAR),
            *torch_linear(f"{source}.attn.proj", f"{target}/attention/out"),
            *torch_linear(f"{source}.mlp.fc1", f"{target}/mlp/fc1"),
            *torch_linear(f"{source}.mlp.fc2", f"{target}/mlp/fc2"),
        ]
        if model.qkv_bias == "all":
            mappings += [ParamMapping(f"{source}.attn.qkv.bias", f"{target}/attention/qkv/bias")]
        if model.qk_norm:
            for name in ("q_norm", "k_norm"):
                mappings += torch_norm(f"{source}.attn.{name}", f"{target}/attention/{name}")
        if model.layer_scale is not None:
            mappings += [ParamMapping(f"{source}.ls{n}.gamma", f"{target}/layer_scale{n}/scale") for n in (1, 2)]
    # What masked pretraining has besides, in MAE's own files too.
    return Table(tuple(mappings), (r"mask_token", r"decoder_.*"))


def _ends(model: ViT) -> Iterator[ParamMapping]:
    """Yields the norms before and after the blocks, and attention that pools."""
    if model.pre_norm:
        yield from torch_norm("norm_pre", "params/stem/norm_pre")
    if model.final_norm:
        yield from torch_norm("fc_norm" if model.pooled_norm else "norm", "params/norm")
    if model.pool == "attention":
        width, target = model.width, "params/pooler"
        yield ParamMapping("attn_pool.latent", f"{target}/latent")
        yield from torch_linear("attn_pool.q", f"{target}/attention/qkv", (0, width))
        yield from torch_linear("attn_pool.kv", f"{target}/attention/qkv", (width, 3 * width))
        yield from torch_linear("attn_pool.proj", f"{target}/attention/out")
        yield from torch_norm("attn_pool.norm", f"{target}/norm")
        for layer in ("fc1", "fc2"):
            yield from torch_linear(f"attn_pool.mlp.{layer}", f"{target}/mlp/{layer}")


def _dinov2(model: ViT) -> Table:
    """Returns the table of DINOv2's own files: timm's names, but for registers, blocks in chunks, and heads.

    There the class token has a row of the position embeddings with registers too: see `fold_class_row`.
    """
    aliases = [(r"^register_tokens$", "reg_token"), (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.")]
    if model.gated:
        aliases += [(r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")]
    ignored = (r"mask_token", r"(dino|ibot)_head\..*")
    return Table(timm(model).mappings, ignored, tuple(aliases), class_row=model.positions == "patches")


def fold_class_row(arrays: dict[str, np.ndarray]) -> None:
    """Adds the first position embedding to the class token, where the network's positions have no row for it."""
    table = arrays["params/stem/pos_embed"]
    arrays["params/stem/class_token"] = arrays["params/stem/class_token"] + table[:, :1]
    arrays["params/stem/pos_embed"] = table[:, 1:]


def _torchvision(model: ViT) -> Table:
    """Returns the table of torchvision's VisionTransformer; before 0.12 its MLP's layers had other names."""
    mappings = [
        *patches(model, "conv_proj"),
        ParamMapping("class_token", "params/stem/class_token"),
        ParamMapping("encoder.pos_embedding", "params/stem/pos_embed"),
        *torch_norm("encoder.ln", "params/norm"),
        *torch_linear("heads.head", "head"),
    ]
    for i in range(model.depth):
        source, target = f"encoder.layers.encoder_layer_{i}", f"params/block_{i}"
        mappings += [
            *torch_norm(f"{source}.ln_1", f"{target}/norm1"),
            *torch_norm(f"{source}.ln_2", f"{target}/norm2"),
            ParamMapping(f"{source}.self_attention.in_proj_weight", f"{target}/attention/qkv/kernel", LINEAR),
            ParamMapping(f"{source}.self_attention.in_proj_bias", f"{target}/attention/qkv/bias"),
            *torch_linear(f"{source}.self_attention.out_proj", f"{target}/attention/out"),
            *torch_linear(f"{source}.mlp.0", f"{target}/mlp/fc1"),
            *torch_linear(f"{source}.mlp.3", f"{target}/mlp/fc2"),
        ]
    aliases = ((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3."))
    return Table(tuple(mappings), aliases=aliases)


def _hf(model: ViT) -> Table:
    """Returns the table of transformers' ViT and Dinov2 (with registers or not), as their files on the hub spell it.

    The two differ in a few words; LayerScale tells them apart. transformers 5 renamed modules in memory, and a file
    saved from a bare model lacks the prefix: aliases bring both back to the published spelling.
    """
    dinov2 = model.layer_scale is not None
    prefix = ("dinov2_with_registers" if model.registers else "dinov2") if dinov2 else "vit"
    norms = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
    dense = ("mlp.fc1", "mlp.fc2") if dinov2 else ("intermediate.dense", "output.dense")
    if model.gated:
        dense = ("mlp.weights_in", "mlp.weights_out")
    mappings = [
        *patches(model, f"{prefix}.embeddings.patch_embeddings.projection"),
        ParamMapping(f"{prefix}.embeddings.cls_token", "params/stem/class_token"),
        ParamMapping(f"{prefix}.embeddings.position_embeddings", "params/stem/pos_embed"),
        *torch_norm(f"{prefix}.layernorm", "params/norm"),
        *torch_linear("classifier", "head"),
    ]
    if model.registers:
        mappings += [ParamMapping(f"{prefix}.embeddings.register_tokens", "params/stem/registers")]
    for i in range(model.depth):
        source, target = f"{prefix}.encoder.layer.{i}", f"params/block_{i}"
        for n, (norm, layer) in enumerate(zip(norms, dense, strict=True), 1):
            mappings += [
                *torch_norm(f"{source}.{norm}", f"{target}/norm{n}"),
                *torch_linear(f"{source}.{layer}", f"{target}/mlp/fc{n}"),
            ]
        for name, part in thirds(model.width):
            mappings += torch_linear(f"{source}.attention.attention.{name}", f"{target}/attention/qkv", part)
        mappings += torch_linear(f"{source}.attention.output.dense", f"{target}/attention/out")
        if dinov2:
            mappings += [
                ParamMapping(f"{source}.layer_scale{n}.lambda1", f"{target}/layer_scale{n}/scale") for n in (1, 2)
            ]
    aliases = [
        (r"^(?=(embeddings|encoder|layers|layernorm|pooler)\.)", f"{prefix}."),
        (r"^vit\.layers\.", "vit.encoder.layer."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
    ]
    if not dinov2:
        aliases += [(r"\.mlp\.fc1\.", ".intermediate.dense."), (r"\.mlp\.fc2\.", ".output.dense.")]
    return Table(
        tuple(mappings),
        (rf"{prefix}\.embeddings\.mask_token", rf"{prefix}\.pooler\..*", r"decoder\..*"),
        tuple(aliases),
    )


def _hf_onnx(model: ViT) -> Table:
    """Returns the table of transformers' Dinov2Model in a larger network, in ONNX with its positions split in two.

    Linear kernels come as `MatMul` initializers, [in, out] already, which `weights.readers.files` names by their node.
    """
    count = model.grid[0] * model.grid[1]
    mappings = [
        *patches(model, "backbone.embeddings.patch_embeddings.projection"),
        ParamMapping("backbone.embeddings.cls_token", "params/stem/class_token"),
        ParamMapping("/backbone/embeddings/Concat_6_output_0#0", "params/stem/pos_embed", part=(0, 1), axis=1),
        ParamMapping("/backbone/embeddings/Reshape_1_output_0#0", "params/stem/pos_embed", part=(1, 1 + count), axis=1),
        *torch_norm("backbone.layernorm", "params/norm"),
    ]
    for i in range(model.depth):
        source, node, target = f"backbone.encoder.layer.{i}", f"/backbone/encoder/layer.{i}", f"params/block_{i}"
        layers = [(f"attention.attention.{name}", "attention/qkv", part) for name, part in thirds(model.width)]
        layers += [("attention.output.dense", "attention/out", None)]
        layers += [("mlp.fc1", "mlp/fc1", None), ("mlp.fc2", "mlp/fc2", None)]
        for name, ours, part in layers:
            kernel = f"{node}/{name.replace('.', '/')}/MatMul_output_0#1"
            mappings += [
                ParamMapping(kernel, f"{target}/{ours}/kernel", part=part),
                ParamMapping(f"{source}.{name}.bias", f"{target}/{ours}/bias", part=part),
            ]
        for n in (1, 2):
            mappings += [
                *torch_norm(f"{source}.norm{n}", f"{target}/norm{n}"),
                ParamMapping(f"{source}.layer_scale{n}.lambda1", f"{target}/layer_scale{n}/scale"),
            ]
    return Table(tuple(mappings), (r"decoder\..*",))


def _google(model: ViT) -> Table:
    """Returns the table of google-research/vision_transformer's `.npz`, where attention's heads have their own axis."""
    width, heads = model.width, model.heads
    split = (heads, width // heads)
    names = {"embedding": "params/stem", "head": "head", "Transformer/encoder_norm": "params/norm"}
    mappings = [
        ParamMapping("cls", "params/stem/class_token"),
        ParamMapping("Transformer/posembed_input/pos_embedding", "params/stem/pos_embed"),
        *(ParamMapping(f"{source}/bias", f"{target}/bias") for source, target in names.items()),
        ParamMapping("embedding/kernel", "params/stem/kernel"),
        ParamMapping("head/kernel", "head/kernel"),
        ParamMapping("Transformer/encoder_norm/scale", "params/norm/scale"),
    ]
    for i in range(model.depth):
        source, target = f"Transformer/encoderblock_{i}", f"params/block_{i}"
        attention = f"{source}/MultiHeadDotProductAttention_1"
        for name, part in thirds(width):
            mappings += [
                ParamMapping(
                    f"{attention}/{name}/kernel", f"{target}/attention/qkv/kernel", fold=(width, *split), part=part
                ),
                ParamMapping(f"{attention}/{name}/bias", f"{target}/attention/qkv/bias", fold=split, part=part),
            ]
        mappings += [
            ParamMapping(f"{attention}/out/kernel", f"{target}/attention/out/kernel", fold=(*split, width)),
            ParamMapping(f"{attention}/out/bias", f"{target}/attention/out/bias"),
        ]
        for n, (norm, layer) in enumerate((("LayerNorm_0", "Dense_0"), ("LayerNorm_2", "Dense_1")), 1):
            mappings += [
                ParamMapping(f"{source}/{norm}/{leaf}", f"{target}/norm{n}/{leaf}") for leaf in ("scale", "bias")
            ]
            mappings += [
                ParamMapping(f"{source}/MlpBlock_3/{layer}/{leaf}", f"{target}/mlp/fc{n}/{leaf}")
                for leaf in ("kernel", "bias")
            ]
    return Table(tuple(mappings), (r"pre_logits/.*",))
