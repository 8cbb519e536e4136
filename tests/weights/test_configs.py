"""Repositories as timm and transformers lay them out: read to the network they mean, written so that it comes back."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import GOLDEN, golden
from tests.models import test_bert as text
from tljax.cli.convert import convert
from tljax.config.schema import BackboneConfig
from tljax.data.preprocessing import Preprocessing
from tljax.errors import InputError
from tljax.models.registry import BACKBONES, attributes, build
from tljax.models.vision.resnet import ResNet
from tljax.models.vision.vit import ViT
from tljax.weights import export_config, mappings, pretrained
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import import_config, processors

DINOV2 = {"model_type": "dinov2", "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3}
DINOV2 |= {"image_size": 70, "patch_size": 14, "architectures": ["Dinov2ForImageClassification"]}
VIT = {"model_type": "vit", "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3}
VIT |= {"intermediate_size": 80, "image_size": 32, "patch_size": 8}
TIMM = {"architecture": "vit_base_patch16_224", "num_classes": 7, "global_pool": "token"}
TIMM |= {"model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}}
BASIC = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1]}
BASIC |= {"layer_type": "basic"}


def _repository(folder, weights, config, processor=None):
    folder.mkdir()
    shutil.copy(GOLDEN / weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.mark.parametrize(
    ("case", "file", "config"),
    [
        ("hf_vit", "weights_hub.safetensors", VIT),
        ("hf_dinov2", "weights_hub.safetensors", DINOV2),
        ("timm_vit_cls", "weights.safetensors", TIMM),
    ],
)
def test_a_repository_is_its_config_and_its_weights(tmp_path, case, file, config):
    folder = _repository(tmp_path / "repository", f"{case}/{file}", config)
    row = pretrained.resolve_weights(BackboneConfig(weights=str(folder)))
    module = pretrained.module_of(row)
    _, io = golden(case)
    variables = jax.tree.map(jnp.asarray, pretrained.restore(row, module))
    features = module.apply({"params": variables["params"]}, jnp.asarray(io["image"]))
    np.testing.assert_allclose(features, io["features"], atol=2e-5, rtol=0)
    logits = features @ variables["head"]["kernel"] + variables["head"]["bias"]
    np.testing.assert_allclose(logits, io["logits"], atol=2e-5, rtol=0)


def test_weights_in_half_precision_are_trained_in_float32(tmp_path):
    folder = _repository(tmp_path / "repository", "timm_vit_cls/weights.safetensors", TIMM)
    whole = load_file(folder / "model.safetensors")
    save_file({name: array.astype(np.float16) for name, array in whole.items()}, folder / "model.safetensors")
    row = pretrained.resolve_weights(BackboneConfig(weights=str(folder)))
    for leaf in jax.tree.leaves(pretrained.restore(row, pretrained.module_of(row))):
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, leaf.astype(np.float16))


TEXT = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80, "vocab_size": 61}
DISTILBERT = {"dim": 36, "n_layers": 2, "n_heads": 3, "hidden_dim": 80, "vocab_size": 61}


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("hf_bert_cls", {"model_type": "bert", **TEXT, "max_position_embeddings": 24}),
        (
            "hf_roberta_cls",
            {"model_type": "roberta", **TEXT, "max_position_embeddings": 26, "type_vocab_size": 1}
            | {"architectures": ["RobertaForSequenceClassification"]},
        ),
        (
            "hf_distilbert_cls",
            {"model_type": "distilbert", **DISTILBERT, "max_position_embeddings": 24}
            | {"architectures": ["DistilBertForSequenceClassification"]},
        ),
    ],
)
def test_a_text_repository_too(tmp_path, case, config):
    folder = _repository(tmp_path / "repository", f"{case}/weights.safetensors", config)
    row = pretrained.resolve_weights(BackboneConfig(weights=str(folder)))
    module, _, io = text.load(case)
    assert pretrained.module_of(row) == module.clone(gelu="erf")
    variables = jax.tree.map(jnp.asarray, pretrained.restore(row, module))
    features = module.apply({"params": variables["params"]}, text.text_of(io))
    logits = features @ variables["head"]["kernel"] + variables["head"]["bias"]
    np.testing.assert_allclose(logits, io["logits"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("case", "kind", "architecture"),
    [
        ("hf_bert_cls", "bert", "BertForSequenceClassification"),
        ("hf_roberta_cls", "roberta", "RobertaForSequenceClassification"),
        ("hf_distilbert_cls", "distilbert", "DistilBertForSequenceClassification"),
    ],
)
def test_text_goes_back_to_the_same_files(tmp_path, case, kind, architecture):
    module, names, _ = text.CASES[case]
    arrays = text.arrays_of(text.weights_of(case), module, names)
    made_of = attributes(module)
    name = {"bert": "bert_base", "roberta": "roberta_base", "distilbert": "distilbert_base"}[kind]
    row = Pretrained("x", "", name, "", Preprocessing(), "MIT", architecture=made_of)
    pretrained.write(tmp_path / "orbax", row, arrays)
    convert(BackboneConfig(weights=str(tmp_path / "orbax")), tmp_path / "hf", to="hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == (kind, [architecture])
    found, table = load_file(tmp_path / "hf" / "model.safetensors"), mappings.tables(module)[names]
    wanted = {table.canonical(key): value for key, value in text.weights_of(case).items()}
    kept = {rule.source for rule in table.mappings}
    assert set(found) == kept & wanted.keys()
    for key, array in found.items():
        assert array.tobytes() == wanted[key].tobytes(), key
    again = pretrained.resolve_weights(BackboneConfig(weights=str(tmp_path / "hf")))
    assert pretrained.module_of(again) == module


def test_a_processor_says_what_images_the_network_expects(tmp_path):
    processor = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    processor |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "resample": 3}
    labels = {"id2label": {"1": "square", "0": "disc"}}
    folder = _repository(tmp_path / "r", "hf_vit/weights_hub.safetensors", VIT | labels, processor)
    row = import_config.read(folder, "r")
    assert row.preprocessing == Preprocessing(224, 0.875, (127.5, 102.0, 76.5), (51.0, 51.0, 51.0), "rgb", "bicubic")
    assert row.classes == ("disc", "square")


EDGE, SQUARE = {"shortest_edge": 256}, {"height": 256, "width": 256}
CROP = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}


@pytest.mark.parametrize(
    ("processor", "size", "crop_fraction", "resize"),
    [
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}, 224, 1.0, "squash"),
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 224}, 224, 1.0, "squash"),
        ({"image_processor_type": "DeiTImageProcessor", "size": SQUARE, **CROP}, 224, 0.875, "squash"),
        ({"image_processor_type": "BitImageProcessor", "size": EDGE, **CROP}, 224, 0.875, "crop"),
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.9}, 224, 0.9, "crop"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}, 224, 0.875, "crop"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}}, 384, 1.0, "squash"),
    ],
)
def test_each_of_transformers_processors_cuts_in_its_own_way(processor, size, crop_fraction, resize):
    found, _ = processors.read(processor)
    assert (found.size, found.crop_fraction, found.resize) == (size, crop_fraction, resize)
    again, _ = processors.read(export_config.processor(found))
    assert (again.size, int(size / again.crop_fraction), again.resize) == (size, int(size / crop_fraction), resize)


IMAGES = Preprocessing(56, 0.875, (127.5, 102.0, 76.5), (51.0, 51.0, 51.0), "rgb", "bicubic")
VARIANTS = {
    "vit_base_patch16": ViT(width=36, depth=2, heads=3, patch_size=8, grid=(7, 7), mlp_width=80),
    "vit_base_patch14_dinov2": BACKBONES["vit_base_patch14_dinov2"],
    "vit_small_patch14_reg4_dinov2": BACKBONES["vit_small_patch14_reg4_dinov2"],
    "resnet50": BACKBONES["resnet50"],
    "resnet18": ResNet(depths=(1, 2, 1, 1), widths=(8, 16, 24, 32), kind="basic"),
}


@pytest.mark.parametrize(
    ("architecture", "name", "grid"),
    [
        ("vit_base_patch16_384", "vit_base_patch16", (24, 24)),
        ("deit3_large_patch16_384", "deit3_large_patch16", (24, 24)),
        ("vit_small_patch32_224", "vit_small_patch32", (7, 7)),
        ("vit_base_patch14_reg4_dinov2", "vit_base_patch14_reg4_dinov2", (37, 37)),
    ],
)
def test_the_size_in_timms_name_is_the_grid(tmp_path, architecture, name, grid):
    config = {"architecture": architecture, "pretrained_cfg": {"crop_mode": "squash"}}
    folder = _repository(tmp_path / "repository", "timm_vit_cls/weights.safetensors", config)
    row = pretrained.resolve_weights(BackboneConfig(weights=str(folder)))
    assert (row.backbone, pretrained.module_of(row).grid, row.preprocessing.resize) == (name, grid, "squash")


@pytest.mark.parametrize("library", ["timm", "transformers"])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_written_is_read_back(tmp_path, name, library):
    module = VARIANTS[name]
    if library == "transformers" and isinstance(module, ViT):
        module = module.clone(positions="all", pool="class_mean" if module.layer_scale else "class")
    row = Pretrained("x", "", name, "", IMAGES, "MIT", classes=("disc", "square"))
    made_of = attributes(module)
    config = getattr(export_config, library)(type(module).__name__, made_of, row)
    assert isinstance(config.get("mlp_ratio", 4), int)  # transformers refuses 4.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(export_config.processor(IMAGES)))
    found = import_config.read(tmp_path, "x")
    again = build(found.backbone, found.architecture)
    for key, value in made_of.items():
        if key == "mlp_width":
            value = value or 4 * module.width
        if key == "layer_scale" or (key == "mlp_width" and getattr(again, key) is None):
            continue
        assert getattr(again, key) == value, key
    assert found.classes == row.classes
    np.testing.assert_allclose(found.preprocessing.mean, IMAGES.mean)
    np.testing.assert_allclose(found.preprocessing.std, IMAGES.std)
    assert (found.preprocessing.size, found.preprocessing.crop_fraction) == (56, 0.875)
    assert found.preprocessing.interpolation == "bicubic"


def test_timm_counts_a_deep_stems_width_before_it_doubles(tmp_path):
    made_of = attributes(ResNet(stem="deep", avg_down=True, stem_width=32))
    config = export_config.timm("ResNet", made_of, Pretrained("x", "", "resnet50d", "", IMAGES, "MIT"))
    assert config["model_args"]["stem_width"] == 16
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert import_config.read(tmp_path, "x").architecture["stem_width"] == 32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "levit"},
            'config.json: model_type="levit" describes a network that is not here (nearest: vit); known: timm\'s, vit',
        ),
        ({**DINOV2, "use_swiglu_ffn": 1}, "use_swiglu_ffn=1 must be true or false"),
        ({**VIT, "hidden_act": "relu"}, 'hidden_act="relu" is not supported, only gelu'),
        ({**TIMM, "model_args": {"proj_bias": False}}, "model_args.proj_bias=false is not supported"),
        ({**TIMM, "pretrained_cfg": {"crop_mode": "border"}}, 'crop_mode="border" is not supported, only center, sq'),
        ({**TIMM, "architecture": "mixer_b16"}, 'architecture="mixer_b16" is none of timm\'s families that are here'),
        (
            {**TIMM, "architecture": "vit_gigantic_patch14_224"},
            "no backbone.name 'vit_gigantic_patch14' (nearest: ",
        ),
    ],
)
def test_a_network_that_tljax_does_not_have(tmp_path, config, message):
    folder = _repository(tmp_path / "r", "hf_vit/weights_hub.safetensors", config)
    with pytest.raises(InputError) as error:
        pretrained.resolve_weights(BackboneConfig(weights=str(folder)))
    assert message in str(error.value)


def test_a_damaged_config(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type":')
    with pytest.raises(InputError, match=r"x: config\.json is damaged"):
        import_config.read(tmp_path, "x")


@pytest.mark.parametrize(
    ("library", "name", "message"),
    [
        ("timm", "resnet50_v1", "timm has no such network: only stride_on='3x3', not '1x1'"),
        ("timm", "resnet50_half_v1_folded", "timm has no such network: only norm='batch', not 'folded'"),
        ("transformers", "deit3_small_patch16", "transformers has no such network: only positions='all'"),
    ],
)
def test_a_network_that_the_library_does_not_have(library, name, message):
    module = BACKBONES[name]
    made_of = attributes(module)
    with pytest.raises(InputError) as error:
        getattr(export_config, library)(type(module).__name__, made_of, Pretrained("x", "", name, "", IMAGES, "MIT"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "attribute", "value"), [("vit_base_patch16", "gelu", "tanh"), ("resnetv2_50x1_bit", "conv_eps", 1e-10)]
)
def test_googles_own_files_are_computed_as_google_did(tmp_path, name, attribute, value):
    file = tmp_path / "weights.npz"
    file.touch()
    assert (
        getattr(pretrained.module_of(pretrained.resolve_weights(BackboneConfig(name, str(file)))), attribute) == value
    )
    assert getattr(BACKBONES[name], attribute) != value  # timm's reading of the same weights


@pytest.mark.parametrize("case", ["hf_efficientnet", "hf_mobilenet_v2"])
def test_a_convolutional_repository_is_its_config_and_its_weights(tmp_path, case):
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(GOLDEN / case / name, tmp_path / name)
    shutil.copy(GOLDEN / case / "weights.safetensors", tmp_path / "model.safetensors")
    row = pretrained.resolve_weights(BackboneConfig(weights=str(tmp_path)))
    facts, io = golden(case)
    variables = jax.tree.map(jnp.asarray, pretrained.restore(row, pretrained.module_of(row)))
    head = variables.pop("head")
    features = jax.jit(pretrained.module_of(row).apply)(variables, jnp.asarray(io["image"]))
    tolerance = facts["bound"] * facts["max_abs_output"]["logits"]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], io["logits"], atol=tolerance, rtol=0)
    # Where a classifier follows, transformers' EfficientNet divides by the standard deviation twice.
    std = 0.25 if case == "hf_efficientnet" else 0.5
    assert row.preprocessing.size == 64
    assert row.preprocessing.mean == (127.5,) * 3
    np.testing.assert_allclose(row.preprocessing.std, 255 * std)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depthwise_padding": [0]}, "depthwise_padding=[0] is not TensorFlow's SAME at this image_size, which is []"),
        ({"expand_ratios": [1, 6]}, "has another number of stages"),
        ({"hidden_act": "gelu"}, 'hidden_act="gelu" is not supported, only swish, silu'),
    ],
)
def test_an_efficientnet_that_is_another_is_refused(tmp_path, changes, message):
    config = json.loads((GOLDEN / "hf_efficientnet" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError) as error:
        import_config.read(tmp_path, "x")
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "efficientnet_b3", "tf_efficientnetv2_s", "mobilenetv2_100"])
@pytest.mark.parametrize("pool", ["mean", "avgmax"])
def test_an_efficientnet_is_written_and_read_back_as_timm_names_it(tmp_path, name, pool):
    module = BACKBONES[name].clone(pool=pool)
    row = Pretrained("x", "", name, "", IMAGES, "MIT", classes=("disc", "square"))
    (tmp_path / "config.json").write_text(json.dumps(export_config.timm("EfficientNet", attributes(module), row)))
    again = import_config.read(tmp_path, "x")
    assert build(again.backbone, again.architecture) == module
    other = attributes(module) | {"widths": (8, *module.widths[1:])}
    with pytest.raises(InputError, match="timm has no such network: only widths"):
        export_config.timm("EfficientNet", other, row)
