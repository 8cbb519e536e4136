"""EfficientNets and MobileNetV2 against timm's and transformers': golden outputs, and every published name."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from tests.conftest import GOLDEN, golden
from tests.models.test_resnet import check_manifest, check_round_trip, converted, outputs, weights_of
from tljax.models.registry import BACKBONES
from tljax.models.vision.efficientnet import EfficientNet
from tljax.weights import mappings
from tljax.weights.mapping import convert, unconvert
from tljax.weights.pretrained import optional, shapes

_TF = {"padding": "same", "eps": 1e-3}
B0 = EfficientNet(
    operators=("mbconv",) * 5,
    depths=(1, 2, 1, 2, 1),
    widths=(8, 8, 16, 16, 16),
    sizes=(3, 3, 5, 5, 3),
    strides=(1, 2, 2, 1, 2),
    expansions=(1, 6, 4, 4, 4),
    stem_width=8,
    head_width=40,
)
LITE0 = EfficientNet(
    operators=("mbconv",) * 4,
    depths=(1, 2, 1, 1),
    widths=(8, 8, 16, 24),
    sizes=(3, 3, 5, 3),
    strides=(1, 2, 2, 1),
    expansions=(1, 6, 4, 4),
    squeeze=0,
    activation="relu6",
    stem_width=8,
    head_width=40,
    **_TF,
)
V2 = EfficientNet(
    operators=("conv", "fused", "mbconv", "mbconv"),
    depths=(2, 2, 2, 1),
    widths=(8, 16, 16, 16),
    sizes=(3, 3, 3, 3),
    strides=(1, 2, 2, 1),
    expansions=(1, 4, 4, 6),
    stem_width=8,
    head_width=40,
)
MOBILENETV2 = EfficientNet(
    operators=("mbconv",) * 3,
    depths=(1, 2, 2),
    widths=(8, 8, 16),
    sizes=(3, 3, 3),
    strides=(1, 2, 2),
    expansions=(1, 6, 6),
    squeeze=0,
    activation="relu6",
    stem_width=8,
    head_width=40,
)
HF = EfficientNet(
    operators=("mbconv",) * 3,
    depths=(1, 2, 2),
    widths=(8, 8, 16),
    sizes=(3, 3, 5),
    strides=(2, 2, 2),
    expansions=(1, 6, 4),
    stem_width=8,
    head_width=320,
    **_TF,
)
HF_MOBILENETV2 = BACKBONES["mobilenetv2_100"].clone(
    widths=(8, 8, 8, 8, 16, 16, 32), stem_width=8, first_shortcut=False, head_width=128, **_TF
)

# case: module, whose names
CASES = {
    "timm_efficientnet_b0": (B0, "timm"),
    "timm_efficientnet_b0_at48x72": (B0, "timm"),
    "timm_tf_efficientnet_b0": (B0.clone(**_TF), "timm"),
    "timm_tf_efficientnet_b0_at50": (B0.clone(**_TF), "timm"),
    "timm_tf_efficientnet_lite0": (LITE0, "timm"),
    "timm_efficientnetv2_s": (V2, "timm"),
    "timm_tf_efficientnetv2_s": (V2.clone(**_TF), "timm"),
    "timm_mobilenetv2": (MOBILENETV2, "timm"),
    "hf_efficientnet": (HF, "hf"),
    "hf_mobilenet_v2": (HF_MOBILENETV2, "hf_mobilenet_v2"),
}


@pytest.mark.parametrize("case", CASES)
def test_feature_map_features_and_logits_are_the_references(case):
    facts, io = golden(case)
    module, names = CASES[case]
    tolerances = {
        name: facts["bound"] * facts["max_abs_output"][name] for name in ("feature_map", "features", "logits")
    }
    assert min(facts["max_abs_change_if"].values()) > tolerances["logits"], "a usual mistake would pass"
    actual = outputs(module, converted(weights_of(case), module, names), io["image"])
    assert actual["features"].shape[-1] == module.feature_dim
    for name, tolerance in tolerances.items():
        np.testing.assert_allclose(actual[name], io[name], atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize("case", ["timm_efficientnet_b0", "timm_tf_efficientnet_lite0", "timm_efficientnetv2_s"])
def test_a_network_runs_in_two_halves_as_in_one(case):
    module, names = CASES[case]
    variables = converted(weights_of(case), module, names)
    variables = {path: array for path, array in variables.items() if not path.startswith("head")}
    variables = jax.tree.map(jnp.asarray, unflatten_dict(variables, sep="/"))
    assert set(variables["params"]) == set(variables["batch_stats"]) == set(module.groups)
    image = jnp.asarray(golden(case)[1]["image"])
    whole = module.apply(variables, image, pool=False)
    for cut in (1, 3, len(module.groups) - 1):
        half = module.apply(variables, image, stop=cut)
        np.testing.assert_array_equal(module.apply(variables, half, start=cut, pool=False), whole)


@pytest.mark.parametrize("case", [case for case in CASES if golden(case)[0]["weights_from"] is None])
def test_there_and_back_is_the_same_bits(case):
    check_round_trip(weights_of(case), *CASES[case])


@pytest.mark.parametrize("module", [B0, LITE0])
def test_lukemelas_names_go_there_and_back(module):
    rng = np.random.default_rng(0)
    sizes = {path: [6 if n is None else n for n in shape] for path, shape in shapes(module).items()}
    ours = {path: rng.normal(size=shape).astype(np.float32) for path, shape in sizes.items()}
    table = mappings.tables(module)["lukemelas"]
    source = unconvert(ours, table)
    assert source["_blocks.1._depthwise_conv.weight"].shape == (48, 1, 3, 3)
    assert ("_blocks.0._se_reduce.bias" in source) == (module is B0)
    done = convert(source | {"_bn0.num_batches_tracked": np.zeros(())}, table, shapes(module), optional(module))
    assert done.ignored == ("_bn0.num_batches_tracked",)
    assert set(done.arrays) == set(ours)
    for path, value in ours.items():
        np.testing.assert_array_equal(done.arrays[path], value)


MANIFESTS = {
    **{
        f"timm/{name}": (BACKBONES[name.split(".")[0]], "timm")
        for name in (
            *("efficientnet_b0.ra_in1k", "efficientnet_b1.ra4_e3600_r240_in1k", "efficientnet_b2.ra_in1k"),
            *("efficientnet_b3.ra2_in1k", "efficientnet_b4.ra2_in1k", "tf_efficientnet_b0.ns_jft_in1k"),
            *("tf_efficientnet_b3.ns_jft_in1k", "tf_efficientnet_b7.ns_jft_in1k", "tf_efficientnet_lite0.in1k"),
            *("tf_efficientnet_lite4.in1k", "efficientnetv2_rw_t.ra2_in1k", "efficientnetv2_rw_s.ra2_in1k"),
            *("tf_efficientnetv2_s.in21k_ft_in1k", "tf_efficientnetv2_m.in21k_ft_in1k", "tf_efficientnetv2_b0.in1k"),
            *("mobilenetv2_100.ra_in1k", "mobilenetv2_140.ra_in1k"),
        )
    },
    "hf/google/efficientnet-b0/EfficientNetForImageClassification": (BACKBONES["tf_efficientnet_b0"], "hf"),
    "hf/google/mobilenet_v2_1.0_224/MobileNetV2ForImageClassification": (
        BACKBONES["mobilenetv2_100"].clone(**_TF),
        "hf_mobilenet_v2",
    ),
}


def manifests() -> dict[str, dict[str, list[int]]]:
    return json.loads(gzip.decompress((GOLDEN / "manifests_efficientnet.json.gz").read_bytes()))


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else(name):
    check_manifest(manifests()[name], *MANIFESTS[name])


def test_every_manifest_is_checked():
    assert set(manifests()) == set(MANIFESTS)


def test_stochastic_depth_and_adapters_act_on_branches_beside_which_there_is_a_shortcut():
    assert V2.residual_branches == "block_(0|1|3|5|6)/(project|conv)"
    assert [spec.is_residual for spec in B0.specs] == [True, False, True, False, True, True, False]
