"""Backbones against timm's own outputs, and what every backbone promises the rest of the package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests import conftest
from tests.conftest import GOLDEN
from tljax.backbone import shapes
from tljax.errors import InputError
from tljax.models.resnet import ResNet
from tljax.models.vit import ViT
from tljax.weights import files
from tljax.weights.rules import convert
from tljax.weights.surgery import resample_pos_embed

VIT = ViT(width=48, depth=3, heads=3, patch_size=8, grid=(4, 4))
DINOV2 = ViT(width=36, depth=2, heads=3, patch_size=14, grid=(5, 5), layer_scale=1e-5)
BASIC = ResNet(depths=(1, 1, 1, 2), widths=(64, 16, 20, 24), kind="basic")
BOTTLENECK = ResNet(depths=(1, 2, 1, 1), widths=(12, 16, 20, 24))

# Absolute, float32: the reference's own rounding is within 1.3e-5 on ResNets and 4e-6 on ViTs.
CASES = [
    ("timm_vit_cls", VIT, "timm", 2e-5),
    ("timm_vit_dinov2", DINOV2, "timm", 2e-5),
    ("timm_resnet_basic", BASIC, "torch", 5e-5),
    ("timm_resnet_bottleneck", BOTTLENECK, "torch", 5e-5),
]


def golden(name: str) -> tuple[dict, dict[str, jax.Array]]:
    case, io = conftest.golden(name)
    return case, jax.tree.map(jnp.asarray, io)


def load(name: str, module, source: str) -> dict:
    arrays = files.read(GOLDEN / name / "weights.safetensors")
    done = convert(arrays, module.rules()[source], shapes(module))
    return jax.tree.map(jnp.asarray, unflatten_dict(done.arrays, sep="/"))


@pytest.mark.parametrize(("name", "module", "source", "tolerance"), CASES)
def test_features_are_the_references(name, module, source, tolerance):
    case, io = golden(name)
    assert tolerance < min(case["max_abs_change_if"].values()), "a usual mistake would pass"
    features = module.apply(load(name, module, source), io["image"])
    np.testing.assert_allclose(features, io["features"], atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("name", "weights", "module", "grid"),
    [
        ("timm_vit_dinov2_at42", "timm_vit_dinov2", DINOV2, (3, 3)),
        ("timm_vit_cls_at40x56", "timm_vit_cls", VIT, (5, 7)),
    ],
)
def test_features_at_another_size(name, weights, module, grid):
    _, io = golden(name)
    variables = load(weights, module, "timm")
    stem = variables["params"]["stem"]
    table = np.asarray(stem["pos_embed"])
    stem["pos_embed"] = jnp.asarray(resample_pos_embed(table, module.grid, grid, "bicubic_antialias"))
    features = module.clone(grid=grid).apply(variables, io["image"])
    np.testing.assert_allclose(features, io["features"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("name", "module", "source", "tolerance"), CASES)
def test_running_the_groups_in_two_halves_is_running_them_all(name, module, source, tolerance):
    _, io = golden(name)
    variables = load(name, module, source)
    whole = module.apply(variables, io["image"])
    for cut in range(len(module.groups) + 1):
        half = module.apply(variables, io["image"], stop=cut)
        np.testing.assert_array_equal(
            module.apply(variables, half, start=cut) if cut < len(module.groups) else half, whole
        )


@pytest.mark.parametrize(("name", "module", "source", "tolerance"), CASES)
def test_groups_are_the_parameters_top_level_and_features_have_the_published_width(name, module, source, tolerance):
    _, io = golden(name)
    assert set(load(name, module, source)["params"]) == set(module.groups)
    assert io["features"].shape[-1] == module.feature_dim


def test_stride_sits_on_the_first_1x1_in_v1():
    _, io = golden("timm_resnet_bottleneck")
    variables = load("timm_resnet_bottleneck", BOTTLENECK, "torch")
    moved = BOTTLENECK.clone(stride_on="1x1").apply(variables, io["image"])
    assert abs(moved - io["features"]).max() > 0.1  # the same weights, another network


def test_batch_norm_of_a_frozen_group_keeps_its_statistics_and_the_others_move():
    _, io = golden("timm_resnet_basic")
    variables = load("timm_resnet_basic", BASIC, "torch")
    frozen = ("stem", "block_0", "block_1")
    _, updated = BASIC.apply(variables, io["image"], train=True, frozen=frozen, mutable=["batch_stats"])
    for path, before in flatten_dict(variables["batch_stats"]).items():
        same = np.array_equal(before, flatten_dict(updated["batch_stats"])[path])
        assert same == (path[0] in frozen), path


def test_frozen_groups_give_the_same_bits_in_training():
    _, io = golden("timm_resnet_basic")
    variables = load("timm_resnet_basic", BASIC, "torch")
    calm = BASIC.apply(variables, io["image"], stop=3)
    busy, _ = BASIC.apply(variables, io["image"], stop=3, train=True, frozen=BASIC.groups[:3], mutable=["batch_stats"])
    np.testing.assert_array_equal(calm, busy)


def test_a_size_that_patches_do_not_tile_is_refused():
    with pytest.raises(InputError, match="image size 225 is no multiple of the patch size 14"):
        DINOV2.for_image_size(225)


def test_initial_residual_branches_of_a_resnet_are_silent():
    variables = jax.jit(BASIC.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert not np.any(variables["params"]["block_4"]["conv2"]["norm"]["scale"])
