"""A backbone that a user brings in a file of their own, by name."""

import dataclasses

import flax.linen as nn
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from tests.conftest import tiny_run
from tljax.checkpoints.workdir import Workdir
from tljax.errors import InputError
from tljax.models.base import Backbone, BackboneInput
from tljax.models.registry import BACKBONES, build, user_source
from tljax.training.trainer import train
from tljax.weights import pretrained

NAME = "my_backbone:SmallConvNet"


class NoGroups(Backbone):
    pass


class NoFeatureDim(Backbone):
    groups = ("stem",)


class NoLayer(NoFeatureDim):
    feature_dim = 4


class Stray(NoLayer):
    def setup(self):
        self.stem = nn.Dense(4)
        self.extra = nn.Dense(4)

    def pooled(self, x):
        return self.extra(super().pooled(x))


class OfOneSize(NoLayer):
    input_spec = BackboneInput("image", size=(8, 8))


class OfFeatures(NoLayer):
    input_spec = BackboneInput("features", width=3)


class Unhashable(NoLayer):
    widths: dict = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize("strategy", ["linear_probe", "full", "adapter"])
def test_it_trains_by_name(shapes, tmp_path, strategy):
    run = tiny_run(f"folder:{shapes}", NAME, tuning__strategy=strategy)
    assert run.layout.groups == ("stem", "block_0", "block_1", "head")
    before = flatten_dict(run.init_state().params, sep="/")
    train(run.experiment, tmp_path, prepared=run)
    with Workdir(tmp_path).checkpoints(run.experiment) as checkpoints:
        step = checkpoints.find_step("latest")
        after = flatten_dict(checkpoints.restore(step, run.abstract_state(step)).params, sep="/")
    moved = {path for path, leaf in before.items() if not np.array_equal(leaf, after[path])}
    assert {"head/kernel", "head/bias"} <= moved
    assert ("backbone/stem/kernel" in moved) == (strategy == "full")
    assert any("adapter_up" in path for path in moved) == (strategy == "adapter")


def test_its_own_mapping_loads_its_own_names(shapes, tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"embed": (8, 3, 4, 4), "body.0": (8, 8, 3, 3), "body.1": (8, 8, 3, 3)}
    arrays = {f"{name}.weight": rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    arrays |= {f"{name}.bias": rng.standard_normal(8).astype(np.float32) for name in sizes}
    save_file(arrays, tmp_path / "weights.safetensors")
    run = tiny_run(f"folder:{shapes}", NAME, backbone__weights=str(tmp_path / "weights.safetensors"))
    params = run.init_state().params["backbone"]
    np.testing.assert_array_equal(params["stem"]["kernel"], arrays["embed.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(params["block_1"]["conv"]["bias"], arrays["body.1.bias"])
    save_file(arrays | {"stray": arrays["embed.bias"]}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="no mapping for source stray"):
        run = tiny_run(f"folder:{shapes}", NAME, backbone__weights=str(tmp_path / "weights.safetensors"))
        run.init_state()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("tests.extending.test_backbone:NoGroups", {}, "NoGroups has no groups"),
        ("tests.extending.test_backbone:NoFeatureDim", {}, "NoFeatureDim has no feature_dim"),
        ("tests.extending.test_backbone:NoLayer", {}, "NoLayer has no stem (a layer that `setup` makes"),
        ("tests.extending.test_backbone:Stray", {}, "Stray has parameters in extra, which its `groups` do not name"),
        ("tests.extending.test_backbone:OfOneSize", {}, "OfOneSize takes images of 8 x 8 pixels and has no `resized`"),
        ("tests.extending.test_backbone:OfFeatures", {}, "OfFeatures reads features, and folder:"),
        (
            "tests.extending.test_backbone:Unhashable",
            {},
            "its attributes cannot be hashed: give them tuples, not lists or dicts",
        ),
        (NAME, {"tuning__strategy": "lora"}, "SmallConvNet has no adapter_targets"),
        (NAME, {"tuning__strategy": "prompt"}, "prompts are tokens of a transformer, and a SmallConvNet has none"),
        (NAME, {"backbone__pool": "max"}, "backbone.pool=max is nothing that"),
        ("my_backbone:SmalConvNet", {}, "did you mean SmallConvNet?"),
        ("my_backbones:SmallConvNet", {}, "no module my_backbones"),
        ("tests.conftest:tiny_run", {}, "is no backbone: give a subclass of tljax.models.base.Backbone"),
        ("vit_tiny", {}, "no backbone.name 'vit_tiny'"),
    ],
)
def test_what_is_missing_or_wrong_is_named_in_one_line(shapes, name, values, message):
    with pytest.raises(InputError) as error:
        tiny_run(f"folder:{shapes}", name, **values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_backbone_without_mappings_says_so_of_weights(shapes, tmp_path):
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "weights.safetensors")
    name = "tests.extending.test_backbone:WithoutMappings"
    with pytest.raises(InputError, match="WithoutMappings has no weight_mappings"):
        tiny_run(f"folder:{shapes}", name, backbone__weights=str(tmp_path / "weights.safetensors")).init_state()


class WithoutMappings(NoLayer):
    def setup(self):
        self.stem = nn.Dense(4)


def test_keys_of_caches_hold_a_users_source_and_none_of_ours():
    assert user_source(BACKBONES["resnet18"]) == ()
    assert len(*user_source(build(NAME, {}))) == 64


def test_an_instance_is_a_backbone_and_takes_the_attributes_of_a_checkpoint():
    assert build("tests.extending.test_backbone:WIDE", {}).feature_dim == 16
    assert build(NAME, {"width": 24}).feature_dim == 24
    assert pretrained.shapes(build(NAME, {"width": 24}))["params/stem/kernel"] == (4, 4, 3, 24)


WIDE = build(NAME, {"width": 16})
