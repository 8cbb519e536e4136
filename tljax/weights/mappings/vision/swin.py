"""What Swin Transformers' parameters are called in the checkpoints that people have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tljax.models.convolution import blocks
from tljax.weights.mapping import CONV, LINEAR, ParamMapping, Table, torch_linear, torch_norm

if TYPE_CHECKING:
    from tljax.models.vision.swin import Swin

# What follows from the sizes of windows and maps, and older files have.
_COMPUTED = (r".*\.relative_position_index", r".*\.relative_coords_table", r".*\.attn_mask", r"mask_token")


def tables(model: Swin) -> dict[str, Table]:
    """Returns the table for each library whose names a checkpoint may have."""
    named = {"timm": _timm(model, "head.fc", 0), "microsoft": _timm(model, "head", 1)}
    return named | ({"hf": _hf(model)} if model.version == 1 else {})


def _ends(patches: str, patch_norm: str, norm: str, head: str) -> Iterator[ParamMapping]:
    yield ParamMapping(f"{patches}.weight", "params/stem/kernel", CONV)
    yield ParamMapping(f"{patches}.bias", "params/stem/bias")
    yield from torch_norm(patch_norm, "params/stem/norm")
    yield from torch_norm(norm, "params/norm")
    yield from torch_linear(head, "head")


def _merging(source: str, target: str) -> Iterator[ParamMapping]:
    yield from torch_norm(f"{source}.norm", f"{target}/merging/norm")
    yield ParamMapping(f"{source}.reduction.weight", f"{target}/merging/reduction/kernel", LINEAR)


def _timm(model: Swin, head: str, before: int) -> Table:
    """Returns the table of timm's names; Microsoft's own put what merges patches `before`, at the end of a stage."""
    mappings = [*_ends("patch_embed.proj", "patch_embed.norm", "norm", head)]
    for number, (stage, i) in enumerate(blocks(model.depths)):
        source, target = f"layers.{stage}.blocks.{i}", f"params/block_{number}"
        attention = f"{target}/attention"
        if stage and i == 0:
            mappings += _merging(f"layers.{stage - before}.downsample", target)
        mappings += [
            *torch_norm(f"{source}.norm1", f"{target}/norm1"),
            *torch_norm(f"{source}.norm2", f"{target}/norm2"),
            *torch_linear(f"{source}.attn.proj", f"{attention}/out"),
            *torch_linear(f"{source}.mlp.fc1", f"{target}/mlp/fc1"),
            *torch_linear(f"{source}.mlp.fc2", f"{target}/mlp/fc2"),
        ]
        if model.version == 1:
            mappings += torch_linear(f"{source}.attn.qkv", f"{attention}/qkv")
            mappings += [ParamMapping(f"{source}.attn.relative_position_bias_table", f"{attention}/bias_table")]
            continue
        heads, width, position_mlp = model.heads[stage], model.width * 2**stage, f"{attention}/position_mlp"
        mappings += torch_linear(f"{source}.attn.cpb_mlp.0", f"{position_mlp}/fc1")
        mappings += [
            ParamMapping(f"{source}.attn.qkv.weight", f"{attention}/qkv/kernel", LINEAR),
            ParamMapping(f"{source}.attn.q_bias", f"{attention}/qkv/bias", part=(0, width)),
            ParamMapping(f"{source}.attn.v_bias", f"{attention}/qkv/bias", part=(width, 2 * width)),
            ParamMapping(f"{source}.attn.cpb_mlp.2.weight", f"{position_mlp}/fc2/kernel", LINEAR),
            ParamMapping(f"{source}.attn.logit_scale", f"{attention}/logit_scale", fold=(heads, 1, 1)),
        ]
    return Table(tuple(mappings), _COMPUTED)


def _hf(model: Swin) -> Table:
    """Returns the table of transformers' Swin, as its files on the hub spell it; names in memory are aliases."""
    projection = "swin.embeddings.patch_embeddings.projection"
    mappings = [*_ends(projection, "swin.embeddings.norm", "swin.layernorm", "classifier")]
    for number, (stage, i) in enumerate(blocks(model.depths)):
        source, target = f"swin.encoder.layers.{stage}.blocks.{i}", f"params/block_{number}"
        attention, width = f"{target}/attention", model.width * 2**stage
        if stage and i == 0:
            mappings += _merging(f"swin.encoder.layers.{stage - 1}.downsample", target)
        mappings += [
            *torch_norm(f"{source}.layernorm_before", f"{target}/norm1"),
            *torch_norm(f"{source}.layernorm_after", f"{target}/norm2"),
            *torch_linear(f"{source}.attention.output.dense", f"{attention}/out"),
            *torch_linear(f"{source}.intermediate.dense", f"{target}/mlp/fc1"),
            *torch_linear(f"{source}.output.dense", f"{target}/mlp/fc2"),
            ParamMapping(f"{source}.attention.self.relative_position_bias_table", f"{attention}/bias_table"),
        ]
        for n, name in enumerate(("query", "key", "value")):
            part = n * width, (n + 1) * width
            mappings += torch_linear(f"{source}.attention.self.{name}", f"{attention}/qkv", part)
    aliases = [(r"^(?=(embeddings|encoder|layernorm)\.)", "swin.")]
    aliases += [(rf"\.attention\.{name[0]}_proj\.", f".attention.self.{name}.") for name in ("query", "key", "value")]
    aliases += [
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.attention\.relative_position_bias\.", ".attention.self."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ]
    return Table(tuple(mappings), (*_COMPUTED, r".*\.mask_token"), tuple(aliases))
