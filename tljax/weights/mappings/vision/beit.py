"""What BEiTs' parameters are called in the checkpoints that people have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tljax.weights.mapping import CONV, LINEAR, ParamMapping, Table, torch_linear, torch_norm

if TYPE_CHECKING:
    from tljax.models.vision.beit import BEiT

_COMPUTED = (r".*\.relative_position_index", r".*mask_token", r"lm_head\..*")


def tables(model: BEiT) -> dict[str, Table]:
    """Returns the table for each library whose names a checkpoint may have."""
    return {"timm": _timm(model), "hf": _hf(model)}


def _stem(patches: str, class_token: str, positions: str, has_positions: bool) -> Iterator[ParamMapping]:
    yield ParamMapping(f"{patches}.weight", "params/stem/kernel", CONV)
    yield ParamMapping(f"{patches}.bias", "params/stem/bias")
    yield ParamMapping(class_token, "params/stem/class_token")
    if has_positions:
        yield ParamMapping(positions, "params/stem/pos_embed")


def _timm(model: BEiT) -> Table:
    mappings = [
        *_stem("patch_embed.proj", "cls_token", "pos_embed", model.positions),
        *torch_norm("fc_norm" if model.pool == "mean" else "norm", "params/norm"),
        *torch_linear("head", "head"),
    ]
    for i in range(model.depth):
        source, target = f"blocks.{i}", f"params/block_{i}"
        width = model.width
        mappings += [
            *torch_norm(f"{source}.norm1", f"{target}/norm1"),
            *torch_norm(f"{source}.norm2", f"{target}/norm2"),
            ParamMapping(f"{source}.attn.qkv.weight", f"{target}/attention/qkv/kernel", LINEAR),
            ParamMapping(f"{source}.attn.q_bias", f"{target}/attention/qkv/bias", part=(0, width)),
            ParamMapping(f"{source}.attn.v_bias", f"{target}/attention/qkv/bias", part=(width, 2 * width)),
            ParamMapping(f"{source}.attn.relative_position_bias_table", f"{target}/attention/bias_table"),
            *torch_linear(f"{source}.attn.proj", f"{target}/attention/out"),
            *torch_linear(f"{source}.mlp.fc1", f"{target}/mlp/fc1"),
            *torch_linear(f"{source}.mlp.fc2", f"{target}/mlp/fc2"),
        ]
        if model.layer_scale is not None:
            mappings += [ParamMapping(f"{source}.gamma_{n}", f"{target}/gamma_{n}") for n in (1, 2)]
    blocks = tuple(f"blocks.{i}.attn.relative_position_bias_table" for i in range(model.depth))
    return Table(tuple(mappings), _COMPUTED, copies=(("rel_pos_bias.relative_position_bias_table", blocks),))


def _hf(model: BEiT) -> Table:
    """Returns the table of transformers' BEiT, as its files on the hub spell it; names in memory are aliases."""
    embeddings = "beit.embeddings"
    stem = f"{embeddings}.patch_embeddings.projection", f"{embeddings}.cls_token", f"{embeddings}.position_embeddings"
    mappings = [
        *_stem(*stem, model.positions),
        *torch_norm("beit.pooler.layernorm" if model.pool == "mean" else "beit.layernorm", "params/norm"),
        *torch_linear("classifier", "head"),
    ]
    tables = []
    for i in range(model.depth):
        source, target = f"beit.encoder.layer.{i}", f"params/block_{i}"
        inner, qkv, width = f"{source}.attention.attention", f"{target}/attention/qkv", model.width
        tables.append(f"{inner}.relative_position_bias.relative_position_bias_table")
        mappings += [
            *torch_norm(f"{source}.layernorm_before", f"{target}/norm1"),
            *torch_norm(f"{source}.layernorm_after", f"{target}/norm2"),
            *torch_linear(f"{source}.attention.output.dense", f"{target}/attention/out"),
            *torch_linear(f"{source}.intermediate.dense", f"{target}/mlp/fc1"),
            *torch_linear(f"{source}.output.dense", f"{target}/mlp/fc2"),
            ParamMapping(tables[-1], f"{target}/attention/bias_table"),
        ]
        for n, name in enumerate(("query", "key", "value")):
            part = n * width, (n + 1) * width
            mappings += [ParamMapping(f"{inner}.{name}.weight", f"{qkv}/kernel", LINEAR, part=part)]
        for n, name in enumerate(("query", "value")):
            mappings += [ParamMapping(f"{inner}.{name}.bias", f"{qkv}/bias", part=(n * width, (n + 1) * width))]
        if model.layer_scale is not None:
            mappings += [ParamMapping(f"{source}.lambda_{n}", f"{target}/gamma_{n}") for n in (1, 2)]
    aliases = [
        (r"^(?=(embeddings|encoder|layers|layernorm|pooler|shared_position_bias)\.)", "beit."),
        (r"^beit\.layers\.", "beit.encoder.layer."),
        (r"^beit\.shared_position_bias\.", "beit.encoder.relative_position_bias."),
        (r"(?<=\d)\.relative_position_bias\.", ".attention.attention.relative_position_bias."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ]
    aliases += [
        (rf"\.attention\.{name[0]}_proj\.", f".attention.attention.{name}.") for name in ("query", "key", "value")
    ]
    shared = ("beit.encoder.relative_position_bias.relative_position_bias_table", tuple(tables))
    return Table(tuple(mappings), _COMPUTED, tuple(aliases), copies=(shared,))
