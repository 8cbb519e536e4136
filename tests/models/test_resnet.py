"""ResNets against timm's and transformers': golden outputs, and every published name."""

import gzip
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from tests.conftest import GOLDEN, golden
from tljax.config.schema import BackboneConfig
from tljax.errors import InputError
from tljax.models.vision.resnet import ResNet
from tljax.weights import mappings, pretrained
from tljax.weights.mapping import convert, unconvert
from tljax.weights.pretrained import optional, shapes
from tljax.weights.readers import files

pytestmark = pytest.mark.optimized

BASIC = ResNet(depths=(1, 1, 1, 2), widths=(64, 16, 20, 24), kind="basic")
BOTTLENECK = ResNet(depths=(1, 2, 1, 1), widths=(12, 16, 20, 24))
DEEP = BOTTLENECK.clone(stem="deep", avg_down=True, stem_width=32)
HF_BASIC = ResNet(depths=(1, 2, 1, 1), widths=(16, 24, 32, 40), stem_width=16, kind="basic")
HF_BOTTLENECK = ResNet(depths=(1, 2, 1, 1), widths=(8, 12, 16, 20), stem_width=16)

# case: module, whose names
CASES = {
    "timm_resnet_basic": (BASIC, "timm"),
    "timm_resnet_bottleneck": (BOTTLENECK, "timm"),
    "timm_resnet_d": (DEEP, "timm"),
    "hf_resnet_basic": (HF_BASIC, "hf"),
    "hf_resnet_bottleneck": (HF_BOTTLENECK, "hf"),
    "hf_resnet_bottleneck_v1": (HF_BOTTLENECK.clone(stride_on="1x1"), "hf"),
}
TOLERANCE = 5e-5  # absolute; the reference's own rounding is within 1.3e-5


def weights_of(case: str) -> dict[str, np.ndarray]:
    """The case's arrays, as the checkpoint has them."""
    facts, _ = golden(case)
    folder = GOLDEN / (facts["weights_from"] or case)
    return {name: np.asarray(value) for name, value in files.read(folder / "weights.safetensors").items()}


def converted(source, module, names: str) -> dict[str, np.ndarray]:
    return convert(source, mappings.tables(module)[names], shapes(module), optional(module)).arrays


def outputs(module, arrays: dict[str, np.ndarray], image: np.ndarray) -> dict[str, jax.Array]:
    """Feature map, features, and, where the checkpoint has a head, logits."""
    variables = jax.tree.map(jnp.asarray, unflatten_dict(arrays, sep="/"))
    head = variables.pop("head", None)
    both = jax.jit(lambda v, x: (module.apply(v, x, pool=False), module.apply(v, x)))
    feature_map, features = both(variables, image)
    found = {"feature_map": feature_map, "features": features}
    return found | ({"logits": features @ head["kernel"] + head["bias"]} if head else {})


@pytest.mark.parametrize("case", CASES)
def test_feature_map_features_and_logits_are_the_references(case):
    facts, io = golden(case)
    assert min(facts["max_abs_change_if"].values()) > TOLERANCE, "a usual mistake would pass"
    module, names = CASES[case]
    found = outputs(module, converted(weights_of(case), module, names), io["image"])
    assert found["features"].shape[-1] == module.feature_dim
    for name in ("feature_map", "features", "logits"):
        np.testing.assert_allclose(found[name], io[name], atol=TOLERANCE, rtol=0, err_msg=name)


@pytest.mark.parametrize("case", ["timm_resnet_bottleneck", "hf_resnet_bottleneck", "hf_resnet_bottleneck_v1"])
def test_the_stride_on_the_other_convolution_is_another_network(case):
    facts, io = golden(case)
    module, names = CASES[case]
    other = module.clone(stride_on="1x1" if module.stride_on == "3x3" else "3x3")
    found = outputs(other, converted(weights_of(case), module, names), io["image"])
    moved = abs(found["logits"] - io["logits"]).max()
    np.testing.assert_allclose(moved, facts["max_abs_change_if"]["stride_in_other_conv"], rtol=0.005)


def test_a_deep_network_runs_in_two_halves_as_in_one():
    _, io = golden("timm_resnet_d")
    arrays = converted(weights_of("timm_resnet_d"), DEEP, "timm")
    variables = jax.tree.map(jnp.asarray, unflatten_dict(arrays, sep="/"))
    assert set(variables["params"]) == set(variables["batch_stats"]) == set(DEEP.groups)
    image = jnp.asarray(io["image"])
    whole = DEEP.apply(variables, image, pool=False)
    for cut in (1, 3, len(DEEP.groups) - 1):
        half = DEEP.apply(variables, image, stop=cut)
        np.testing.assert_array_equal(DEEP.apply(variables, half, start=cut, pool=False), whole)


def check_round_trip(source: dict[str, np.ndarray], module, names: str) -> None:
    """Asserts that ours, turned back, is the source to the bit."""
    table = mappings.tables(module)[names]
    back = unconvert(converted(source, module, names), table)
    kept = {name: value for name, value in source.items() if not name.endswith("num_batches_tracked")}
    assert set(back) == set(kept)
    for name, value in kept.items():
        found = back[name]
        assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes()), name


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_bits(case):
    check_round_trip(weights_of(case), *CASES[case])


def test_a_file_saved_from_the_bare_model_has_no_prefix_and_no_head():
    source = weights_of("hf_resnet_basic")
    bare = {name.removeprefix("resnet."): value for name, value in source.items() if "classifier" not in name}
    wanted = converted(source, HF_BASIC, "hf")
    found = converted(bare, HF_BASIC, "hf")
    assert set(wanted) - set(found) == {"head/kernel", "head/bias"}
    for path, value in found.items():
        np.testing.assert_array_equal(value, wanted[path])


def test_folded_batch_norms_have_the_names_of_the_onnx_file_and_go_there_and_back():
    module = BOTTLENECK.clone(stride_on="1x1", norm="folded")
    rng = np.random.default_rng(0)
    sizes = {path: [6 if n is None else n for n in shape] for path, shape in shapes(module).items()}
    ours = {path: rng.normal(size=shape).astype(np.float32) for path, shape in sizes.items()}
    source = unconvert(ours, mappings.tables(module)["open_nsfw"])
    assert source["bn_1/FusedBatchNormV3:0#1"].shape == (64, 3, 7, 7)
    assert source["conv_stage1_block1_branch2a/BiasAdd_weights_fused_bn"].shape == (16, 64, 1, 1)
    assert source["bn_stage3_block0_branch2b/FusedBatchNormV3:0#2"].shape == (24,)
    assert source["conv_stage1_block0_proj_shortcut/BiasAdd_bias_fused_bn"].shape == (64,)
    assert source["fc_nsfw/MatMul/ReadVariableOp:0"].shape == (96, 6)
    beside = {"pool/AvgPool__437:0#1": np.zeros(4), "Reshape:0#1": np.zeros(2)}
    done = convert(source | beside, mappings.tables(module)["open_nsfw"], shapes(module), optional(module))
    assert set(done.ignored) == set(beside)
    assert set(done.arrays) == set(ours)
    for path, value in ours.items():
        np.testing.assert_array_equal(done.arrays[path], value)


MANIFESTS = {
    "timm/resnet18": (ResNet(depths=(2, 2, 2, 2), kind="basic"), "timm"),
    "timm/resnet34": (ResNet(kind="basic"), "timm"),
    "timm/resnet50": (ResNet(), "timm"),
    "timm/resnet101": (ResNet(depths=(3, 4, 23, 3)), "timm"),
    "timm/resnet152": (ResNet(depths=(3, 8, 36, 3)), "timm"),
    "timm/resnet50d": (ResNet(stem="deep", avg_down=True), "timm"),
    "hf/microsoft/resnet-18/ResNetForImageClassification": (ResNet(depths=(2, 2, 2, 2), kind="basic"), "hf"),
    "hf/microsoft/resnet-50/ResNetForImageClassification": (ResNet(), "hf"),
}


def manifests() -> dict[str, dict[str, list[int]]]:
    return json.loads(gzip.decompress((GOLDEN / "manifests_resnet.json.gz").read_bytes()))


def check_repository(case: str, folder: Path, cut: int):
    """Asserts that a case's files, in a folder, give the reference's outputs, in two halves of the groups.

    Args:
        case: the golden case, with a `config.json`.
        folder: an empty one.
        cut: the first group of the second half.

    Returns:
        The network that its config describes.
    """
    config = json.loads((GOLDEN / case / "config.json").read_text())
    if "pretrained_cfg" in config:  # DINOv3's golden images are no squares, which is all that may be asked for here
        config["pretrained_cfg"]["input_size"] = [3, 64, 64]
    (folder / "config.json").write_text(json.dumps(config))
    if case.startswith("hf"):
        shutil.copy(GOLDEN / case / "preprocessor_config.json", folder)
    shutil.copy(GOLDEN / case / "weights.safetensors", folder / "model.safetensors")
    row = pretrained.resolve_weights(BackboneConfig(weights=str(folder)))
    module = pretrained.module_of(row)
    check_bounds(case, module, pretrained.restore(row, module), cut)
    return module


def check_bounds(case: str, module, variables: dict, cut: int) -> None:
    """Asserts that a network gives the reference's outputs, within bounds that a usual mistake would break."""
    facts, io = golden(case)
    variables = jax.tree.map(jnp.asarray, variables)
    head = variables.pop("head", None)
    assert set(variables["params"]) == set(module.groups)

    def halves(variables, x):
        half = module.apply(variables, x, stop=cut)
        feature_map = module.apply(variables, half, start=cut, pool=False)
        return {"feature_map": feature_map, "features": module.apply(variables, half, start=cut)}

    actual = jax.jit(halves)(variables, io["image"])
    if head:
        actual["logits"] = actual["features"] @ head["kernel"] + head["bias"]
    bounds = {name: facts["bound"] * facts["max_abs_output"][name] for name in actual}
    unseen = facts.get("below_bound", ())
    changes = [change for mistake, change in facts["max_abs_change_if"].items() if mistake not in unseen]
    assert min(changes) > bounds[facts["change_measured_on"]], "a usual mistake would pass"
    assert actual["features"].shape[-1] == module.feature_dim
    for name, bound in bounds.items():
        np.testing.assert_allclose(actual[name], io[name], atol=bound, rtol=0, err_msg=name)


def check_manifest(source: dict[str, list[int]], module, names: str, changes: bool = True) -> None:
    """Asserts that every name is mapped or ignored, every target filled, and, with `changes`, those refused by name."""
    table, targets, heads = mappings.tables(module)[names], shapes(module), optional(module)

    def tried(names_and_shapes):
        # Views of one number: they have the shape and take no memory.
        arrays = {name: np.broadcast_to(np.zeros((), np.float32), s) for name, s in names_and_shapes.items()}
        return convert(arrays, table, targets, heads)

    done = tried(source)
    assert set(done.arrays) == set(targets) - (set() if "head/kernel" in done.arrays else heads)
    assert all(name.endswith("num_batches_tracked") for name in done.ignored)
    goes_to = {rule.source: rule.target for rule in table.mappings}
    mapped = [name for name in source if goes_to.get(name, "head") in targets.keys() - heads]
    for name in changes * [*mapped[:: len(mapped) // 3], mapped[-1]]:
        changed_sources = {
            f"{name}_more": source | {f"{name}_more": source[name]},
            goes_to[name]: {other: shape for other, shape in source.items() if other != name},
            name: source | {name: [*source[name][:-1], source[name][-1] + 1]},
        }
        for named, changed in changed_sources.items():
            with pytest.raises(InputError) as caught:
                tried(changed)
            assert named in str(caught.value)


def check_deep_manifest(source, module, names: str, changes: bool, block: str, first: int = 0) -> None:
    """Asserts that each name is mapped, and all else of `check_manifest` where stages have two blocks at the most.

    Args:
        source, module, names, changes: as in `check_manifest`.
        block: a regex of a block's name, with a group for its stage and one for its place in it.
        first: the number of a stage's first block.
    """
    table = mappings.tables(module)[names]
    mapped = {name for name in source if not table.ignores(name)}
    # A table of ResNets has a shortcut's names for every block.
    expected = {rule.source for rule in table.mappings if not re.search("^head|downsample", rule.target)}
    assert expected <= mapped <= {rule.source for rule in table.mappings}
    two = tuple(min(2, depth) for depth in module.depths)
    kept = {name: shape for name, shape in source.items() if _place(block, name) < first + 2}
    check_manifest(kept, module.clone(depths=two), names, changes)


def _place(block: str, name: str) -> int:
    match = re.match(rf"(?:\w+\.)*{block}\.", name)
    return int(match[2]) if match else 0


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else(name):
    check_manifest(manifests()[name], *MANIFESTS[name])


def test_a_head_for_other_features_is_refused():
    source = weights_of("timm_resnet_basic")
    source["fc.weight"] = source["fc.weight"][:, 1:]
    with pytest.raises(InputError, match=r"source fc.weight \(6, 23\) does not make target head/kernel \(24, None\)"):
        converted(source, BASIC, "timm")
