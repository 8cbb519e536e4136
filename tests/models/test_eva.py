"""EVA and EVA-02 against timm's: golden outputs, every published name, configs both ways."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import GOLDEN, golden
from tests.models.test_beit import arrays_of, check_golden, check_halves, weights_at
from tests.models.test_resnet import check_round_trip
from tests.models.test_swin import check_manifests
from tljax.data.preprocessing import Preprocessing
from tljax.errors import InputError
from tljax.models.registry import attributes, build
from tljax.models.rope import rotated_neighbors, scaled_angles
from tljax.models.vision.eva import EVA
from tljax.weights import export_config
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import import_config

EVA02 = EVA(width=24, depth=2, heads=2, mlp_width=64, grid=(4, 4), mlp_norm=False)
PLAIN = EVA02.clone(mlp_width=104, rotary=False, gated=False)
# case: module, file
CASES = {
    "timm_eva": (PLAIN, "timm_eva"),
    "timm_eva02": (EVA02, "timm_eva02"),
    "timm_eva02_at42x70": (EVA02.clone(grid=(3, 5)), "timm_eva02"),
    "timm_eva02_base": (EVA02.clone(mlp_norm=True), "timm_eva02_base"),
}


def arrays_at(case: str) -> dict[str, np.ndarray]:
    """A case's weights under our paths, resampled for its grid."""
    module, folder = CASES[case]
    return arrays_of(module, "timm", f"{folder}/weights.safetensors", (4, 4))


@pytest.mark.parametrize("case", CASES)
def test_tokens_features_and_logits_are_the_references(case):
    arrays = arrays_at(case)
    resampled = golden(case)[1].get("pos_embed_resampled")
    if resampled is not None:
        np.testing.assert_allclose(arrays["params/stem/pos_embed"], resampled, atol=1e-5, rtol=0)
    check_golden(case, CASES[case][0], arrays)


def test_a_network_runs_in_two_halves_as_in_one():
    check_halves("timm_eva02_base", CASES["timm_eva02_base"][0], arrays_at("timm_eva02_base"))


@pytest.mark.parametrize("case", ["timm_eva", "timm_eva02", "timm_eva02_base"])
def test_there_and_back_is_the_same_bits(case):
    module, folder = CASES[case]
    check_round_trip(weights_at(f"{folder}/weights.safetensors"), module, "timm")


def test_turned_queries_and_keys_see_displacements_alone():
    """And a grid of another size is that of 16 by 16 patches, seen from nearer or from further away."""
    angles = scaled_angles((4, 4), 8)
    assert angles.shape == (16, 4) and not np.any(angles[0])
    np.testing.assert_allclose(angles[5], [4, 0.04, 4, 0.04], rtol=1e-6)
    rng = np.random.default_rng(0)
    q, k = (jnp.tile(jnp.asarray(rng.standard_normal((1, 1, 1, 8), dtype=np.float32)), (1, 1, 17, 1)) for _ in "qk")
    scores = np.einsum("bhqd,bhkd->qk", rotated_neighbors(q, angles), rotated_neighbors(k, angles))
    np.testing.assert_allclose(scores[1, 6], scores[6, 11], atol=1e-5)  # both one down and one across
    assert abs(scores[1, 6] - scores[6, 1]) > 1e-2
    np.testing.assert_array_equal(rotated_neighbors(q, angles)[:, :, 0], q[:, :, 0])  # the class token


@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else():
    check_manifests("manifests_eva.json.gz", "", 9)


IMAGES = Preprocessing(56, 0.9, (127.5,) * 3, (51.0,) * 3, "rgb", "bicubic")
VARIANTS = [
    ("eva_giant_patch14", PLAIN),
    ("eva02_tiny_patch14", EVA02.clone(mlp_width=80)),
    ("eva02_base_patch14", EVA02.clone(mlp_norm=True)),
    ("eva02_large_patch14_448", EVA02.clone(mlp_norm=True)),
    ("eva02_base_patch16_clip", EVA02.clone(mlp_norm=True, attention_norm=True, pool="class")),
]


@pytest.mark.parametrize(("name", "module"), VARIANTS)
def test_a_config_that_is_written_is_read_back(tmp_path, name, module):
    row = Pretrained("x", "", name, "", IMAGES, "MIT", classes=("disc", "square"))
    config = export_config.timm("EVA", attributes(module), row)
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = import_config.read(tmp_path, "x")
    assert (again.backbone, build(again.backbone, again.architecture)) == (name, module)
    assert (again.classes, again.preprocessing) == (row.classes, IMAGES)
    with pytest.raises(InputError, match="transformers: no export of a EVA"):
        export_config.transformers("EVA", attributes(module), row)


@pytest.mark.parametrize("case", ["timm_eva", "timm_eva02", "timm_eva02_base"])
def test_timms_own_config_describes_the_network(case):
    row = import_config.read(GOLDEN / case, case)
    assert build(row.backbone, row.architecture) == CASES[case][0]
    assert (row.source, row.preprocessing.size) == ("timm", 56)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv_fused": False}, "qkv_fused=false is not supported, only true"),
        ({"scale_mlp": True, "swiglu_mlp": False}, "scale_mlp=true is not supported without swiglu_mlp"),
        ({"ref_feat_shape": [14, 14]}, "ref_feat_shape=[14, 14] is not supported, only 16"),
        ({"rope_rotate_half": True}, "rope_rotate_half=true is not supported, only false"),
        ({"num_reg_tokens": 4}, "num_reg_tokens=4 is not supported, only 0"),
    ],
)
def test_an_eva_that_is_another_is_refused(tmp_path, changes, message):
    config = json.loads((GOLDEN / "timm_eva02" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": config["model_args"] | changes}))
    with pytest.raises(InputError) as error:
        import_config.read(tmp_path, "x")
    assert message in str(error.value)
