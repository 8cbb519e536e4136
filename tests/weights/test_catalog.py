"""The catalog's rows against what timm says of its own weights."""

import json

import pytest

from tests.conftest import GOLDEN
from tljax.models.registry import BACKBONES
from tljax.weights import mappings
from tljax.weights.catalog import CATALOG

TIMM = {
    name: tags for file in sorted(GOLDEN.glob("timm_cfgs*.json")) for name, tags in json.loads(file.read_text()).items()
}
TAGS = [f"{name}.{tag}" for name, tags in TIMM.items() for tag in tags]


@pytest.mark.parametrize("name", TAGS)
def test_preprocessing_and_licence_are_timms(name):
    row, (backbone, tag) = CATALOG[name], name.split(".", 1)
    cfg, images = TIMM[backbone][tag], row.preprocessing
    assert (row.uri, row.backbone, row.source) == (f"hf://{cfg['hf_hub_id']}", backbone, "timm")
    assert row.licence.lower() == cfg["license"]
    assert [images.inputs, images.size, images.size] == cfg["input_size"]
    assert (images.crop_fraction, images.interpolation) == (cfg["crop_pct"], cfg["interpolation"])
    assert images.resize == {"center": "crop", "squash": "squash"}[cfg["crop_mode"]]
    for ours, theirs in ((images.mean, cfg["mean"]), (images.std, cfg["std"])):
        assert images.rescaled(ours) == pytest.approx(theirs, abs=1e-9)


def test_every_row_names_a_backbone_and_a_table_of_its():
    for backbone, source in {(row.backbone, row.source) for row in CATALOG.values()}:
        assert backbone in BACKBONES
        assert source in mappings.tables(BACKBONES[backbone]), backbone
