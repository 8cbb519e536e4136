"""Runs that go to transformers: pooled as its classifier pools, and with the problem that its pipeline asks for."""

import json

import pytest
from safetensors.numpy import load_file

from tests.conftest import tiny_run
from tests.weights.test_pooling import folder_of
from tljax.cli.convert import convert
from tljax.config.schema import BackboneConfig
from tljax.errors import InputError
from tljax.training.trainer import train
from tljax.weights import pretrained


def test_a_run_on_dinov2_goes_to_transformers_where_it_pools_as_its_classifier_does(shapes, tmp_path):
    folder = folder_of("hf_dinov2_reg", tmp_path / "weights")
    for pool in ("class", "class_mean"):
        keys = {"backbone__weights": str(folder), "backbone__pool": pool, "task__image_size": 56, "steps": 1}
        run = tiny_run(f"folder:{shapes}", "", tuning__strategy="linear_probe", **keys)
        train(run.experiment, tmp_path / pool, prepared=run)
    with pytest.raises(InputError, match=r"DINOv2 classifier reads class_mean: train with backbone\.pool=class_mean"):
        convert(BackboneConfig(weights=str(tmp_path / "class")), tmp_path / "no", to="hf")
    assert not (tmp_path / "no").exists()
    convert(BackboneConfig(weights=str(tmp_path / "class_mean")), tmp_path / "hf", to="hf")
    found = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert found["problem_type"] == "single_label_classification"
    assert found["id2label"] == {"0": "disc", "1": "square"}
    assert load_file(tmp_path / "hf" / "model.safetensors")["classifier.weight"].shape == (2, 32)
    again = pretrained.resolve_weights(BackboneConfig(weights=str(tmp_path / "hf")))
    assert (pretrained.module_of(again).pool, again.problem, again.preprocessing.size) == (
        "class_mean",
        "single_label",
        56,
    )
