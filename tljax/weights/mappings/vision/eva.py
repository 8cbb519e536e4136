"""What EVAs' parameters are called in the checkpoints that people have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tljax.weights.mapping import CONV, LINEAR, ParamMapping, Table, torch_linear, torch_norm

if TYPE_CHECKING:
    from tljax.models.vision.eva import EVA


def tables(model: EVA) -> dict[str, Table]:
    """Returns the table for each library whose names a checkpoint may have."""
    return {"timm": _timm(model)}


def _timm(model: EVA) -> Table:
    mappings = [
        ParamMapping("patch_embed.proj.weight", "params/stem/kernel", CONV),
        ParamMapping("patch_embed.proj.bias", "params/stem/bias"),
        ParamMapping("cls_token", "params/stem/class_token"),
        ParamMapping("pos_embed", "params/stem/pos_embed"),
        *torch_norm("fc_norm" if model.pool == "mean" else "norm", "params/norm"),
        *torch_linear("head", "head"),
    ]
    for i in range(model.depth):
        source, target = f"blocks.{i}", f"params/block_{i}"
        mappings += [
            *torch_norm(f"{source}.norm1", f"{target}/norm1"),
            *torch_norm(f"{source}.norm2", f"{target}/norm2"),
            *_attention(model, f"{source}.attn", f"{target}/attention"),
            *_mlp(model, f"{source}.mlp", f"{target}/mlp"),
        ]
    return Table(tuple(mappings), (r"rope\..*", r".*\.rope\..*", r"mask_token"))


def _attention(model: EVA, source: str, target: str) -> Iterator[ParamMapping]:
    """Yields an attention, whose projections are apart where the MLP is normalized inside, as in what is published."""
    width, qkv = model.width, f"{target}/qkv"
    names = ("q_proj.bias", "v_proj.bias") if model.mlp_norm else ("q_bias", "v_bias")
    for n, name in enumerate(names):
        yield ParamMapping(f"{source}.{name}", f"{qkv}/bias", part=(n * width, (n + 1) * width))
    if model.mlp_norm:
        for n, name in enumerate(("q_proj", "k_proj", "v_proj")):
            part = n * width, (n + 1) * width
            yield ParamMapping(f"{source}.{name}.weight", f"{qkv}/kernel", LINEAR, part=part)
    else:
        yield ParamMapping(f"{source}.qkv.weight", f"{qkv}/kernel", LINEAR)
    if model.attention_norm:
        yield from torch_norm(f"{source}.norm", f"{target}/norm")
    yield from torch_linear(f"{source}.proj", f"{target}/out")


def _mlp(model: EVA, source: str, target: str) -> Iterator[ParamMapping]:
    if model.gated and model.mlp_norm:
        hidden = model.mlp_width
        yield from torch_linear(f"{source}.fc1_g", f"{target}/fc1", (0, hidden))
        yield from torch_linear(f"{source}.fc1_x", f"{target}/fc1", (hidden, 2 * hidden))
        yield from torch_norm(f"{source}.norm", f"{target}/norm")
    else:
        yield from torch_linear(f"{source}.fc1", f"{target}/fc1")
    yield from torch_linear(f"{source}.fc2", f"{target}/fc2")
