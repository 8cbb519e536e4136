"""MobileNetV3 against timm's: golden outputs, every published name, configs there and back."""

import gzip
import json

import pytest
from flax.traverse_util import unflatten_dict

from tests.conftest import GOLDEN
from tests.models.test_convnext import IMAGES
from tests.models.test_resnet import check_bounds, check_manifest, check_round_trip, converted, weights_of
from tljax.errors import InputError
from tljax.models.registry import BACKBONES, attributes, build
from tljax.models.vision.mobilenetv3 import MobileNetV3
from tljax.weights import export_config
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import import_config

SMALL = MobileNetV3(
    depths=(1, 2, 2),
    widths=(8, 8, 16),
    sizes=(3, 3, 5),
    strides=(2, 2, 2),
    expansions=(1, 4.5, 3.67, 4, 4),
    squeezes=(0, 2),
    relu_stages=2,
    stem_width=8,
    last_width=48,
    head_width=40,
)
TF_LARGE = SMALL.clone(
    depths=(1, 1, 2),
    widths=(8, 8, 16),
    strides=(1, 2, 2),
    expansions=(1, 4, 3, 3),
    squeezes=(2,),
    relu_stages=3,
    padding="same",
    eps=1e-3,
)
LARGE = TF_LARGE.clone(
    depths=(1, 1, 2, 2),
    widths=(8, 8, 16, 16),
    sizes=(3, 3, 5, 3),
    strides=(1, 2, 2, 2),
    expansions=(1, 4, 3, 3, 6, 2.5),
    padding="symmetric",
    eps=1e-5,
)
CASES = {"timm_mobilenetv3_small": SMALL, "timm_mobilenetv3_large": LARGE, "timm_tf_mobilenetv3_large": TF_LARGE}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_references_in_two_halves(case):
    check_bounds(case, CASES[case], unflatten_dict(converted(weights_of(case), CASES[case], "timm"), sep="/"), cut=3)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_bits(case):
    check_round_trip(weights_of(case), CASES[case], "timm")


@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else():
    manifests = json.loads(gzip.decompress((GOLDEN / "manifests_mobilenetv3.json.gz").read_bytes()))
    assert len(manifests) == 4
    for name, source in manifests.items():
        module = BACKBONES[name.removeprefix("timm/").split(".")[0]]
        check_manifest(source, module, "timm", changes=name == "timm/mobilenetv3_small_050.lamb_in1k")


@pytest.mark.parametrize("name", ["mobilenetv3_small_075", "tf_mobilenetv3_large_100"])
def test_a_config_that_is_written_is_read_back(tmp_path, name):
    module = BACKBONES[name].clone(pool="avgmax")
    row = Pretrained("x", "", name, "", IMAGES, "MIT", classes=("disc", "square"))
    (tmp_path / "config.json").write_text(json.dumps(export_config.timm("MobileNetV3", attributes(module), row)))
    again = import_config.read(tmp_path, "x")
    assert build(again.backbone, again.architecture) == module
    with pytest.raises(InputError, match="timm has no such network: only relu_stages"):
        export_config.timm("MobileNetV3", attributes(module) | {"relu_stages": 0}, row)


def test_the_convolution_after_the_pooling_goes_with_the_head_and_the_one_before_is_a_block():
    assert SMALL.groups == ("stem", *(f"block_{i}" for i in range(6)), "conv_head")
    assert SMALL.pooled_norm
    assert SMALL.residual_branches == "block_(2|4)/(project|conv)"
