"""Repositories of Swin, BEiT and EVA: read, written for either library, and the same bits in what is written."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.weights.test_pooling import folder_of
from tljax.cli.convert import convert
from tljax.config.schema import BackboneConfig
from tljax.weights import pretrained

CASES = [
    ("timm_swinv2", "timm", "swinv2_tiny_window8_256"),
    ("hf_swin", "hf", "SwinForImageClassification"),
    ("timm_beit", "timm", "beit_base_patch16_224"),
    ("hf_beit_shared_bias", "hf", "BeitForImageClassification"),
    ("timm_eva02_base", "timm", "eva02_base_patch14_224"),
]


@pytest.mark.parametrize(("case", "to", "name"), CASES)
def test_a_repository_goes_out_as_it_came_in(case, to, name, tmp_path):
    folder = folder_of(case, tmp_path / "r")
    convert(BackboneConfig(weights=str(folder)), tmp_path / "out", to=to)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("architecture") == name or config.get("architectures") == [name]
    source, back = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    for key in back.keys() & source.keys():
        assert back[key].tobytes() == source[key].tobytes(), key
    shared = [key for key in source if key not in back]  # which is in every block now
    assert shared == [key for key in source if key.startswith("beit.encoder.relative_position_bias.")]
    for key in back.keys() - source.keys():
        assert back[key].tobytes() == source[shared[0]].tobytes(), key
    rows = [pretrained.resolve_weights(BackboneConfig(weights=str(path))) for path in (folder, tmp_path / "out")]
    modules = [pretrained.module_of(row) for row in rows]
    assert pretrained.decided_by_name(modules[0]) == pretrained.decided_by_name(modules[1])
    assert (modules[0].grid, modules[0].pool) == (modules[1].grid, modules[1].pool)


def test_bias_tables_fit_images_of_another_size(tmp_path):
    folder = folder_of("timm_beit", tmp_path / "r")
    row = pretrained.resolve_weights(BackboneConfig(weights=str(folder)))
    module = pretrained.module_of(row).resized(48)
    params = pretrained.restore(row, module)["params"]
    for i in range(2):
        table = params[f"block_{i}"]["attention"]["bias_table"]
        assert table.shape == (11 * 11 + 3, 2) and np.all(np.isfinite(table))
