"""What the parameters of CLIP's and SigLIP's image towers are called in the checkpoints that people have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tljax.weights.mapping import LINEAR, ParamMapping, Table, torch_linear, torch_norm
from tljax.weights.mappings.vision.vit import patches, thirds, timm

if TYPE_CHECKING:
    from tljax.models.vision.vit import ViT


def tables(model: ViT) -> dict[str, Table]:
    """Returns the table for each library whose names a checkpoint may have."""
    known = {"timm": timm(model), "hf": _hf(model)}
    return known | ({"open_clip": _open_clip(model)} if model.class_token else {})


# Of the other tower, and of how the two are compared.
_TEXTS = (r"text_model\..*", r"text_projection\.weight", r"logit_(scale|bias)", r".*\.embeddings\.position_ids")


def _hf(model: ViT) -> Table:
    """Returns the table of transformers' CLIP and SigLIP: of whole files, and of a vision model's, prefixed or not.

    CLIP's projection stands as the head, without a bias, as in timm.
    """
    tower, width = "vision_model", model.width
    rows = model.grid[0] * model.grid[1] + (model.class_token and model.positions == "all")
    mappings = [
        *patches(model, f"{tower}.embeddings.patch_embedding"),
        ParamMapping(f"{tower}.embeddings.position_embedding.weight", "params/stem/pos_embed", fold=(rows, width)),
    ]
    if model.class_token:
        mappings += [ParamMapping(f"{tower}.embeddings.class_embedding", "params/stem/class_token", fold=(width,))]
        mappings += [ParamMapping("visual_projection.weight", "head/kernel", LINEAR)]
    else:
        mappings += torch_linear("classifier", "head")
    if model.pre_norm:
        mappings += torch_norm(f"{tower}.pre_layrnorm", "params/stem/norm_pre")
    mappings += torch_norm(f"{tower}.post_layernorm", "params/norm")
    for i in range(model.depth):
        source, target = f"{tower}.encoder.layers.{i}", f"params/block_{i}"
        for n in (1, 2):
            mappings += torch_norm(f"{source}.layer_norm{n}", f"{target}/norm{n}")
            mappings += torch_linear(f"{source}.mlp.fc{n}", f"{target}/mlp/fc{n}")
        for name, part in thirds(width):
            mappings += torch_linear(f"{source}.self_attn.{name[0]}_proj", f"{target}/attention/qkv", part)
        mappings += torch_linear(f"{source}.self_attn.out_proj", f"{target}/attention/out")
    ignored = _TEXTS
    if model.pool == "attention":
        mappings += _hf_pooler(f"{tower}.head")
    else:
        ignored += (rf"{tower}\.head\..*",)
    aliases = ((r"^(?=(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.)", f"{tower}."),)
    return Table(tuple(mappings), ignored, aliases)


def _hf_pooler(source: str) -> Iterator[ParamMapping]:
    target = "params/pooler"
    yield ParamMapping(f"{source}.probe", f"{target}/latent")
    yield ParamMapping(f"{source}.attention.in_proj_weight", f"{target}/attention/qkv/kernel", LINEAR)
    yield ParamMapping(f"{source}.attention.in_proj_bias", f"{target}/attention/qkv/bias")
    yield from torch_linear(f"{source}.attention.out_proj", f"{target}/attention/out")
    yield from torch_norm(f"{source}.layernorm", f"{target}/norm")
    for layer in ("fc1", "fc2"):
        yield from torch_linear(f"{source}.mlp.{layer}", f"{target}/mlp/{layer}")


def _open_clip(model: ViT) -> Table:
    """Returns the table of OpenAI's and open_clip's files, whose projection is [width, out] and stands as the head."""
    width, rows = model.width, model.grid[0] * model.grid[1] + (model.positions == "all")
    mappings = [
        *patches(model, "visual.conv1"),
        ParamMapping("visual.class_embedding", "params/stem/class_token", fold=(width,)),
        ParamMapping("visual.positional_embedding", "params/stem/pos_embed", fold=(rows, width)),
        *torch_norm("visual.ln_pre", "params/stem/norm_pre"),
        *torch_norm("visual.ln_post", "params/norm"),
        ParamMapping("visual.proj", "head/kernel"),
    ]
    for i in range(model.depth):
        source, target = f"visual.transformer.resblocks.{i}", f"params/block_{i}"
        mappings += [
            *torch_norm(f"{source}.ln_1", f"{target}/norm1"),
            *torch_norm(f"{source}.ln_2", f"{target}/norm2"),
            ParamMapping(f"{source}.attn.in_proj_weight", f"{target}/attention/qkv/kernel", LINEAR),
            ParamMapping(f"{source}.attn.in_proj_bias", f"{target}/attention/qkv/bias"),
            *torch_linear(f"{source}.attn.out_proj", f"{target}/attention/out"),
            *torch_linear(f"{source}.mlp.c_fc", f"{target}/mlp/fc1"),
            *torch_linear(f"{source}.mlp.c_proj", f"{target}/mlp/fc2"),
        ]
    texts = ("transformer", "token_embedding", "ln_final", "text")
    alone = ("positional_embedding", "text_projection", "logit_scale", "logit_bias", "attn_mask")
    sizes = ("input_resolution", "context_length", "vocab_size")  # of OpenAI's archives
    return Table(tuple(mappings), (*(rf"{name}\..*" for name in texts), *alone, *sizes))
