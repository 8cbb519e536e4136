"""ResNeXts, wide ResNets, SE-ResNets and ECA-Nets against timm's: golden outputs, every published name, configs."""

import gzip
import json

import pytest

from tests.conftest import GOLDEN
from tests.models.test_convnext import IMAGES
from tests.models.test_resnet import check_deep_manifest, check_repository, check_round_trip, weights_of
from tljax.errors import InputError
from tljax.models.registry import BACKBONES, attributes, build
from tljax.models.vision.resnet import ResNet
from tljax.weights import export_config
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import import_config

SMALL = ResNet(depths=(1, 1, 1, 1), widths=(8, 8, 12, 16))
CASES = {
    "timm_resnext50": SMALL.clone(cardinality=4, base_width=16),
    "timm_wide_resnet50_2": SMALL.clone(widths=(8, 8, 8, 8), base_width=128),
    "timm_seresnet50": SMALL.clone(attention="se"),
    "timm_ecaresnet50d": SMALL.clone(attention="eca", stem="deep", avg_down=True, stem_width=16),
}


@pytest.mark.parametrize("case", CASES)
def test_a_repository_is_its_config_and_its_weights_with_the_references_outputs(case, tmp_path):
    assert check_repository(case, tmp_path, cut=3) == CASES[case]


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_bits(case):
    check_round_trip(weights_of(case), CASES[case], "timm")


@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else():
    manifests = json.loads(gzip.decompress((GOLDEN / "manifests_resnext.json.gz").read_bytes()))
    assert len(manifests) == 9
    for name, source in manifests.items():
        changes = name in ("timm/seresnext50_32x4d.racm_in1k", "timm/ecaresnet50d.miil_in1k")
        module = BACKBONES[name.removeprefix("timm/").split(".")[0]]
        check_deep_manifest(source, module, "timm", changes, r"layer(\d)\.(\d+)")


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2", "seresnet50", "ecaresnet50d", "ecaresnetlight"])
def test_a_config_that_is_written_is_read_back(tmp_path, name):
    module = BACKBONES[name].clone(depths=(1, 2, 1, 1), widths=(8, 16, 24, 40), base_width=16)
    row = Pretrained("x", "", name, "", IMAGES, "MIT", classes=("disc", "square"))
    (tmp_path / "config.json").write_text(json.dumps(export_config.timm("ResNet", attributes(module), row)))
    again = import_config.read(tmp_path, "x")
    assert build(again.backbone, again.architecture) == module


@pytest.mark.parametrize(
    ("library", "changes", "message"),
    [
        ("timm", {"attention": "se"}, "timm has no such network: only attention='none', not 'se'"),
        ("transformers", {"attention": "eca"}, "transformers has no such network: only attention='none', not 'eca'"),
        ("transformers", {"cardinality": 4}, "transformers has no such network: only cardinality=1, not 4"),
    ],
)
def test_a_resnet_that_the_library_does_not_have(library, changes, message):
    row = Pretrained("x", "", "resnet50", "", IMAGES, "MIT")
    with pytest.raises(InputError) as error:
        getattr(export_config, library)("ResNet", attributes(SMALL.clone(**changes)), row)
    assert message in str(error.value)


def test_adapters_and_stochastic_depth_act_after_the_attention():
    assert CASES["timm_seresnet50"].residual_branches == r"block_\d+/attention"
    assert CASES["timm_resnext50"].residual_branches == r"block_\d+/conv3"
