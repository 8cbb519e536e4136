"""ConvNeXts against timm's and transformers': golden outputs, every published name, and configs there and back."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from tests.conftest import GOLDEN, golden
from tests.models.test_resnet import check_deep_manifest, check_repository, check_round_trip, converted, weights_of
from tljax.data.preprocessing import Preprocessing
from tljax.errors import InputError
from tljax.models.registry import BACKBONES, attributes, build
from tljax.models.vision.convnext import ConvNeXt, ResponseNorm
from tljax.weights import export_config
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import import_config

V1 = ConvNeXt(depths=(1, 1, 2, 1), widths=(8, 16, 24, 32))
V2 = V1.clone(layer_scale=None, response_norm=True)

# case: module, whose names
CASES = {
    "timm_convnext": (V1, "timm"),
    "timm_convnext_dinov3": (V1, "timm"),
    "timm_convnextv2": (V2.clone(conv_mlp=True), "timm"),
    "hf_convnext": (V1.clone(eps=1e-12), "hf"),
    "hf_convnextv2": (V2.clone(eps=1e-12), "hf"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_repository_is_its_config_and_its_weights_with_the_references_outputs(case, tmp_path):
    assert check_repository(case, tmp_path, cut=3) == CASES[case][0]


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_bits(case):
    check_round_trip(weights_of(case), *CASES[case])


def test_two_halves_are_the_whole_to_the_bit():
    params = converted(weights_of("timm_convnext"), V1, "timm")
    params = unflatten_dict({path: array for path, array in params.items() if path.startswith("params")}, sep="/")
    params, image = jax.tree.map(jnp.asarray, (params, golden("timm_convnext")[1]["image"][:1, :32, :32]))
    whole = V1.apply(params, image)
    for cut in (1, 5):
        np.testing.assert_array_equal(V1.apply(params, V1.apply(params, image, stop=cut), start=cut), whole)


MANIFESTS = {
    **{
        f"timm/{name}": (BACKBONES[name.split(".")[0]], "timm")
        for name in (
            *("convnext_atto.d2_in1k", "convnext_nano.in12k_ft_in1k", "convnext_tiny.in12k_ft_in1k"),
            *("convnext_small.in12k_ft_in1k", "convnext_base.fb_in22k_ft_in1k", "convnext_large.fb_in22k_ft_in1k"),
            *("convnext_tiny.dinov3_lvd1689m", "convnext_base.dinov3_lvd1689m"),
            *("convnextv2_atto.fcmae_ft_in1k", "convnextv2_nano.fcmae_ft_in22k_in1k"),
            *("convnextv2_tiny.fcmae_ft_in22k_in1k", "convnextv2_base.fcmae_ft_in22k_in1k"),
        )
    },
    "hf/facebook/convnext-tiny-224/ConvNextForImageClassification": (BACKBONES["convnext_tiny"], "hf"),
    "hf/facebook/convnextv2-tiny-1k-224/ConvNextV2ForImageClassification": (BACKBONES["convnextv2_tiny"], "hf"),
}


@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else():
    manifests = json.loads(gzip.decompress((GOLDEN / "manifests_convnext.json.gz").read_bytes()))
    assert set(manifests) == set(MANIFESTS)
    for name, source in manifests.items():
        changes = name in ("timm/convnextv2_atto.fcmae_ft_in1k", list(manifests)[-1])
        check_deep_manifest(source, *MANIFESTS[name], changes, r"stages\.(\d+)\.(?:blocks|layers)\.(\d+)")


IMAGES = Preprocessing(64, 0.875, (127.5,) * 3, (51.0,) * 3, "rgb", "bicubic")


@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_nano", "convnextv2_tiny", "convnextv2_atto"])
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_config_that_is_written_is_read_back(tmp_path, name, library):
    module = BACKBONES[name].clone(depths=(1, 2, 1, 1), widths=(8, 16, 24, 40))
    module = module.clone(pool="max") if library == "timm" else module.clone(eps=1e-12, conv_mlp=False)
    row = Pretrained("x", "", name, "", IMAGES, "MIT", classes=("disc", "square"))
    config = getattr(export_config, library)("ConvNeXt", attributes(module), row)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(export_config.processor(IMAGES)))
    again = import_config.read(tmp_path, "x")
    assert build(again.backbone, again.architecture) == module
    assert (again.classes, again.preprocessing.size) == (row.classes, 64)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("hf_convnext", {"hidden_act": "gelu_new"}, 'hidden_act="gelu_new" is not supported, only gelu'),
        ("hf_convnext", {"patch_size": 2}, "patch_size=2 is not supported, only 4"),
        ("hf_convnextv2", {"num_stages": 3}, "num_stages=3 is another number of stages"),
        ("timm_convnext", {"model_args": {"head_norm_first": True}}, "head_norm_first=true is not supported"),
        ("timm_convnext", {"model_args": {"norm_layer": "rmsnorm"}}, 'norm_layer="rmsnorm" is not supported'),
        ("timm_convnext", {"model_args": {"stem_type": "overlap"}}, 'stem_type="overlap" is not supported'),
    ],
)
def test_a_convnext_that_is_another_is_refused(tmp_path, case, changes, message):
    config = json.loads((GOLDEN / case / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError) as error:
        import_config.read(tmp_path, "x")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("library", "changes", "message"),
    [
        ("timm", {"eps": 1e-12}, "timm has no such network: only eps=1e-06, not 1e-12"),
        ("transformers", {"pool": "max"}, "transformers has no such network: only pool='mean', not 'max'"),
        ("transformers", {"response_norm": True}, "transformers has no such network: only layer_scale=None, not 1e-06"),
    ],
)
def test_a_convnext_that_the_library_does_not_have(library, changes, message):
    row = Pretrained("x", "", "convnext_tiny", "", IMAGES, "MIT")
    with pytest.raises(InputError) as error:
        getattr(export_config, library)("ConvNeXt", attributes(V1.clone(**changes)), row)
    assert message in str(error.value)


def test_a_silent_channel_has_a_gradient():
    """GRN takes the root of a channel's sum of squares, whose slope at 0 is infinite."""
    x = jnp.ones((1, 2, 2, 3)).at[..., 1].set(0)
    params = {"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}
    gradients = jax.grad(lambda params, x: jnp.sum(ResponseNorm().apply(params, x)), (0, 1))(params, x)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_images_smaller_than_the_stride_are_refused():
    assert V1.resized(32) == V1
    with pytest.raises(InputError, match="image size 31 is below the network's stride of 32"):
        V1.resized(31)
