"""What the parameters of DINOv3's Vision Transformers are called in the checkpoints that people have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tljax.weights.mapping import LINEAR, ParamMapping, Table, torch_linear, torch_norm
from tljax.weights.mappings.vision.vit import patches

if TYPE_CHECKING:
    from tljax.models.vision.vit import ViT


def tables(model: ViT) -> dict[str, Table]:
    """Returns the table for each library whose names a checkpoint may have."""
    return {"timm": _timm(model), "hf": _hf(model), "dinov3": _official(model)}


def _tokens(class_token: str, registers: str, model: ViT) -> Iterator[ParamMapping]:
    yield ParamMapping(class_token, "params/stem/class_token")
    if model.registers:
        yield ParamMapping(registers, "params/stem/registers")


def _bias_parts(model: ViT) -> dict[str, tuple[int, int]]:
    """Returns where query, key and value have their bias in our joint one, which has none for those without."""
    names = {"all": ("query", "key", "value"), "query_value": ("query", "value"), "none": ()}[model.qkv_bias]
    return {name: (i * model.width, (i + 1) * model.width) for i, name in enumerate(names)}


def _gated(model: ViT, gate: str, value: str, target: str) -> Iterator[ParamMapping]:
    """Yields a SwiGLU's two first layers, which are one of ours."""
    hidden = model.mlp_width or 4 * model.width
    yield from torch_linear(gate, f"{target}/mlp/fc1", (0, hidden))
    yield from torch_linear(value, f"{target}/mlp/fc1", (hidden, 2 * hidden))


def _block(model: ViT, source: str, target: str, scales: tuple[str, str]) -> Iterator[ParamMapping]:
    """Yields what every library calls alike."""
    for n, scale in enumerate(scales, 1):
        yield from torch_norm(f"{source}.norm{n}", f"{target}/norm{n}")
        if model.layer_scale is not None:
            yield ParamMapping(f"{source}.{scale}", f"{target}/layer_scale{n}/scale")


def _timm(model: ViT) -> Table:
    """Returns the table of timm's `Eva`."""
    mappings = [*patches(model, "patch_embed.proj"), *_tokens("cls_token", "reg_token", model)]
    mappings += [*torch_norm("fc_norm" if model.pooled_norm else "norm", "params/norm"), *torch_linear("head", "head")]
    for i in range(model.depth):
        source, target = f"blocks.{i}", f"params/block_{i}"
        mappings += _block(model, source, target, ("gamma_1", "gamma_2"))
        mappings += [ParamMapping(f"{source}.attn.qkv.weight", f"{target}/attention/qkv/kernel", LINEAR)]
        for name, part in _bias_parts(model).items():
            mappings += [ParamMapping(f"{source}.attn.{name[0]}_bias", f"{target}/attention/qkv/bias", part=part)]
        mappings += torch_linear(f"{source}.attn.proj", f"{target}/attention/out")
        if model.gated:
            mappings += _gated(model, f"{source}.mlp.fc1_g", f"{source}.mlp.fc1_x", target)
        else:
            mappings += torch_linear(f"{source}.mlp.fc1", f"{target}/mlp/fc1")
        mappings += torch_linear(f"{source}.mlp.fc2", f"{target}/mlp/fc2")
    return Table(tuple(mappings), (r"mask_token",))


def _hf(model: ViT) -> Table:
    """Returns the table of transformers' DINOv3ViT, as its files on the hub spell it."""
    mappings = [*patches(model, "embeddings.patch_embeddings"), *torch_norm("norm", "params/norm")]
    mappings += [*_tokens("embeddings.cls_token", "embeddings.register_tokens", model)]
    biases = _bias_parts(model)
    for i in range(model.depth):
        source, target = f"layer.{i}", f"params/block_{i}"
        mappings += _block(model, source, target, ("layer_scale1.lambda1", "layer_scale2.lambda1"))
        for n, name in enumerate(("query", "key", "value")):
            layer, part = f"{source}.attention.{name[0]}_proj", (n * model.width, (n + 1) * model.width)
            mappings += [ParamMapping(f"{layer}.weight", f"{target}/attention/qkv/kernel", LINEAR, part=part)]
            if name in biases:
                mappings += [ParamMapping(f"{layer}.bias", f"{target}/attention/qkv/bias", part=biases[name])]
        mappings += torch_linear(f"{source}.attention.o_proj", f"{target}/attention/out")
        if model.gated:
            mappings += _gated(model, f"{source}.mlp.gate_proj", f"{source}.mlp.up_proj", target)
        else:
            mappings += torch_linear(f"{source}.mlp.up_proj", f"{target}/mlp/fc1")
        mappings += torch_linear(f"{source}.mlp.down_proj", f"{target}/mlp/fc2")
    return Table(tuple(mappings), (r"embeddings\.mask_token",))


def _official(model: ViT) -> Table:
    """Returns the table of DINOv3's own files, which give the keys a bias, and a mask that takes it away.

    The periods of the rotation stand there in bfloat16. timm, transformers and this compute them in float32.
    """
    mappings = [*patches(model, "patch_embed.proj"), *_tokens("cls_token", "storage_tokens", model)]
    mappings += [*torch_norm("norm", "params/norm"), *torch_linear("head", "head")]
    keys = (model.width, 2 * model.width) if model.qkv_bias == "query_value" else None
    for i in range(model.depth):
        source, target = f"blocks.{i}", f"params/block_{i}"
        mappings += _block(model, source, target, ("ls1.gamma", "ls2.gamma"))
        mappings += [ParamMapping(f"{source}.attn.qkv.weight", f"{target}/attention/qkv/kernel", LINEAR)]
        if model.qkv_bias != "none":
            mappings += [ParamMapping(f"{source}.attn.qkv.bias", f"{target}/attention/qkv/bias", without=keys)]
        mappings += torch_linear(f"{source}.attn.proj", f"{target}/attention/out")
        if model.gated:
            mappings += _gated(model, f"{source}.mlp.w1", f"{source}.mlp.w2", target)
            mappings += torch_linear(f"{source}.mlp.w3", f"{target}/mlp/fc2")
        else:
            for layer in ("fc1", "fc2"):
                mappings += torch_linear(f"{source}.mlp.{layer}", f"{target}/mlp/{layer}")
    ignored = (r"mask_token", r"rope_embed\.periods", r".*\.attn\.qkv\.bias_mask", r"(dino|ibot)_head\..*")
    return Table(tuple(mappings), ignored)
