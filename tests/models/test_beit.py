"""BEiTs against timm's and transformers': golden outputs, every published name, configs both ways."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from tests.conftest import GOLDEN, golden
from tests.models.test_resnet import converted, outputs
from tests.models.test_swin import check_manifests
from tljax.data.preprocessing import Preprocessing
from tljax.errors import InputError
from tljax.models.registry import attributes, build
from tljax.models.vision.beit import BEiT, _Attention
from tljax.weights import export_config, mappings
from tljax.weights.adapt import resample_pos_embed
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import import_config
from tljax.weights.mapping import unconvert
from tljax.weights.readers import files

BEIT = BEiT(width=24, depth=2, heads=2, patch_size=8, grid=(4, 4))
HF = BEIT.clone(mlp_width=48, eps=1e-12)
# case: module, whose names, file, the grid that its weights are of
CASES = {
    "timm_beit": (BEIT, "timm", "timm_beit/weights.safetensors"),
    "timm_beit_at48x40": (BEIT.clone(grid=(6, 5)), "timm", "timm_beit/weights.safetensors"),
    "timm_beitv2": (BEIT, "timm", "timm_beit/weights.safetensors"),
    "hf_beit": (HF, "hf", "hf_beit/weights_hub.safetensors"),
    "hf_beit_shared_bias": (
        HF.clone(positions=True, pool="class"),
        "hf",
        "hf_beit_shared_bias/weights_hub.safetensors",
    ),
}


def weights_at(file: str) -> dict[str, np.ndarray]:
    """A golden file's arrays, as the checkpoint has them."""
    return {name: np.asarray(value) for name, value in files.read(GOLDEN / file).items()}


def arrays_of(module, names: str, file: str, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """A golden file's arrays of a `grid` under our paths, resampled for the module's."""
    own = module.clone(grid=grid)
    arrays = converted(weights_at(file), own, names)
    for path, target in module.position_grids.items():
        arrays[path] = resample_pos_embed(arrays[path], own.position_grids[path], target, "bicubic_antialias")
    return arrays


def arrays_at(case: str) -> dict[str, np.ndarray]:
    """A case's weights under our paths, resampled for its grid."""
    return arrays_of(*CASES[case], (4, 4))


def check_golden(case: str, module, arrays: dict[str, np.ndarray]) -> None:
    """Asserts that tokens, features and logits are the reference's, closer than a usual mistake would bring them."""
    facts, io = golden(case)
    bounds = {name: facts["bound"] * largest for name, largest in facts["max_abs_output"].items()}
    hidden = facts.get("below_bound", [])
    assert min(moved for name, moved in facts["max_abs_change_if"].items() if name not in hidden) > bounds["logits"]
    actual = outputs(module, arrays, io["image"])
    actual["tokens"] = actual.pop("feature_map")
    assert actual["features"].shape[-1] == module.feature_dim
    for name, array in actual.items():
        np.testing.assert_allclose(array, io[name], atol=bounds[name], rtol=0, err_msg=name)


def check_halves(case: str, module, arrays: dict[str, np.ndarray]) -> None:
    """Asserts that groups run in two parts give what all of them give in one."""
    arrays = {path: array for path, array in arrays.items() if not path.startswith("head")}
    variables = jax.tree.map(jnp.asarray, unflatten_dict(arrays, sep="/"))
    assert set(variables["params"]) == set(module.groups)
    image = jnp.asarray(golden(case)[1]["image"])
    run = jax.jit(module.apply, static_argnames=("start", "stop"))
    whole = run(variables, image)
    for cut in (1, len(module.groups) - 1):
        np.testing.assert_allclose(run(variables, run(variables, image, stop=cut), start=cut), whole, rtol=0, atol=4e-6)


@pytest.mark.parametrize("case", CASES)
def test_tokens_features_and_logits_are_the_references(case):
    arrays = arrays_at(case)
    resampled = golden(case)[1].get("relative_position_bias_table_resampled")
    if resampled is not None:
        np.testing.assert_allclose(arrays["params/block_0/attention/bias_table"], resampled, atol=1e-6, rtol=0)
    check_golden(case, CASES[case][0], arrays)


@pytest.mark.parametrize("case", ["timm_beit", "hf_beit_shared_bias"])
def test_a_network_runs_in_two_halves_as_in_one(case):
    check_halves(case, CASES[case][0], arrays_at(case))


@pytest.mark.parametrize("case", ["timm_beit", "hf_beit"])
def test_there_and_back_is_the_same_bits(case):
    module, names, file = CASES[case]
    source = weights_at(file)
    back = unconvert(converted(source, module, names), mappings.tables(module)[names])
    assert set(back) == set(source)
    for name, value in source.items():
        assert (back[name].shape, back[name].tobytes()) == (value.shape, value.tobytes()), name


def test_a_shared_table_becomes_one_of_each_block():
    module, names, file = CASES["hf_beit_shared_bias"]
    source = weights_at(file)
    back = unconvert(converted(source, module, names), mappings.tables(module)[names])
    shared = source.pop("beit.encoder.relative_position_bias.relative_position_bias_table")
    copies = {name: back.pop(name) for name in list(back) if "relative_position_bias_table" in name}
    assert len(copies) == module.depth
    assert all(copy.tobytes() == shared.tobytes() for copy in copies.values())
    assert {name: array.tobytes() for name, array in back.items()} == {
        name: array.tobytes() for name, array in source.items()
    }
    both = weights_at(file) | {next(iter(copies)): shared}
    with pytest.raises(InputError, match="block_0/attention/bias_table is filled more than once"):
        converted(both, module, names)


def test_prompts_stand_nowhere():
    """By the formula of attention with biases written out, which are 0 where a prompt is one of the two."""
    module, rng = _Attention(heads=2, grid=(2, 2)), np.random.default_rng(0)
    x = rng.standard_normal((1, 1 + 2 + 4, 8), dtype=np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32) / 3, shapes)["params"]
    table, tokens = params["bias_table"], [0, 3, 4, 5, 6]
    # Rows: the 9 displacements of a 2 by 2 window; then from the class token, to it, and to itself.
    between = [[11, 9, 9, 9, 9], [10, 4, 3, 1, 0], [10, 5, 4, 2, 1], [10, 7, 6, 4, 3], [10, 8, 7, 5, 4]]
    bias = np.zeros((2, 7, 7), np.float32)
    bias[:, np.ix_(tokens, tokens)[0], tokens] = table[between].transpose(2, 0, 1)
    of_all = np.concatenate([params["qkv"]["bias"][:8], np.zeros(8, np.float32), params["qkv"]["bias"][8:]])
    q, k, v = np.split(x[0] @ params["qkv"]["kernel"] + of_all, 3, axis=-1)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        weights = np.exp(q[:, part] @ k[:, part].T / 2 + bias[head])
        heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
    expected = np.concatenate(heads, axis=1) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, x)[0], expected, atol=1e-5)


@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else():
    check_manifests("manifests_beit.json.gz", "beit_base_patch16", 7)


IMAGES = Preprocessing(32, 0.9, (127.5,) * 3, (51.0,) * 3, "rgb", "bicubic")
VARIANTS = {
    "timm": (BEIT.clone(mlp_width=96), BEIT.clone(mlp_width=80, pool="class", positions=True, layer_scale=None)),
    "transformers": (HF, HF.clone(pool="class", positions=True, layer_scale=None)),
}


@pytest.mark.parametrize(("library", "number"), [(library, i) for library in VARIANTS for i in range(2)])
def test_a_config_that_is_written_is_read_back(tmp_path, library, number):
    module = VARIANTS[library][number]
    row = Pretrained("x", "", "beit_base_patch16", "", IMAGES, "MIT", classes=("disc", "square"))
    config = getattr(export_config, library)("BEiT", attributes(module), row)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(export_config.processor(IMAGES)))
    again = import_config.read(tmp_path, "x")
    assert build(again.backbone, again.architecture) == module
    assert (again.classes, again.preprocessing.size) == (row.classes, 32)


@pytest.mark.parametrize("case", ["timm_beit", "hf_beit", "hf_beit_shared_bias"])
def test_the_librarys_own_config_describes_the_network(case):
    row = import_config.read(GOLDEN / case, case)
    assert build(row.backbone, row.architecture) == CASES[case][0]
    assert (row.source, row.preprocessing.size) == (CASES[case][1], 32)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("hf_beit", {"use_shared_relative_position_bias": True}, "use_relative_position_bias=true is not supported"),
        ("hf_beit", {"use_relative_position_bias": False}, "use_relative_position_bias=false is not supported"),
        ("hf_beit", {"hidden_act": "gelu_new"}, 'hidden_act="gelu_new" is not supported'),
        ("hf_beit", {"num_attention_heads": 5}, "num_attention_heads=5 does not divide the width of 24"),
        ("timm_beit", {"model_args": {"swiglu_mlp": True}}, "swiglu_mlp=true is not supported, only false"),
        ("timm_beit", {"model_args": {"use_rel_pos_bias": False}}, "use_rel_pos_bias=false is not supported"),
        ("timm_beit", {"model_args": {"img_size": 8}}, "img_size=8 is less than the patch size of 16"),
    ],
)
def test_a_beit_that_is_another_is_refused(tmp_path, case, changes, message):
    config = json.loads((GOLDEN / case / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError) as error:
        import_config.read(tmp_path, "x")
    assert message in str(error.value)
