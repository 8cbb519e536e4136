"""Strategies as data; that frozen leaves stay frozen is `test_freezing.py`."""

import json

import jax
import numpy as np
import optax
import pytest

from tests.conftest import GOLDEN
from tljax import tuning
from tljax.backbone import shapes
from tljax.errors import InputError
from tljax.models import BACKBONES
from tljax.tuning import Layout


def _layout(name: str) -> Layout:
    backbone = BACKBONES[name]
    paths = [path.removeprefix("params/") for path in shapes(backbone) if path.startswith("params/")]
    group_of = {f"backbone/{path}": path.split("/")[0] for path in paths}
    return Layout((*backbone.groups, "head"), group_of | {"head/kernel": "head", "head/bias": "head"})


VIT, RESNET = _layout("vit_tiny_patch16"), _layout("resnet18")


def _groups(layout: Layout, strategy: str, **arguments) -> dict[str, float]:
    """Group -> multiplier, where all paths of a group have the same."""
    tree = tuning.multipliers(strategy, arguments, layout)
    found: dict[str, set[float]] = {}
    for path, group in layout.group_of.items():
        value = tree
        for part in path.split("/"):
            value = value[part]
        found.setdefault(group, set()).add(value)
    assert all(len(values) == 1 for values in found.values())
    return {group: values.pop() for group, values in found.items()}


def test_layout_knows_every_group():
    for layout in (VIT, RESNET):
        assert set(layout.group_of.values()) == set(layout.groups)


def test_linear_probe_and_full():
    assert [group for group, m in _groups(VIT, "linear_probe").items() if m] == ["head"]
    assert set(_groups(RESNET, "full").values()) == {1.0}


def test_last_k_counts_blocks_and_takes_the_final_norm_along():
    moving = {group for group, m in _groups(VIT, "last_k", k=2).items() if m}
    assert moving == {"block_10", "block_11", "norm", "head"}
    assert {group for group, m in _groups(RESNET, "last_k", k=1).items() if m} == {"block_7", "head"}
    assert all(_groups(VIT, "last_k", k=13).values())


@pytest.mark.parametrize(
    ("case", "layout", "name_of"),
    [
        (
            "vit_12_blocks_class_token",
            VIT,
            {"stem": "patch_embed.proj.weight", "norm": "norm.weight", "head": "head.bias"},
        ),
        ("resnet18", RESNET, {"stem": "conv1.weight", "head": "fc.weight"}),
    ],
)
def test_layer_decay_is_timms_name_by_name(case, layout, name_of):
    golden = json.loads((GOLDEN / "numerics" / "layer_decay.json").read_text())["models"][case]
    scale = {name: pair[0] for name, pair in golden["name_to_lr_scale_and_weight_decay"].items()}
    for group, found in _groups(layout, "layer_decay", decay=0.75).items():
        if group in name_of:
            wanted = scale[name_of[group]]
        else:
            block = int(group.removeprefix("block_"))
            prefix = f"blocks.{block}." if layout is VIT else f"layer{block // 2 + 1}.{block % 2}."
            (wanted,) = {value for name, value in scale.items() if name.startswith(prefix)}
        assert found == pytest.approx(wanted, rel=1e-12), group


def test_pattern_takes_the_first_match():
    tree = tuning.multipliers("pattern", {"patterns": ((r"head/.*", 2.0), (r".*/bias", 1.0), (r".*", 0.0))}, VIT)
    assert tree["head"]["bias"] == 2.0
    assert tree["backbone"]["block_3"]["mlp"]["fc1"] == {"bias": 1.0, "kernel": 0.0}


@pytest.mark.parametrize(
    ("strategy", "arguments", "message"),
    [
        ("linear_prob", {}, "no tuning.strategy 'linear_prob'; there are: linear_probe, last_k"),
        ("last_k", {}, "last_k needs --config.tuning.k"),
        ("last_k", {"k": 14}, "tuning.k must be between 1 and 13, not 14"),
        ("full", {"k": 2}, "full takes no tuning.k; it takes: nothing"),
        ("layer_decay", {"decay": 1.5}, "tuning.decay must be above 0 and at most 1"),
        ("pattern", {"patterns": ((r"heed/.*", 1.0), (r".*", 0.0))}, "'heed/.*' decides no parameter"),
        ("pattern", {"patterns": ((r"head/.*", 1.0),)}, "no pattern covers backbone/"),
        ("pattern", {"patterns": ((r"(", 1.0),)}, "tuning.patterns must be ((regex, multiplier), …)"),
        ("pattern", {"patterns": ((r".*", 0.0),)}, "freezes everything"),
        ("pattern", {"patterns": ((r".*", -1.0),)}, "a multiplier is below 0"),
    ],
)
def test_what_cannot_be_used_is_named(strategy, arguments, message):
    with pytest.raises(InputError) as error:
        tuning.multipliers(strategy, arguments, VIT)
    assert message in str(error.value)


def test_select_and_merge_are_inverse_and_masked_leaves_vanish():
    params = {"a": np.ones(2), "b": {"c": np.zeros(3), "d": np.full(1, 7.0)}}
    multipliers = {"a": 0.0, "b": {"c": 0.5, "d": 0.0}}
    trainable = tuning.select(params, multipliers)
    assert [leaf.shape for leaf in jax.tree.leaves(trainable)] == [(3,)]
    assert isinstance(trainable["a"], optax.MaskedNode)
    merged = tuning.merge({"a": None, "b": {"c": np.ones(3), "d": None}}, params, multipliers)
    assert merged["a"] is params["a"]
    assert merged["b"]["d"] is params["b"]["d"]
    assert merged["b"]["c"].tolist() == [1, 1, 1]


def test_frozen_groups_have_nothing_that_moves():
    layout = Layout(("stem", "block_0", "head"), {"s": "stem", "b": "block_0", "c": "block_0", "h": "head"})
    assert tuning.frozen_groups(layout, {"s": 0.0, "b": 0.0, "c": 0.1, "h": 1.0}) == {"stem"}
