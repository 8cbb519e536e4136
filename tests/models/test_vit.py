"""Vision Transformers against timm's, transformers' and Google's: golden outputs, and every published name."""

import gzip
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from tests.conftest import GOLDEN, golden
from tljax.errors import InputError
from tljax.models.vision.vit import ViT
from tljax.weights import mappings
from tljax.weights.adapt import resample_pos_embed
from tljax.weights.mapping import convert, unconvert
from tljax.weights.pretrained import optional, shapes
from tljax.weights.readers import files

pytestmark = pytest.mark.optimized

VIT = ViT(width=48, depth=3, heads=3, patch_size=8, grid=(4, 4))
SMALL = ViT(width=36, depth=2, heads=3, patch_size=8, grid=(4, 4))
DINOV2 = ViT(width=36, depth=2, heads=3, patch_size=14, grid=(5, 5), layer_scale=1e-5)
HF_DINOV2 = DINOV2.clone(layer_scale=1.0, pool="class_mean")

# case: module, whose names, files
CASES = {
    "timm_vit_cls": (VIT, "timm", "weights.safetensors"),
    "timm_vit_avg_fcnorm": (SMALL.clone(pool="mean"), "timm", "weights.safetensors"),
    "timm_vit_dinov2": (DINOV2, "timm", "weights.safetensors"),
    "timm_vit_dinov2_reg4": (DINOV2.clone(registers=4, positions="patches"), "timm", "weights.safetensors"),
    "timm_deit3": (SMALL.clone(layer_scale=1e-6, positions="patches"), "timm", "weights.safetensors"),
    "timm_deit_distilled": (SMALL.clone(distilled=True, pool="distilled"), "timm", "weights.safetensors"),
    "hf_vit": (SMALL.clone(mlp_width=80, eps=1e-12), "hf", "weights.safetensors weights_hub.safetensors"),
    "hf_dinov2": (HF_DINOV2, "hf", "weights.safetensors weights_hub.safetensors"),
    "google_vit_npz": (SMALL, "google", "weights.npz"),
}
FILES = [(case, file) for case, (_, _, names) in CASES.items() for file in names.split()]


def images(case: str) -> tuple[dict, dict[str, jax.Array]]:
    facts, io = golden(case)
    return facts, jax.tree.map(jnp.asarray, io)


def load(case: str, file: str = "") -> tuple[ViT, dict[str, np.ndarray]]:
    """The case's module, and its weights under our paths."""
    module, names, known = CASES[case]
    source = files.read(GOLDEN / case / (file or known.split()[0]))
    return module, convert(source, mappings.tables(module)[names], shapes(module), optional(module)).arrays


def variables(arrays: dict[str, np.ndarray]) -> dict:
    return jax.tree.map(jnp.asarray, unflatten_dict(arrays, sep="/"))


@pytest.mark.parametrize(("case", "file"), FILES)
def test_tokens_features_and_logits_are_the_references(case, file):
    facts, io = images(case)
    assert min(facts["max_abs_change_if"].values()) > 2e-5, "a usual mistake would pass"
    module, arrays = load(case, file)
    weights = variables(arrays)
    tokens = module.apply(weights, io["image"], pool=False)
    features = module.apply(weights, io["image"])
    logits = features @ weights["head"]["kernel"] + weights["head"]["bias"]
    if module.distilled:  # a head for each of the two tokens
        other = tokens[:, 1] @ weights["head_dist"]["kernel"] + weights["head_dist"]["bias"]
        logits = (tokens[:, 0] @ weights["head"]["kernel"] + weights["head"]["bias"] + other) / 2
    for name, found in (("tokens", tokens), ("features", features), ("logits", logits)):
        np.testing.assert_allclose(found, io[name], atol=2e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    ("case", "weights", "grid", "rule"),
    [
        ("timm_vit_cls_at48", "timm_vit_cls", (6, 6), "bicubic_antialias"),
        ("timm_vit_cls_at24", "timm_vit_cls", (3, 3), "bicubic_antialias"),
        ("timm_vit_cls_at40x56", "timm_vit_cls", (5, 7), "bicubic_antialias"),
        ("timm_vit_dinov2_at42", "timm_vit_dinov2", (3, 3), "bicubic_antialias"),
        ("hf_dinov2_at42", "hf_dinov2", (3, 3), "bicubic"),
    ],
)
def test_features_at_another_size(case, weights, grid, rule):
    _, io = images(case)
    module, arrays = load(weights)
    path = "params/stem/pos_embed"
    arrays[path] = resample_pos_embed(arrays[path], module.grid, grid, rule)
    if "pos_embed_resampled" in io:
        np.testing.assert_allclose(arrays[path], io["pos_embed_resampled"], atol=1e-5, rtol=0)
    features = module.clone(grid=grid).apply(variables(arrays), io["image"])
    np.testing.assert_allclose(features, io["features"], atol=2e-5, rtol=0)


def test_a_file_saved_from_the_bare_model_has_no_prefix_and_no_head():
    _, io = images("hf_dinov2_base")
    source = files.read(GOLDEN / "hf_dinov2" / "weights_hub.safetensors")
    bare = {name.removeprefix("dinov2."): value for name, value in source.items() if "classifier" not in name}
    module = HF_DINOV2.clone(pool="class")
    arrays = convert(bare, mappings.tables(module)["hf"], shapes(module), optional(module)).arrays
    np.testing.assert_allclose(module.apply(variables(arrays), io["image"]), io["features"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("case", "file"), FILES)
def test_there_and_back_is_the_same_bits(case, file):
    module, arrays = load(case, file)
    table = mappings.tables(module)[CASES[case][1]]
    source = files.read(GOLDEN / case / file)
    back = unconvert(arrays, table)
    kept = {name: value for name, value in source.items() if "mask_token" not in name}
    assert set(back) == {table.canonical(name) for name in kept}
    for name, value in kept.items():
        found = back[table.canonical(name)]
        assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes()), name


def test_registers_have_a_prefix_of_their_own_in_transformers():
    for registers, prefix in ((0, "dinov2."), (4, "dinov2_with_registers.")):
        rules = mappings.tables(HF_DINOV2.clone(registers=registers))["hf"].mappings
        assert all(rule.source.startswith((prefix, "classifier.")) for rule in rules)


BASE = {"width": 768, "heads": 12}
DINO = {"patch_size": 14, "grid": (37, 37), "layer_scale": 1e-5}
MANIFESTS = {
    "timm/vit_tiny_patch16_224": (ViT(width=192, heads=3), "timm"),
    "timm/vit_small_patch16_224": (ViT(), "timm"),
    "timm/vit_base_patch16_224": (ViT(**BASE), "timm"),
    "timm/vit_large_patch16_224": (ViT(width=1024, depth=24, heads=16), "timm"),
    "timm/vit_base_patch32_224": (ViT(**BASE, patch_size=32, grid=(7, 7)), "timm"),
    "timm/vit_small_patch14_dinov2": (ViT(**DINO), "timm"),
    "timm/vit_base_patch14_dinov2": (ViT(**BASE, **DINO), "timm"),
    "timm/vit_large_patch14_dinov2": (ViT(width=1024, depth=24, heads=16, **DINO), "timm"),
    "timm/vit_small_patch14_reg4_dinov2": (ViT(**DINO, registers=4, positions="patches"), "timm"),
    "timm/deit_small_patch16_224": (ViT(), "timm"),
    "timm/deit3_small_patch16_224": (ViT(layer_scale=1e-6, positions="patches"), "timm"),
    "hf/google/vit-base-patch16-224/ViTForImageClassification": (ViT(**BASE, eps=1e-12), "hf"),
    "hf/google/vit-base-patch16-224-in21k/ViTModel": (ViT(**BASE, eps=1e-12), "hf"),
    "hf/facebook/dinov2-small/Dinov2Model": (ViT(**DINO), "hf"),
    # Made with that class's default sizes, which are not the published ones.
    "hf/facebook/dinov2-with-registers-small/Dinov2WithRegistersModel": (
        ViT(patch_size=16, grid=(32, 32), layer_scale=1.0, registers=4),
        "hf",
    ),
}


def manifests() -> dict[str, dict[str, list[int]]]:
    return json.loads(gzip.decompress((GOLDEN / "manifests_vit.json.gz").read_bytes()))


def empty(names: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Arrays of those shapes that take no memory."""
    return {name: np.broadcast_to(np.zeros((), np.float32), shape) for name, shape in names.items()}


def test_every_manifest_is_here():
    assert set(manifests()) == {*MANIFESTS, *(name.replace("hf/", "hf_hub/") for name in MANIFESTS if name[:2] == "hf")}


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else(name):
    module, names = MANIFESTS[name]
    table, targets = mappings.tables(module)[names], shapes(module)
    for spelling in {name, name.replace("hf/", "hf_hub/")}:
        source = manifests()[spelling]
        done = convert(empty(source), table, targets, optional(module))
        assert set(targets) - set(done.arrays) <= optional(module)
        used = [one for one in source if one not in done.ignored and not one.startswith(("head.", "classifier."))]
        for one in used[:: len(used) // 3]:
            without = {key: shape for key, shape in source.items() if key != one}
            for said, changed in (
                (f"no mapping for source {one}_", source | {f"{one}_": [1]}),
                (one, source | {one: [*source[one], 2]}),
                ("target ", without),
            ):
                with pytest.raises(InputError, match=re.escape(said)):
                    convert(empty(changed), table, targets, optional(module))
