"""Strategies as data; that frozen leaves stay frozen is `test_freezing.py`."""

import json
import re

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from tests.conftest import GOLDEN
from tljax.config.tuning import TuningConfig
from tljax.errors import InputError
from tljax.models.registry import BACKBONES
from tljax.tuning.masks import combine, partition
from tljax.tuning.multipliers import digest, frozen_groups, multiplier_tree
from tljax.tuning.strategies import Layout
from tljax.weights.pretrained import shapes


def _layout(name: str) -> Layout:
    return _layout_of(BACKBONES[name])


def _layout_of(backbone) -> Layout:
    paths = [path.removeprefix("params/") for path in shapes(backbone) if path.startswith("params/")]
    group_of = {f"backbone/{path}": path.split("/")[0] for path in paths}
    heads = {"head/kernel": "head", "head/bias": "head"}
    return Layout((*backbone.groups, "head"), group_of | heads, backbone.pooled_norm)


VIT, RESNET = _layout("vit_tiny_patch16"), _layout("resnet18")


def _groups(layout: Layout, strategy: str, **arguments) -> dict[str, float]:
    """Group -> multiplier, where all paths of a group have the same."""
    tree = multiplier_tree(strategy, arguments, layout)
    multipliers: dict[str, set[float]] = {}
    for path, group in layout.group_of.items():
        value = tree
        for part in path.split("/"):
            value = value[part]
        multipliers.setdefault(group, set()).add(value)
    assert all(len(values) == 1 for values in multipliers.values())
    return {group: values.pop() for group, values in multipliers.items()}


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


def _group_in_timm(name: str, module) -> str:
    """The group of ours that a parameter of timm's belongs to."""
    if name.startswith("blocks."):
        return f"block_{name.split('.')[1]}"
    if numbers := re.match(r"(?:stages\.|layer)(\d)\.(?:blocks\.)?(\d+)\.", name):
        stage, i = int(numbers[1]) - name.startswith("layer"), int(numbers[2])
        return f"block_{sum(module.depths[:stage]) + i}"
    if name.startswith(("fc.", "head")):
        return "head"
    return "norm" if name.startswith(("norm.", "fc_norm.")) else "stem"


@pytest.mark.parametrize(
    ("case", "module"),
    [
        ("vit_12_blocks_class_token", BACKBONES["vit_tiny_patch16"]),
        ("vit_12_blocks_avg_fc_norm", BACKBONES["vit_tiny_patch16"].clone(pool="mean")),
        ("vit_12_blocks_reg_layerscale", BACKBONES["vit_small_patch14_reg4_dinov2"]),
        ("deit_12_blocks_distilled", BACKBONES["deit_small_distilled_patch16"]),
        ("resnet18", BACKBONES["resnet18"]),
        ("resnet50", BACKBONES["resnet50"]),
        ("resnetv2_50x1_bit", BACKBONES["resnetv2_50x1_bit"]),
    ],
)
def test_layer_decay_is_timms_name_by_name(case, module):
    golden = json.loads((GOLDEN / "numerics" / "layer_decay.json").read_text())["models"][case]
    ours = _groups(_layout_of(module), "layer_decay", decay=0.75)
    named = golden["name_to_lr_scale_and_weight_decay"]
    assert {_group_in_timm(name, module) for name in named} == set(ours)
    for name, (scale, _) in named.items():
        assert ours[_group_in_timm(name, module)] == pytest.approx(scale, rel=1e-12), name


def test_layer_decay_gives_the_final_norm_to_the_head_as_beit_does():
    ours = _groups(VIT, "layer_decay", decay=0.5, norm_with="head")
    assert (ours["head"], ours["norm"], ours["block_11"], ours["stem"]) == (1.0, 1.0, 0.5, 0.5**13)


def test_a_convolution_after_the_blocks_goes_with_the_last_as_in_timm():
    lite = _layout("efficientnet_lite0")
    assert {group for group, m in _groups(lite, "last_k", k=1).items() if m} == {"block_15", "conv_head", "head"}
    ours = _groups(lite, "layer_decay", decay=0.5)
    assert (ours["head"], ours["conv_head"], ours["block_15"], ours["stem"]) == (1.0, 0.5, 0.5, 0.5**17)


def test_discriminative_divides_each_lower_group():
    ours = _groups(RESNET, "discriminative")
    assert ours["block_7"] == pytest.approx(1 / 2.6)
    assert ours["stem"] == pytest.approx(2.6**-9)
    assert _groups(RESNET, "discriminative", factor=2)["block_6"] == 0.25


def test_first_k_and_surgical_train_what_is_named_and_the_head():
    assert {group for group, m in _groups(VIT, "first_k", k=2).items() if m} == {"stem", "block_0", "head"}
    assert {g for g, m in _groups(RESNET, "surgical", groups=("block_3", "stem")).items() if m} == {
        "stem",
        "block_3",
        "head",
    }


def _trained(layout: Layout, strategy: str) -> set[str]:
    tree = flatten_dict(multiplier_tree(strategy, {}, layout), sep="/")
    return {path.split("/", 2)[2] for path, m in tree.items() if m and path.startswith("backbone/block_1/")}


def test_text_encoders_are_cut_like_image_networks():
    bert = _layout("bert_base")
    assert {g for g, m in _groups(bert, "last_k", k=1).items() if m} == {"block_11", "pooler", "head"}
    assert {g for g, m in _groups(bert, "first_k", k=2).items() if m} == {"stem", "block_0", "head"}
    decayed = _groups(bert, "layer_decay", decay=0.5)
    assert (decayed["head"], decayed["pooler"], decayed["block_11"], decayed["stem"]) == (1.0, 0.5, 0.5, 0.5**13)
    assert _trained(bert, "bias_only") == _trained(VIT, "bias_only")
    assert _trained(bert, "norm_only") == _trained(VIT, "norm_only")
    assert len(_groups(_layout("minilm_l6"), "full")) == 8


def test_bias_only_and_norm_only():
    norms = {f"norm{n}/{leaf}" for n in (1, 2) for leaf in ("scale", "bias")}
    biases = {f"{layer}/bias" for layer in ("attention/qkv", "attention/out", "mlp/fc1", "mlp/fc2", "norm1", "norm2")}
    assert _trained(VIT, "bias_only") == biases
    assert _trained(VIT, "norm_only") == norms
    assert _trained(RESNET, "norm_only") == {f"conv{n}/norm/{leaf}" for n in (1, 2) for leaf in ("scale", "bias")}
    with pytest.raises(InputError, match="norm_only: this network has no normalization layers"):
        multiplier_tree("norm_only", {}, _layout("resnet50_half_v1_folded"))


def test_what_was_added_trains_and_nothing_else():
    added = {"backbone/block_0/attention/qkv/lora_a": "block_0", "backbone/block_0/prompt": "block_0"}
    layout = Layout(VIT.groups, {**VIT.group_of, **added})
    for strategy in ("lora", "adapter", "prompt"):
        tree = flatten_dict(multiplier_tree(strategy, {}, layout), sep="/")
        assert {path for path, m in tree.items() if m} == {*added, "head/kernel", "head/bias"}


def test_the_digest_is_of_names_and_bits():
    leaves = {"a": np.zeros(2, np.float32), "b": np.ones(1, np.float32)}
    expected = digest(leaves)
    assert digest(dict(reversed(leaves.items()))) == expected
    assert digest({**leaves, "a": np.array([0, -0.0], np.float32)}) != expected
    assert digest({"a": leaves["a"], "c": leaves["b"]}) != expected


def test_pattern_takes_the_first_match():
    tree = multiplier_tree("pattern", {"patterns": ((r"head/.*", 2.0), (r".*/bias", 1.0), (r".*", 0.0))}, VIT)
    assert tree["head"]["bias"] == 2.0
    assert tree["backbone"]["block_3"]["mlp"]["fc1"] == {"bias": 1.0, "kernel": 0.0}


@pytest.mark.parametrize(
    ("strategy", "arguments", "message"),
    [
        (
            "linear_prob",
            {},
            "'linear_prob' (did you mean linear_probe?); there are: linear_probe, last_k",
        ),
        ("last_k", {}, "tuning.k is required by last_k(layout, *, k)"),
        ("last_k", {"k": 14}, "tuning.k must be between 1 and 13, not 14"),
        ("full", {"k": 2}, "full takes no tuning.k; it takes: nothing"),
        ("first_k", {"k": 0}, "tuning.k must be at least 1, not 0"),
        ("surgical", {"groups": ("blok_1",)}, "no group 'blok_1': did you mean block_1"),
        ("layer_decay", {"decay": 0.5, "norm_with": "x"}, "no tuning.norm_with 'x'; there are: last_block, head"),
        ("discriminative", {"factor": 0.5}, "tuning.factor must be at least 1"),
        ("layer_decay", {"decay": 1.5}, "tuning.decay must be above 0 and at most 1"),
        ("pattern", {"patterns": ((r"heed/.*", 1.0), (r".*", 0.0))}, "'heed/.*' decides no parameter"),
        ("pattern", {"patterns": ((r"head/.*", 1.0),)}, "no pattern covers backbone/"),
        ("pattern", {"patterns": ((r"(", 1.0),)}, "tuning.patterns[0][0]: '(' is no regular expression"),
        ("pattern", {"patterns": ((r".*", 0.0),)}, "freezes everything"),
        ("pattern", {"patterns": ((r".*", -1.0),)}, "tuning.patterns[0][1] must be at least 0, not -1.0"),
    ],
)
def test_what_cannot_be_used_is_named(strategy, arguments, message):
    with pytest.raises(InputError) as error:
        multiplier_tree(strategy, TuningConfig(strategy, arguments=arguments).arguments, VIT)
    assert message in str(error.value)


def test_partition_and_combine_are_inverse_and_masked_leaves_vanish():
    params = {"a": np.ones(2), "b": {"c": np.zeros(3), "d": np.full(1, 7.0)}}
    multipliers = {"a": 0.0, "b": {"c": 0.5, "d": 0.0}}
    trainable, frozen = partition(params, multipliers)
    assert [leaf.shape for leaf in jax.tree.leaves(trainable)] == [(3,)]
    assert isinstance(trainable["a"], optax.MaskedNode)
    assert [leaf.shape for leaf in jax.tree.leaves(frozen)] == [(2,), (1,)]
    for others in (frozen, params):
        combined = combine(jax.tree.map(np.ones_like, trainable), others)
        assert combined["a"] is params["a"]
        assert combined["b"]["d"] is params["b"]["d"]
        assert combined["b"]["c"].tolist() == [1, 1, 1]


def test_frozen_groups_have_nothing_that_moves():
    layout = Layout(("stem", "block_0", "head"), {"s": "stem", "b": "block_0", "c": "block_0", "h": "head"})
    assert frozen_groups(layout, {"s": 0.0, "b": 0.0, "c": 0.1, "h": 1.0}) == {"stem"}
