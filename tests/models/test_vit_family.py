"""DINOv3, SigLIP, CLIP, MAE and other Vision Transformers, each as the config that its library wrote describes it."""

import dataclasses
import functools
import gzip
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from tests.conftest import GOLDEN, golden
from tests.models.test_vit import empty
from tests.weights.test_pooling import folder_of
from tljax.cli.convert import convert as convert_folder
from tljax.config.schema import BackboneConfig
from tljax.errors import InputError
from tljax.models.registry import BACKBONES, attributes
from tljax.models.rope import axial_angles, rotated
from tljax.weights import export_config, mappings, pretrained
from tljax.weights.adapt import resample_pos_embed
from tljax.weights.configs import import_config
from tljax.weights.mapping import convert, unconvert
from tljax.weights.pretrained import optional, shapes
from tljax.weights.readers import files

CASES = (
    *("timm_vit_dinov3", "timm_vit_dinov3_at48", "timm_vit_dinov3_at24x40", "timm_vit_dinov3_qkvb"),
    *("timm_vit_dinov3_plus", "timm_vit_dinov2_giant"),
    *("hf_dinov3_vit", "hf_dinov3_vit_at24x40", "hf_dinov3_vit_gated"),
    *("timm_siglip", "timm_siglip2", "timm_siglip_so400m", "timm_siglip_gelu_tanh", "hf_siglip_vision"),
    *("timm_clip_quickgelu", "timm_clip_laion", "timm_clip_laion_at48", "hf_clip_vision_proj"),
    *("timm_vit_mae", "hf_vitmae", "timm_vit_qk_norm", "timm_vit_no_class_avg", "timm_vit_gap_fc_norm_false"),
    *("timm_vit_reg4_gap", "timm_vit_reg_cls", "timm_vit_patch8", "timm_vit_32x48", "timm_vit_pre_logits_norm_off"),
)
# Arrays that a file has, and a network as the case's config says has not.
LEFT = r"(|.*\.)(mask_token)"
# Cases whose config's image is no square, which is refused by name.
OBLONG = {"timm_vit_32x48": "timm_vit_patch8"}


@functools.cache
def described(case: str):
    """The row that a case's config describes."""
    return import_config.read(GOLDEN / OBLONG.get(case, case), case)


def loaded(case: str, file: str = "weights.safetensors"):
    """The case's module, at the size of its images, and its weights under our paths."""
    facts, io = golden(case)
    source, row = facts["weights_from"] or case, described(case)
    own = pretrained.in_file(row)
    module = own.clone(grid=tuple(n // own.patch_size for n in io["image"].shape[1:3]))
    stored = module if source == case in OBLONG else own.clone(grid=pretrained.in_file(described(source)).grid)
    table, weights = mappings.tables(stored)[row.source], files.read(GOLDEN / source / file)
    if not own.final_norm:
        weights = {name: array for name, array in weights.items() if not name.startswith("norm.")}
    arrays = convert(weights, table, shapes(stored), optional(stored)).arrays
    for path, grid in module.position_grids.items():
        arrays[path] = resample_pos_embed(arrays[path], stored.grid, grid, row.pos_embed)
    return module, arrays


@functools.cache
def program(module):
    """Tokens after the blocks and at the end, features, and features by way of the tokens in the middle."""

    def outputs(variables, image):
        half, blocks = (module.apply(variables, image, stop=stop) for stop in (2, 3))
        apart = module.apply(variables, half, start=2)
        return blocks, module.apply(variables, image, pool=False), module.apply(variables, image), apart

    return jax.jit(outputs)


@pytest.mark.parametrize("case", CASES)
def test_tokens_features_and_logits_are_the_references(case):
    facts, io = golden(case)
    module, arrays = loaded(case)
    weights = unflatten_dict({path: jnp.asarray(array) for path, array in arrays.items()}, sep="/")
    head = weights.pop("head", None)
    blocks, tokens, features, apart = program(module)(weights, io["image"])
    if case == "hf_clip_vision_proj":  # which normalizes the pooled token alone, and calls the projection features
        tokens, features = blocks, features @ head["kernel"]
        apart = apart @ head["kernel"]
    outputs = {"tokens": tokens, "features": features}
    if "logits" in io:
        outputs["logits"] = features @ head["kernel"] + head["bias"]
    for name, output in outputs.items():
        tolerance = facts["bound"] * facts["max_abs_output"][name]
        np.testing.assert_allclose(output, io[name], atol=tolerance, rtol=0, err_msg=name)
    changes = {name: by for name, by in facts["max_abs_change_if"].items() if name not in facts.get("below_bound", ())}
    assert min(changes.values()) > facts["bound"] * facts["max_abs_output"][facts["change_measured_on"]]
    np.testing.assert_allclose(apart, features, atol=5e-6, rtol=0)
    assert set(weights["params"]) == set(module.groups)


FILES = [
    (case, file.name)
    for case in CASES
    if golden(case)[0]["weights_from"] is None
    for file in sorted((GOLDEN / case).glob("weights*"))
]


@pytest.mark.parametrize(("case", "file"), FILES)
def test_there_and_back_is_the_same_bits(case, file):
    module, arrays = loaded(case, file)
    table = mappings.tables(module)[described(case).source]
    back = unconvert(arrays, table)
    source = files.read(GOLDEN / case / file)
    kept = {table.canonical(name): value for name, value in source.items() if not re.fullmatch(LEFT, name)}
    assert set(back) == set(kept)
    for name, value in kept.items():
        assert (back[name].shape, back[name].tobytes()) == (value.shape, value.tobytes()), name


def alike(module):
    """The module without what is no part of a trained network, and said in one of two ways."""
    return module.clone(layer_scale=module.layer_scale and 1.0, mlp_width=module.mlp_width or 4 * module.width)


@pytest.mark.parametrize("case", [case for case in CASES if case not in OBLONG])
def test_an_exports_config_describes_the_same_network(case, tmp_path):
    row = described(case)
    made_of = attributes(pretrained.in_file(row))
    library = "timm" if row.source == "timm" else "transformers"
    row = dataclasses.replace(row, classes=("LABEL_0", "LABEL_1") if "proj" in case else ())
    (tmp_path / "config.json").write_text(json.dumps(getattr(export_config, library)("ViT", made_of, row)))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(export_config.processor(row.preprocessing)))
    again = import_config.read(tmp_path, case)
    assert again.backbone == row.backbone
    for ours, theirs in (
        (again.preprocessing.mean, row.preprocessing.mean),
        (again.preprocessing.std, row.preprocessing.std),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert (again.preprocessing.size, again.preprocessing.edge) == (row.preprocessing.size, row.preprocessing.edge)
    assert alike(pretrained.in_file(again)) == alike(pretrained.in_file(row))


@pytest.mark.parametrize(
    ("case", "to"),
    [
        *(("timm_vit_dinov3_plus", "timm"), ("hf_dinov3_vit", "hf"), ("timm_vit_dinov2_giant", "hf")),
        *(("timm_siglip_so400m", "timm"), ("hf_siglip_vision", "hf")),
        *(("hf_clip_vision_proj", "hf"), ("hf_clip_vision_proj", "timm"), ("timm_vit_qk_norm", "timm")),
    ],
)
def test_a_folder_goes_out_and_comes_back(case, to, tmp_path):
    folder = folder_of(case, tmp_path / "r")
    row = pretrained.resolve_weights(BackboneConfig(weights=str(folder)))
    arrays, _ = pretrained.read(row, folder)
    if (case, to) == ("hf_clip_vision_proj", "timm"):  # whose head has a bias
        arrays["head/bias"] = np.zeros(16, np.float32)
    if case == "timm_vit_dinov2_giant":  # whose classifier there reads another pooling
        arrays = {path: array for path, array in arrays.items() if not path.startswith("head")}
        pretrained.write(tmp_path / "headless", row, arrays)
        folder = tmp_path / "headless"
    convert_folder(BackboneConfig(weights=str(folder)), tmp_path / "out", to=to)
    again = pretrained.resolve_weights(BackboneConfig(weights=str(tmp_path / "out")))
    assert alike(pretrained.in_file(again)) == alike(pretrained.in_file(row))
    back, _ = pretrained.read(again, tmp_path / "out")
    assert {path: array.tobytes() for path, array in back.items()} == {
        path: array.tobytes() for path, array in arrays.items()
    }
    if case.startswith(to):
        source = {name for name in files.read(tmp_path / "r" / "model.safetensors") if not re.fullmatch(LEFT, name)}
        assert set(files.read(tmp_path / "out" / "model.safetensors")) == source


NAMED = {"classes": ("disc", "square")}


def test_siglip_goes_to_transformers_where_its_head_reads_what_transformers_classifier_does(tmp_path):
    row = dataclasses.replace(described("hf_siglip_vision"), **NAMED)
    made_of = attributes(pretrained.in_file(row))
    with pytest.raises(InputError, match=r"SigLIP classifier reads normed_mean: train with backbone\.pool=normed_mean"):
        export_config.transformers("ViT", made_of, row)
    config = export_config.transformers("ViT", made_of | {"pool": "normed_mean"}, row)
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = import_config.read(tmp_path, "x")
    assert (attributes(pretrained.in_file(again)), again.classes) == (made_of | {"pool": "normed_mean"}, row.classes)


def test_a_config_of_two_towers_describes_that_of_the_images(tmp_path):
    for kind, case in (("siglip", "hf_siglip_vision"), ("clip", "hf_clip_vision_proj")):
        tower = json.loads((GOLDEN / case / "config.json").read_text())
        config = {"model_type": kind, "vision_config": tower, "text_config": {"vocab_size": 9}, "projection_dim": 16}
        (tmp_path / "config.json").write_text(json.dumps(config))
        row, known = import_config.read(tmp_path, "x"), described(case)
        assert attributes(pretrained.in_file(row)) == attributes(pretrained.in_file(known))
        config["vision_config"] = tower | {"window": 7}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=r"vision_config\.window=7 is not known here"):
            import_config.read(tmp_path, "x")


@pytest.mark.parametrize(
    ("library", "case", "change", "message"),
    [
        ("transformers", "hf_clip_vision_proj", {}, "its CLIP classifier reads patches that are not normalized"),
        ("transformers", "hf_dinov3_vit", {}, "transformers has no DINOv3 ViT with a classifier"),
        ("transformers", "timm_vit_qk_norm", {}, "only qk_norm=False, not True"),
        ("transformers", "timm_vit_reg4_gap", {}, "only registers=0, not 4"),
        ("timm", "timm_vit_dinov3", {"qkv_bias": "query_value"}, "only qkv_bias='none', not 'query_value'"),
        ("timm", "timm_vit_dinov3", {"pool": "mean"}, "pools by 'mean', only class, normed_mean"),
        ("timm", "timm_clip_laion", {"eps": 1e-6}, "only eps=1e-05, not 1e-06"),
        ("timm", "timm_vit_patch8", {"gated": True}, "only gated=False, not True"),
    ],
)
def test_a_network_that_the_library_does_not_have_is_named(library, case, change, message):
    row = dataclasses.replace(described(case), **NAMED)
    with pytest.raises(InputError, match=re.escape(message)):
        getattr(export_config, library)("ViT", attributes(pretrained.in_file(row)) | change, row)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("hf_dinov3_vit", {"rope_theta": 10.0}, "rope_theta=10.0 is not supported, only 100.0"),
        ("hf_dinov3_vit", {"value_bias": False}, "query_bias=true is not supported with such key_bias and value_bias"),
        ("hf_dinov3_vit", {"mlp_bias": False}, "mlp_bias=false is not supported, only true"),
        ("hf_clip_vision_proj", {"hidden_act": "relu"}, 'hidden_act="relu" is not supported, only gelu'),
        ("timm_vit_32x48", {}, "img_size=[32, 48] is no square"),
        ("timm_vit_dinov3", {"use_fc_norm": True}, "model_args.use_fc_norm=true is not supported, only false"),
        ("timm_vit_dinov3", {"rope_temperature": 10.0}, "model_args.rope_temperature=10.0 is not known here"),
    ],
)
def test_a_config_of_what_is_not_here_is_named(case, change, message, tmp_path):
    config = json.loads((GOLDEN / case / "config.json").read_text())
    (config["model_args"] if case.startswith("timm") else config).update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=re.escape(message)):
        import_config.read(tmp_path, "x")


def test_a_vit_without_a_class_token_does_not_pool_by_it():
    module = BACKBONES["vit_base_patch16_siglip"].clone(pool="class")
    with pytest.raises(InputError, match="cannot pool by 'class': it has mean, normed_mean"):
        shapes(module)


DINOV3 = "facebook/dinov3-vit{}-pretrain-lvd1689m/DINOv3ViTModel"
# file: name of a manifest -> the module; those of timm are the rows with its name
MANIFESTS = {
    "dinov3": {
        **{
            f"hf/{DINOV3.format(size)}": BACKBONES[f"vit_{name}_patch16_dinov3_qkvb"]
            for size, name in {"s16": "small", "s16plus": "small_plus", "b16": "base", "l16": "large"}.items()
        },
        # Where the class token has a position, too.
        **{
            f"hf/facebook/dinov2-with-registers-{size}/Dinov2WithRegistersModel": BACKBONES[
                f"vit_{size}_patch14_reg4_dinov2"
            ].clone(positions="all")
            for size in ("base", "large")
        },
    },
    "siglip": {
        f"hf/google/siglip-base-patch16-224{name}": BACKBONES["vit_base_patch16_siglip"]
        for name in ("/SiglipModel", "#vision/SiglipVisionModel")
    },
    "clip": {
        "hf/openai/clip-vit-base-patch32/CLIPModel": BACKBONES["vit_base_patch32_clip_quickgelu"],
        **{
            f"hf/openai/clip-vit-{name}#vision/CLIPVisionModelWithProjection": BACKBONES[
                f"vit_{name.replace('-', '_')}_clip_quickgelu"
            ]
            for name in ("base-patch32", "base-patch16", "large-patch14")
        },
    },
    "vit_options": {"hf/facebook/vit-mae-base/ViTMAEForPreTraining": BACKBONES["vit_base_patch16"]},
}


def manifests(file: str) -> dict[str, dict[str, list[int]]]:
    return json.loads(gzip.decompress((GOLDEN / f"manifests_{file}.json.gz").read_bytes()))


def module_of(file: str, name: str):
    """The module that a manifest is of."""
    known = MANIFESTS[file].get(name.replace("hf_hub/", "hf/"))
    if known is None:
        architecture = name.removeprefix("timm/").split(".")[0]
        known = BACKBONES.get(architecture) or BACKBONES[architecture.rsplit("_", 1)[0]]
    return known


@functools.cache
def targets(module):
    """The shapes of a network, of which only a block is traced: all its blocks are alike."""
    small = shapes(module.clone(depth=1))
    return {
        path.replace("/block_0/", f"/block_{i}/"): shape
        for path, shape in small.items()
        for i in range(module.depth if "/block_0/" in path else 1)
    }


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in MANIFESTS for name in manifests(file)])
@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else(file, name):
    module, source = module_of(file, name), manifests(file)[name]
    library = name.split("/")[0].removesuffix("_hub")
    table, expected = mappings.tables(module)[library], set(targets(module))
    spellings = [table.canonical(key) for key in source]
    assert all(spelling in table.by_source or table.ignores(spelling) for spelling in spellings)
    filled = {table.by_source[spelling].target for spelling in spellings if spelling in table.by_source}
    assert filled <= expected and expected - filled <= optional(module)
    # Shapes are those of a network of one block: arrays of billions of numbers take seconds.
    firsts = {key: re.sub(r"\b(blocks|layers?)\.\d+\.", r"\1.0.", key) for key in source}
    assert all(source[firsts[key]] == shape for key, shape in source.items())
    source = {key: source[key] for key in firsts.values()}
    module = module.clone(depth=1)
    table, targets_of_one = mappings.tables(module)[library], targets(module)
    done = convert(empty(source), table, targets_of_one, optional(module))
    used = [key for key in source if key not in done.ignored and not key.startswith(("head.", "classifier."))]
    key = used[len(used) // 2]
    without = {other: shape for other, shape in source.items() if other != key}
    for said, changed in (
        (f"no mapping for source {key}_", source | {f"{key}_": [1]}),
        (key, source | {key: [*source[key], 2]}),
        ("target ", without),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            convert(empty(changed), table, targets_of_one, optional(module))


def test_dinov2_giants_own_file_has_its_own_names_for_a_swiglu():
    module, arrays = loaded("timm_vit_dinov2_giant")
    source = files.read(GOLDEN / "timm_vit_dinov2_giant" / "weights.safetensors")
    own = {name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): array for name, array in source.items()}
    back = convert(own, mappings.tables(module)["dinov2"], shapes(module), optional(module)).arrays
    assert {path: array.tobytes() for path, array in back.items()} == {
        path: array.tobytes() for path, array in arrays.items()
    }


def test_keys_without_a_bias_have_zeros_in_dinov3s_own_file():
    module, arrays = loaded("timm_vit_dinov3_qkvb")
    arrays = {path: array for path, array in arrays.items() if not path.startswith("head")}
    table = mappings.tables(module)["dinov3"]
    source = unconvert(arrays, table)
    queries, keys, values = np.split(source["blocks.1.attn.qkv.bias"], 3)
    assert not keys.any() and queries.all() and values.all()
    source["blocks.1.attn.qkv.bias"] = np.concatenate([queries, keys + 7, values])  # which the mask takes away
    back = convert(source, table, shapes(module), optional(module)).arrays
    assert {path: array.tobytes() for path, array in back.items()} == {
        path: array.tobytes() for path, array in arrays.items()
    }
    source["blocks.1.attn.qkv.bias"] = np.zeros(3, np.float32)
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.qkv\.bias \(3,\) does not make target"):
        convert(source, table, shapes(module), optional(module))


def test_axial_angles_are_two_pi_x_over_the_period_on_each_axis():
    angles = axial_angles((2, 3), 8)
    assert angles.dtype == np.float32
    np.testing.assert_array_equal(angles[:, :4], angles[:, 4:])
    down, across = [-0.5, -0.5, -0.5, 0.5, 0.5, 0.5], [-2 / 3, 0, 2 / 3] * 2
    expected = 2 * np.pi * np.stack([down, np.divide(down, 10), across, np.divide(across, 10)], 1)
    np.testing.assert_allclose(angles[:, :4], expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="a head of 6 channels has no axial rotary positions: give a multiple of 4"):
        axial_angles((2, 3), 6)


def test_pairs_of_channels_are_turned_as_complex_numbers_and_what_has_no_place_is_not():
    angles = axial_angles((2, 3), 8)
    x = np.random.default_rng(0).standard_normal((1, 2, 9, 8), np.float32)
    turned = np.asarray(rotated(jnp.asarray(x), angles))
    np.testing.assert_array_equal(turned[:, :, :3], x[:, :, :3])
    pairs = (x[:, :, 3:, :4] + 1j * x[:, :, 3:, 4:]) * np.exp(1j * angles[:, :4])
    expected = np.concatenate([pairs.real, pairs.imag], axis=-1)
    np.testing.assert_allclose(turned[:, :, 3:], expected, atol=1e-6, rtol=0)
