"""Configs that other libraries write: each key is followed, known to change nothing, or refused by name."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import GOLDEN, ROOT, tiny_run
from tests.weights.test_configs import DISTILBERT, TEXT, TIMM, VIT
from tljax.config.schema import BackboneConfig
from tljax.data.preprocessing import Preprocessing
from tljax.data.transforms import image
from tljax.data.transforms.tokenize import Tokenizer
from tljax.errors import InputError
from tljax.io import harmless_keys
from tljax.profiling.summary import assumptions, expected, show
from tljax.weights import mappings, pretrained
from tljax.weights.configs import import_config

CASES = ROOT / "tests" / "cases" / "foreign_configs"
HALF, NONE = (127.5,) * 3, (0.0,) * 3


def read(folder: Path, config: dict, processor: dict | None = None):
    """The row of a repository with these files."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return import_config.read(folder, "x")


def case(name: str) -> dict:
    return json.loads((CASES / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("no_normalize", Preprocessing(224, 1.0, NONE, (255.0,) * 3, "rgb", "bilinear", "squash")),
        (
            "no_rescale",
            Preprocessing(
                224, 1.0, (123.7, 116.3, 103.5), (58.4, 57.1, 57.4), "rgb", "bilinear", "squash", rescale=1.0
            ),
        ),
        ("rescale_127", Preprocessing(224, 1.0, NONE, HALF, "rgb", "bilinear", "squash", rescale=2 / 255)),
        ("resample_nearest", Preprocessing(224, 1.0, HALF, HALF, "rgb", "nearest", "squash")),
        ("shortest_edge_crop", Preprocessing(224, 0.875, HALF, HALF, "rgb", "bicubic", "crop")),
        ("size_int", Preprocessing(384, 1.0, HALF, HALF, "rgb", "bilinear", "squash")),
        ("convnext_crop_pct", Preprocessing(224, 0.875, HALF, HALF, "rgb", "bicubic", "crop")),
        ("no_resize", Preprocessing(224, 1.0, HALF, HALF, "rgb", "bilinear", "none")),
    ],
)
def test_a_processor_is_followed(name, images, tmp_path):
    found = read(tmp_path / "r", VIT, case(name)).preprocessing
    assert found == images
    assert found.edge == (256 if "crop" in name else found.size)


def test_a_plain_size_is_the_shorter_side_for_a_processor_that_crops(tmp_path):
    for kind, found in (("Bit", (224, 384, "crop")), ("ConvNext", (384, 384, "squash")), ("CLIP", (224, 384, "crop"))):
        row = read(tmp_path / "r", VIT, case("size_int") | {"image_processor_type": f"{kind}ImageProcessor"})
        assert (row.preprocessing.size, row.preprocessing.edge, row.preprocessing.resize) == found


@pytest.mark.parametrize("number", range(6))
def test_each_of_pils_filters_is_computed_as_pil_computes_it(number, tmp_path):
    row = read(tmp_path / "r", VIT, case("resample_nearest") | {"resample": number, "size": 24})
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8))
    data = io.BytesIO()
    picture.save(data, "PNG")
    wanted = np.asarray(picture.resize((24, 24), Image.Resampling(number)))
    for decode, most in (("exact", 0), ("fast", 2 if number in (2, 3) else 0)):
        found = image.source_view(data.getvalue(), "x", row.preprocessing, decode=decode, resize=0, crop="center")
        assert np.abs(found.astype(int) - wanted).max() <= most


def test_where_nothing_is_resized_a_picture_of_another_size_is_refused():
    none = Preprocessing(size=32, resize="none")
    for side in (32, 40):
        data = io.BytesIO()
        Image.new("RGB", (side, 32)).save(data, "PNG")
        view = {"decode": "exact", "resize": 0, "crop": "center"}
        if side == 32:
            assert image.source_view(data.getvalue(), "a.png", none, **view).shape == (32, 32, 3)
        else:
            with pytest.raises(InputError, match=r"a\.png.*40 × 32 pixels, and the weights take 32 × 32"):
                image.source_view(data.getvalue(), "a.png", none, **view)


VIT_PROCESSOR = case("no_normalize")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (case("longest_edge"), 'size={"longest_edge": 256} keeps a picture\'s shape'),
        (case("unknown_key"), "do_color_quantize=true is not known here"),
        ({"size": {"height": 224, "width": 200}}, "is no square"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "keeps a picture's shape"),
        ({"size": {"shortest_edge": 224, "tallest": 3}}, "size.tallest=3 is not known here"),
        ({"size": "224"}, 'size="224" must be a whole number of pixels'),
        ({"do_center_crop": True, "crop_size": 300}, "crop_size=300 is more than the size of 224"),
        ({"do_resize": False, "do_center_crop": True}, "do_resize=false with do_center_crop is not supported"),
        ({"do_normalize": "yes"}, 'do_normalize="yes" must be true or false'),
        ({"rescale_factor": 0}, "rescale_factor=0 must be a number above 0"),
        ({"rescale_factor": float("nan")}, "rescale_factor=NaN must be a number above 0"),
        ({"resample": 6}, "resample=6 is not supported, only 0, 1, 2, 3, 4, 5"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std=[0.5, 0.0, 0.5] must be 1, 3 or 4 numbers above 0"),
        ({"image_mean": [0.5]}, "image_std=[0.5, 0.5, 0.5] has 3 values, and image_mean 1"),
        ({"image_processor_type": "VideoMAEImageProcessor"}, 'image_processor_type="VideoMAEImageProcessor"'),
        ({"do_pad": True}, "do_pad=true is not supported, only false"),
    ],
)
def test_a_processor_that_cannot_be_followed_is_named(change, message, tmp_path):
    with pytest.raises(InputError) as error:
        read(tmp_path / "r", VIT, VIT_PROCESSOR | change)
    assert str(error.value).startswith("x: preprocessor_config.json: ") and message in str(error.value)


@pytest.mark.parametrize("content", ["[]", "3", '"x"', "{", "[" * 100_000])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_file_of_any_shape_is_one_line(file, content, tmp_path):
    read(tmp_path / "r", VIT, VIT_PROCESSOR)
    (tmp_path / "r" / file).write_text(content)
    with pytest.raises(InputError, match=f"x: {file}.* (must be an object|is damaged)") as error:
        import_config.read(tmp_path / "r", "x")
    assert "\n" not in str(error.value)


BERT = {"model_type": "bert", **TEXT, "max_position_embeddings": 24}


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (BERT, {"is_decoder": True}, "is_decoder=true is not supported, only false"),
        (BERT, {"add_cross_attention": True}, "add_cross_attention=true is not supported, only false"),
        (BERT, {"position_embedding_type": "relative_key"}, 'position_embedding_type="relative_key" is not supported'),
        (BERT, {"hidden_act": "quick_gelu"}, 'hidden_act="quick_gelu" is not supported'),
        (BERT, {"hidden_size": "36"}, 'hidden_size="36" must be a whole number, 1 or more'),
        (BERT, {"num_attention_heads": 5}, "num_attention_heads=5 does not divide the width of 36"),
        (BERT, {"layer_norm_eps": -1}, "layer_norm_eps=-1 must be a number above 0"),
        (BERT, {"pruned_heads": {"0": [1]}}, "pruned_heads="),
        (BERT, {"quantization_config": {"bits": 4}}, "quantization_config="),
        (BERT, {"auto_map": {"AutoModel": "code.py"}}, "auto_map="),
        (BERT, {"id2label": ["a"]}, 'id2label=["a"] must give each class\'s number a name'),
        (BERT, {"problem_type": "ranking"}, 'problem_type="ranking" is not supported'),
        (BERT, {"vocab_size": None}, "vocab_size=null must be a whole number"),
        ({"model_type": "distilbert", **DISTILBERT}, {"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05 is not supported"),
        (VIT, {"qkv_bias": False}, "qkv_bias=false is not supported, only true"),
        (VIT, {"image_size": [32, 48]}, "image_size=[32, 48] is no square"),
        (VIT, {"use_conv_stem": True}, "use_conv_stem=true is not known here"),
    ],
)
def test_a_network_of_transformers_that_is_not_here_is_named(config, change, message, tmp_path):
    with pytest.raises(InputError) as error:
        read(tmp_path / "r", config | change)
    assert str(error.value).startswith("x: config.json: ") and message in str(error.value)


def test_what_is_harmless_has_a_reason_and_changes_nothing(tmp_path):
    for table, config in ((harmless_keys.TRANSFORMERS, BERT), (harmless_keys.PROCESSOR, None)):
        assert all(len(reason) > 20 for reason in table.values())
        odd = dict.fromkeys(table, 0.123)
        if config:
            odd.pop("model_type")
            assert read(tmp_path / "r", config | odd) == read(tmp_path / "r", config)
        else:
            assert read(tmp_path / "r", VIT, VIT_PROCESSOR | odd) == read(tmp_path / "r", VIT, VIT_PROCESSOR)


def test_timms_flat_file_is_followed(tmp_path):
    row = read(tmp_path / "r", case("timm_flat"))
    assert row.preprocessing == Preprocessing(224, 0.9, HALF, HALF, "rgb", "bicubic", "crop")
    assert (row.backbone, row.origins["mean"]) == ("vit_tiny_patch16", "config.json: mean")


def test_a_folder_that_timm_saved_for_the_hub_is_followed(tmp_path):
    row = read(tmp_path / "r", case("timm_save_for_hf"))
    module = pretrained.module_of(row)
    assert (module.grid, module.patch_size, module.pool, module.pooled_norm) == ((4, 4), 8, "mean", True)
    assert row.preprocessing == Preprocessing(32, 0.9, HALF, HALF, "rgb", "lanczos", "crop")
    assert row.origins["interpolation"] == "config.json: pretrained_cfg.interpolation"
    assert any(rule.source == "fc_norm.weight" for rule in mappings.tables(module)["timm"].mappings)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("pretrained_cfg", {"interpolation": "random"}, 'pretrained_cfg.interpolation="random" is not supported'),
        ("pretrained_cfg", {"crop_mode": "border"}, 'pretrained_cfg.crop_mode="border" is not supported'),
        ("pretrained_cfg", {"crop_pct": 1.2}, "pretrained_cfg.crop_pct=1.2 is above 1"),
        ("pretrained_cfg", {"input_size": [3, 32, 48]}, "pretrained_cfg.input_size=[3, 32, 48] is no square"),
        ("pretrained_cfg", {"label_offset": 1}, "pretrained_cfg.label_offset=1 is not supported"),
        ("pretrained_cfg", {"sharpen": 2}, "pretrained_cfg.sharpen=2 is not known here"),
        ("model_args", {"global_pool": "max"}, 'model_args.global_pool="max" is not supported, only token, avg, map'),
        (
            "model_args",
            {"global_pool": "token", "class_token": False},
            'model_args.global_pool="token" is not supported, only avg, map',
        ),
        (
            "model_args",
            {"global_pool": "token", "fc_norm": True},
            "model_args.fc_norm=true is not supported, only false",
        ),
        ("model_args", {"reg_tokens": 4}, "model_args.reg_tokens=4 is not supported without no_embed_class"),
        ("model_args", {"scale_mlp_norm": True}, "model_args.scale_mlp_norm=true is not supported"),
        ("model_args", {"pos_embed": "none"}, 'model_args.pos_embed="none" is not supported'),
        ("model_args", {"act_layer": "relu"}, 'model_args.act_layer="relu" is not supported, only gelu, gelu_tanh'),
        ("model_args", {"img_size": [32, 48]}, "model_args.img_size=[32, 48] is no square"),
        ("model_args", {"depth": "two"}, 'model_args.depth="two" must be a whole number'),
        ("model_args", {"norm_layer": "rmsnorm"}, 'model_args.norm_layer="rmsnorm" is not supported'),
    ],
)
def test_a_file_of_timms_that_cannot_be_followed_is_named(part, change, message, tmp_path):
    config = case("timm_save_for_hf")
    with pytest.raises(InputError) as error:
        read(tmp_path / "r", config | {part: config[part] | change})
    assert str(error.value).startswith("x: config.json: ") and message in str(error.value)


def test_nulls_are_as_absent_and_layer_scale_can_be_none(tmp_path):
    config = case("timm_save_for_hf")
    args = config["model_args"] | {"init_values": None, "act_layer": None, "qk_norm": None}
    assert read(tmp_path / "r", config | {"model_args": args}).architecture["layer_scale"] is None


def _run(shapes: Path, weights: Path | str, **values):
    return tiny_run(f"folder:{shapes}", "", backbone__weights=str(weights), task__image_size=0, **values)


def test_inspect_says_how_pictures_are_prepared_and_why(shapes, tmp_path, capsys):
    row = read(tmp_path / "r", VIT, case("no_rescale") | {"size": 32})
    shutil.copy(GOLDEN / "hf_vit" / "weights_hub.safetensors", tmp_path / "r" / "model.safetensors")
    run = _run(shapes, tmp_path / "r")
    found = expected(run)
    said = {
        part: (line["value"], line["from"].removeprefix("preprocessor_config.json: ")) for part, line in found.items()
    }
    assert said == {
        "size": ("32 × 32", "size"),
        "resize": ("to 32 × 32", "size"),
        "crop": ("center 32 × 32", "the default of transformers' ViTImageProcessor"),
        "interpolation": ("bilinear", "resample"),
        "rescaling": ("grey levels × 1: 0 … 255", "do_rescale"),
        "channels": ("rgb", "image_mean"),
        "mean": ("123.7, 116.3, 103.5", "image_mean"),
        "std": ("58.4, 57.1, 57.4", "image_std"),
        "pool": ("class", row.origins["pool"]),
    }
    assert assumptions(run) == ""
    (tmp_path / "r" / "preprocessor_config.json").unlink()
    run = _run(shapes, tmp_path / "r")
    assert run.resolved.preprocessing == Preprocessing(size=32)
    why = "assumed, as there is no preprocessor_config.json"
    assert expected(run)["size"] == {"value": "32 × 32", "from": f"{why}: config.json: image_size"}
    assert f"mean 0.485, 0.456, 0.406 ({why}: ImageNet's)" in assumptions(run)
    column = {"backbone": "x", "strategy": {"name": "full"}, "phases": [{}], "groups": [], "cost": {}}
    become = {"kept": 0, "resampled": [], "adapted": [], "initialized": [], "ignored": []}
    show(column | {"input": expected(run), "weights_become": become})
    assert "image_size" in capsys.readouterr().out


def test_weights_of_which_nothing_is_said_are_taken_at_their_own_size(shapes):
    weights = GOLDEN / "timm_vit_cls" / "weights.safetensors"
    row = pretrained.resolve_weights(BackboneConfig("vit_base_patch14_dinov2", str(weights)))
    assert row.preprocessing.size == 518
    assert row.origins["size"].endswith("the network's own image size")
    assert pretrained.resolve_weights(BackboneConfig("vit_base_patch14_dinov2")).preprocessing.size == 224


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "élan", "elan", "中国", "中", "国", "a"]


def _tokenizer(folder: Path, form: str, **change) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    if form == "tokenizer.json":
        from tokenizers.implementations import BertWordPieceTokenizer

        BertWordPieceTokenizer(str(folder / "vocab.txt")).save(str(folder / "tokenizer.json"))
    config = case("tokenizer_accents") | change
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(folder)


@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
def test_a_tokenizer_reads_what_lies_beside_it(form, tmp_path):
    tokenizer = _tokenizer(tmp_path / "kept", form)
    (row,), lost = tokenizer.encode(["Élan 中国"], 128)
    assert [WORDS[i] for i in row[0]] == ["[CLS]", "élan", "中国", "[SEP]"]
    (row, _), lost = tokenizer.encode(["a " * 100, "a"], 128)
    assert (row.shape[1], lost) == (64, [38, 0])
    assert tokenizer(["a " * 100], 32)["input_ids"].shape == (1, 32)
    plain = _tokenizer(tmp_path / "plain", form, strip_accents=None, tokenize_chinese_chars=True, model_max_length=1e30)
    (row,), _ = plain.encode(["Élan 中国"], 128)
    assert [WORDS[i] for i in row[0]] == ["[CLS]", "elan", "中", "国", "[SEP]"]
    assert plain.cut(128) == 128
    assert plain.sha256 != tokenizer.sha256
    # What changes no token changes no digest, of runs that were begun before such files were read.
    (tmp_path / "plain" / "tokenizer_config.json").unlink()
    assert Tokenizer(tmp_path / "plain").sha256 == plain.sha256


def test_what_sentence_transformers_says_of_texts_is_followed(tmp_path):
    tokenizer = _tokenizer(tmp_path / "r", "vocab.txt", do_lower_case=False)
    assert WORDS[tokenizer.encode(["Élan"], 9)[0][0][0, 1]] == "[UNK]"
    (tmp_path / "s").mkdir()
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(tmp_path / "r" / name, tmp_path / "s" / name)
    (tmp_path / "s" / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": true}')
    tokenizer = Tokenizer(tmp_path / "s")
    assert WORDS[tokenizer.encode(["Élan"], 9)[0][0][0, 1]] == "élan"
    assert (tokenizer.cut(128), tokenizer.settings.limited_by) == (12, "sentence_bert_config.json: max_seq_length")
    assert set(tokenizer.files) == {"vocab.txt", "tokenizer_config.json", "sentence_bert_config.json"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"padding_side": "left"}, 'padding_side="left" is not supported'),
        ({"truncation_side": "left"}, 'truncation_side="left" is not supported'),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "cuts vocab.txt in a way of its own"),
        ({"do_basic_tokenize": False}, "do_basic_tokenize=false is not supported"),
        ({"model_max_length": "64"}, 'model_max_length="64" must be a whole number'),
        ({"additional_special_tokens": ["[EXTRA]"]}, "has tokens that vocab.txt alone does not keep whole"),
        ({"word_tokenizer_type": "mecab"}, 'word_tokenizer_type="mecab" is not known here'),
        ({"pad_token": "[NONE]"}, "no padding token"),
    ],
)
def test_a_tokenizer_that_cannot_be_followed_is_named(change, message, tmp_path):
    with pytest.raises(InputError) as error:
        _tokenizer(tmp_path / "r", "vocab.txt", **change)
    assert message in str(error.value)


def test_an_export_says_for_which_problem_its_head_is(tmp_path):
    from tljax.weights import export_config

    _, module = "hf_bert_cls", pretrained.module_of(read(tmp_path / "r", BERT | {"architectures": ["BertModel"]}))
    made_of = pretrained.attributes(module)
    row = dataclasses.replace(read(tmp_path / "r", BERT), classes=("bad", "good"))
    for ours, theirs in (
        ("single_label", "single_label_classification"),
        ("multi_label", "multi_label_classification"),
        ("regression", "regression"),
    ):
        config = export_config.transformers("Bert", made_of, dataclasses.replace(row, problem=ours))
        assert (config["problem_type"], config["id2label"]) == (theirs, {"0": "bad", "1": "good"})
        assert read(tmp_path / "r", config).problem == ours
    assert "problem_type" not in export_config.transformers("Bert", made_of, row)


def test_a_distilled_timm_network_pools_its_two_tokens(tmp_path):
    args = TIMM["model_args"]
    row = read(tmp_path / "r", TIMM | {"architecture": "deit_small_distilled_patch16_224", "model_args": args})
    assert pretrained.module_of(row).pool == "distilled"
