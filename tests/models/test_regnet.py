"""RegNets against timm's: golden outputs, every published name, configs there and back."""

import gzip
import json

import pytest

from tests.conftest import GOLDEN
from tests.models.test_convnext import IMAGES
from tests.models.test_resnet import check_manifest, check_repository, check_round_trip, weights_of
from tljax.errors import InputError
from tljax.models.registry import BACKBONES, attributes, build
from tljax.models.vision.regnet import RegNet
from tljax.weights import export_config, mappings
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import import_config

X = RegNet(depth=5, width_start=16, width_slope=8.0, width_factor=1.4, stem_width=8)
CASES = {"timm_regnetx": X, "timm_regnety": X.clone(squeeze=0.25, stem_width=16)}


@pytest.mark.parametrize("case", CASES)
def test_a_repository_is_its_config_and_its_weights_with_the_references_outputs(case, tmp_path):
    assert check_repository(case, tmp_path, cut=3) == CASES[case]


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_bits(case):
    check_round_trip(weights_of(case), CASES[case], "timm")


def test_stages_are_those_of_the_paper():
    """Table 4 of its appendix, RegNetY-4GF."""
    assert BACKBONES["regnety_040"].stages == [(2, 128, 64), (6, 192, 64), (12, 512, 64), (2, 1088, 64)]


@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else():
    """With every shape, of two of them; of the others the widths, from which the shapes follow."""
    manifests = json.loads(gzip.decompress((GOLDEN / "manifests_regnet.json.gz").read_bytes()))
    assert len(manifests) == 10
    for name, source in manifests.items():
        module = BACKBONES[name.removeprefix("timm/").split(".")[0]]
        rules = {rule.source for rule in mappings.tables(module)["timm"].mappings}
        names = {name for name in source if not name.endswith("num_batches_tracked")}
        assert names <= rules and all("downsample" in name for name in rules - names)
        for stage, (depth, *sizes) in enumerate(module.stages, 1):
            shapes = [source[f"s{stage}.b{i}.conv2.conv.weight"] for i in range(1, depth + 1)]
            assert shapes == [[*sizes, 3, 3]] * depth
    for name in ("regnetx_002.pycls_in1k", "regnety_008.pycls_in1k"):
        check_manifest(manifests[f"timm/{name}"], BACKBONES[name.split(".")[0]], "timm", changes="y" in name[:7])


@pytest.mark.parametrize("name", ["regnetx_002", "regnety_032"])
def test_a_config_that_is_written_is_read_back(tmp_path, name):
    module = BACKBONES[name].clone(depth=7, stem_width=16, pool="max")
    row = Pretrained("x", "", name, "", IMAGES, "MIT", classes=("disc", "square"))
    (tmp_path / "config.json").write_text(json.dumps(export_config.timm("RegNet", attributes(module), row)))
    again = import_config.read(tmp_path, "x")
    assert build(again.backbone, again.architecture) == module


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_min_ratio": 0.9}, "model_args.group_min_ratio=0.9 is not supported, only 0.0"),
        ({"downsample": "avg"}, 'model_args.downsample="avg" is not supported, only "conv1x1"'),
        ({"preact": True}, "model_args.preact=true is not supported, only false"),
    ],
)
def test_a_regnet_that_is_another_is_refused(tmp_path, arguments, message):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "regnety_032", "model_args": arguments}))
    with pytest.raises(InputError) as error:
        import_config.read(tmp_path, "x")
    assert message in str(error.value)
