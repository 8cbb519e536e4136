"""Swin Transformers against timm's and transformers': golden outputs, every published name, configs both ways."""

import collections
import gzip
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from tests.conftest import GOLDEN, golden
from tests.models.test_resnet import check_manifest, converted, outputs
from tljax.data.preprocessing import Preprocessing
from tljax.errors import InputError
from tljax.models.registry import BACKBONES, Backbone, attributes, build
from tljax.models.relative import displacements
from tljax.models.vision.swin import Swin, _WindowAttention
from tljax.weights import export_config, mappings
from tljax.weights.adapt import resample_pos_embed
from tljax.weights.catalog import CATALOG, Pretrained
from tljax.weights.configs import import_config
from tljax.weights.mapping import convert, unconvert
from tljax.weights.pretrained import optional, shapes
from tljax.weights.readers import files

SWIN = Swin(width=16, depths=(2, 2), heads=(2, 4), window=4, grid=(16, 16))
# case: module, whose names, file
CASES = {
    "timm_swin": (SWIN, "timm", "weights.safetensors"),
    "timm_swinv2": (SWIN.clone(version=2), "timm", "weights.safetensors"),
    "hf_swin": (SWIN.clone(width=12), "hf", "weights_hub.safetensors"),
}


def weights_of(case: str) -> dict[str, np.ndarray]:
    """The case's arrays, as the checkpoint has them."""
    source = files.read(GOLDEN / case / CASES[case][2])
    return {name: np.asarray(value) for name, value in source.items()}


def arrays_at(case: str) -> dict[str, np.ndarray]:
    """A case's weights under our paths."""
    return converted(weights_of(case), *CASES[case][:2])


def variables_of(case: str) -> dict:
    """The same as variables of the network, without a head."""
    arrays = {path: array for path, array in arrays_at(case).items() if not path.startswith("head")}
    return jax.tree.map(jnp.asarray, unflatten_dict(arrays, sep="/"))


@pytest.mark.parametrize("case", CASES)
def test_feature_map_features_and_logits_are_the_references(case):
    facts, io = golden(case)
    module, names, _ = CASES[case]
    bounds = {name: facts["bound"] * largest for name, largest in facts["max_abs_output"].items()}
    hidden = facts.get("below_bound", [])
    assert min(moved for name, moved in facts["max_abs_change_if"].items() if name not in hidden) > bounds["logits"]
    actual = outputs(module, arrays_at(case), io["image"])
    assert actual["features"].shape[-1] == module.feature_dim
    for ours, theirs in {"feature_map": "feature_map" if names == "timm" else "tokens", "features": "features"}.items():
        reference = io[theirs].reshape(actual[ours].shape)
        np.testing.assert_allclose(actual[ours], reference, atol=bounds[theirs], rtol=0, err_msg=ours)
    np.testing.assert_allclose(actual["logits"], io["logits"], atol=bounds["logits"], rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_bits(case):
    module, names, _ = CASES[case]
    source = weights_of(case)
    back = unconvert(converted(source, module, names), mappings.tables(module)[names])
    assert set(back) == set(source)
    for name, value in source.items():
        assert (back[name].shape, back[name].tobytes()) == (value.shape, value.tobytes()), name


@pytest.mark.parametrize("case", ["timm_swin", "timm_swinv2"])
def test_a_network_runs_in_two_halves_as_in_one(case):
    module, variables = CASES[case][0], variables_of(case)
    assert set(variables["params"]) == set(module.groups)
    image = jnp.asarray(golden(case)[1]["image"])
    run = jax.jit(module.apply, static_argnames=("start", "stop"))
    whole = run(variables, image)
    for cut in (1, 3, len(module.groups) - 1):
        half = run(variables, image, stop=cut)
        np.testing.assert_allclose(run(variables, half, start=cut), whole, rtol=0, atol=2e-6)


def test_files_of_microsofts_merge_patches_at_the_end_of_a_stage():
    source = weights_of("timm_swin")
    theirs = {name.replace("layers.1.downsample", "layers.0.downsample"): value for name, value in source.items()}
    theirs = {name.replace("head.fc", "head"): value for name, value in theirs.items()}
    theirs["layers.0.blocks.1.attn_mask"] = np.zeros((16, 16, 16), np.float32)
    theirs["layers.0.blocks.1.attn.relative_position_index"] = np.zeros((16, 16), np.float32)
    done = convert(theirs, mappings.tables(SWIN)["microsoft"], shapes(SWIN), optional(SWIN))
    assert len(done.ignored) == 2
    for path, value in converted(source, SWIN, "timm").items():
        np.testing.assert_array_equal(done.arrays[path], value)


@pytest.mark.parametrize(
    ("shifted", "windows"), [(False, [[0, 1, 2, 3], [4, 5, None, None]]), (True, [[2, 3, 4, 5], [0, 1]])]
)
def test_windows_that_do_not_tile_a_map_are_filled_up_and_none_is_longer_than_it(shifted, windows):
    """Pixel by pixel on a map of 6 by 3, where windows are 4 by 3 and shift downwards alone; None is a row of zeros."""
    module = _WindowAttention(heads=2, window=4, shifted=shifted, version=1, pretrained_window=0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 6, 3, 8), dtype=np.float32)
    shapes_of_all = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32) / 3, shapes_of_all)
    actual, params = np.asarray(jax.jit(module.apply)(variables, x)), variables["params"]
    for rows in windows:
        pixels = [(row, column) for row in rows for column in range(3)]
        tokens = np.stack([np.zeros(8) if row is None else x[0, row, column] for row, column in pixels])
        q, k, v = np.split(tokens @ params["qkv"]["kernel"] + params["qkv"]["bias"], 3, axis=-1)
        for i, (row, column) in enumerate(pixels):
            heads = []
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                steps = [(i // 3 - j // 3 + 3) * 5 + i % 3 - j % 3 + 2 for j in range(len(pixels))]
                scores = k[:, part] @ q[i, part] / 2 + params["bias_table"][steps, head]
                heads.append(np.exp(scores) / np.exp(scores).sum() @ v[:, part])
            if row is not None:
                expected = np.concatenate(heads) @ params["out"]["kernel"] + params["out"]["bias"]
                np.testing.assert_allclose(actual[0, row, column], expected, atol=1e-5)


@pytest.mark.parametrize("size", [24, 40, 96])
def test_another_image_size_keeps_windows_and_resamples_tables_that_become_smaller(size):
    arrays = converted(weights_of("timm_swin"), SWIN, "timm")
    module = SWIN.resized(size)
    for path, window in module.position_grids.items():
        arrays[path] = resample_pos_embed(arrays[path], SWIN.position_grids[path], window, "bicubic")
        assert arrays[path].shape[0] == math.prod(2 * side - 1 for side in window)
    assert {path: array.shape for path, array in arrays.items() if path.startswith("params")} == {
        path: shape for path, shape in shapes(module).items() if path.startswith("params")
    }
    assert len(set(module.position_grids.values())) == (2 if size == 24 else 1)
    features = outputs(module, arrays, np.ones((1, size, size, 3), np.float32))["features"]
    assert features.shape == (1, 32) and np.all(np.isfinite(features))


def test_a_size_that_patches_do_not_tile_is_refused():
    with pytest.raises(InputError, match="image size 33 is no multiple of the patch size 4"):
        SWIN.resized(33)


def test_every_displacement_has_a_row_of_its_own():
    index = displacements(2, 3)
    assert index.shape == (6, 6) and set(index.ravel()) == set(range(3 * 5))
    # From the second token of the first row to the first of the second: one up, and one to the right.
    assert index[1, 3] == (0 * 5) + 3 and np.all(np.diag(index) == 7)


def first_blocks(source: dict[str, list[int]], module) -> tuple[dict[str, list[int]], Backbone]:
    """A manifest and a network of two blocks alone, which are as all of theirs."""
    kept, blocks = {}, collections.defaultdict(dict)
    for name, shape in source.items():
        numbered = re.fullmatch(r"\D+\.(\d+)\.(.*)", name)
        if numbered:
            blocks[int(numbered[1])][numbered[2]] = shape
        if not numbered or int(numbered[1]) < 2:
            kept[name] = shape
    assert set(blocks) == set(range(module.depth)) and all(block == blocks[0] for block in blocks.values())
    return kept, module.clone(depth=2)


def check_manifests(file: str, hub: str, count: int) -> None:
    """Asserts that every published name is mapped and nothing else; of the smallest, that any change is named.

    A timm model is that of its row in the catalog; one of transformers' is `hub`.
    """
    manifests = json.loads(gzip.decompress((GOLDEN / file).read_bytes()))
    assert len(manifests) == count
    smallest = min(manifests, key=lambda name: len(manifests[name]))
    for name, source in manifests.items():
        library, model, *_ = name.split("/")
        backbone, names = (CATALOG[model].backbone, "timm") if library == "timm" else (hub, "hf")
        module = BACKBONES[backbone]
        if hasattr(module, "depth"):
            source, module = first_blocks(source, module)
        arrays = {name: np.broadcast_to(np.zeros((), np.float32), shape) for name, shape in source.items()}
        done = convert(arrays, mappings.tables(module)[names], shapes(module), optional(module))
        assert set(done.arrays) | optional(module) == set(shapes(module)) and not done.ignored
        if name == smallest or library == "hf_hub":
            head = {} if "swin" in name else {"head.weight": [5, module.feature_dim], "head.bias": [5]}
            check_manifest(source if library == "hf_hub" else source | head, module, names)


@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else():
    check_manifests("manifests_swin.json.gz", "swin_tiny_patch4_window7", 9)


IMAGES = Preprocessing(64, 0.9, (127.5,) * 3, (51.0,) * 3, "rgb", "bicubic")
VARIANTS = {
    "timm": (SWIN.clone(pool="max"), SWIN.clone(version=2, mlp_ratio=3.0, pretrained_windows=(6, 3))),
    "transformers": (SWIN, SWIN.clone(eps=1e-6, heads=(4, 2))),
}


@pytest.mark.parametrize(("library", "number"), [(library, i) for library in VARIANTS for i in range(2)])
def test_a_config_that_is_written_is_read_back(tmp_path, library, number):
    module = VARIANTS[library][number]
    name = "swin_tiny_patch4_window7" if module.version == 1 else "swinv2_tiny_window8"
    row = Pretrained("x", "", name, "", IMAGES, "MIT", classes=("disc", "square"))
    config = getattr(export_config, library)("Swin", attributes(module), row)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(export_config.processor(IMAGES)))
    again = import_config.read(tmp_path, "x")
    assert build(again.backbone, again.architecture) == module
    assert (again.classes, again.preprocessing.size) == (row.classes, 64)


@pytest.mark.parametrize("case", CASES)
def test_the_librarys_own_config_describes_the_network(case):
    row = import_config.read(GOLDEN / case, case)
    assert build(row.backbone, row.architecture) == CASES[case][0]
    assert (row.source, row.preprocessing.size) == (CASES[case][1], 64)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("hf_swin", {"use_absolute_embeddings": True}, "use_absolute_embeddings=true is not supported, only false"),
        ("hf_swin", {"hidden_act": "gelu_new"}, 'hidden_act="gelu_new" is not supported'),
        ("hf_swin", {"num_heads": [2]}, "num_heads=[2] has 1 stages, and depths 2"),
        ("hf_swin", {"num_heads": [2, 5]}, "num_heads=[2, 5] does not divide the widths of the stages"),
        ("hf_swin", {"patch_size": 128}, "image_size=64 is less than the patch size of 128"),
        ("timm_swin", {"model_args": {"qkv_bias": False}}, "qkv_bias=false is not supported, only true"),
        ("timm_swin", {"model_args": {"window_size": [4, 8]}}, "window_size=[4, 8] is no square"),
        ("timm_swin", {"model_args": {"depths": [2, 2]}}, "num_heads is missing: it is not of the 2 stages"),
        ("timm_swin", {"model_args": {"num_heads": [3, 6]}}, "num_heads=[3, 6] is not of the 4 stages that depths has"),
        ("timm_swinv2", {"model_args": {"pretrained_window_sizes": 8}}, "pretrained_window_sizes=8 must be a list"),
        ("timm_swin", {"model_args": {"ape": True}}, "ape=true is not known here"),
        ("timm_swin", {"architecture": "swin_s3_tiny_224"}, "no backbone.name 'swin_s3_tiny'"),
    ],
)
def test_a_swin_that_is_another_is_refused(tmp_path, case, changes, message):
    config = json.loads((GOLDEN / case / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError) as error:
        row = import_config.read(tmp_path, "x")
        build(row.backbone, row.architecture)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("library", "changes", "message"),
    [
        ("timm", {"eps": 1e-12}, "timm has no such network: only eps=1e-05, not 1e-12"),
        ("transformers", {"version": 2}, "transformers has no such network: only version=1, not 2"),
        ("transformers", {"grid": (16, 8)}, "only grid=(16, 16), not (16, 8)"),
    ],
)
def test_a_swin_that_the_library_does_not_have(library, changes, message):
    row = Pretrained("x", "", "swin_tiny_patch4_window7", "", IMAGES, "MIT")
    with pytest.raises(InputError) as error:
        getattr(export_config, library)("Swin", attributes(SWIN.clone(**changes)), row)
    assert message in str(error.value)
