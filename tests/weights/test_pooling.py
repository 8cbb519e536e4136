"""Folders of transformers, timm and sentence-transformers whose heads pool in their own ways: golden outputs."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import GOLDEN, golden
from tests.models.test_bert import at_tokens, text_of
from tljax.cli.convert import convert
from tljax.config.schema import BackboneConfig
from tljax.data.transforms.tokenize import Tokenizer
from tljax.errors import InputError
from tljax.weights import pretrained

pytestmark = pytest.mark.optimized

WEIGHTS = ("model.safetensors", "weights_hub.safetensors", "weights.safetensors")


def folder_of(case: str, path: Path) -> Path:
    """The case as a repository: its config, and its weights under the name that a repository has."""
    facts, _ = golden(case)
    shutil.copytree(GOLDEN / case, path)
    source = GOLDEN / (facts.get("weights_from") or case)
    shutil.copy(next(source / name for name in WEIGHTS if (source / name).is_file()), path / "model.safetensors")
    return path


def load(path: Path, grid: tuple[int, int] | None = None, **config: str):
    """The row, module and variables of a repository."""
    row = pretrained.resolve_weights(BackboneConfig(weights=str(path), **config))
    module = pretrained.module_of(row)
    module = module.clone(grid=grid) if grid else module
    return row, module, jax.tree.map(jnp.asarray, pretrained.restore(row, module))


def assert_within(found, wanted: np.ndarray, facts: dict, name: str) -> None:
    """Within the case's own bound, relative to the largest value of this output."""
    np.testing.assert_allclose(found, wanted, atol=facts["bound"] * np.abs(wanted).max(), rtol=0, err_msg=name)


@pytest.mark.parametrize("case", ["st_bert_mean_norm", "st_bert_cls", "st_bert_max_norm"])
def test_a_sentence_encoder_gives_its_librarys_embeddings(case, tmp_path):
    facts, io = golden(case)
    row, module, variables = load(folder_of(case, tmp_path / "r"))
    tokens = Tokenizer(tmp_path / "r")(json.loads((tmp_path / "r" / "sentences.json").read_text()), length=40)
    text = {name: jnp.asarray(array) for name, array in tokens.items() if name != "truncated"}
    longest = io["last_hidden_state"].shape[1]
    hidden = module.apply(variables, text, pool=False)[:, :longest]
    mask = {"attention_mask": tokens["attention_mask"][:, :longest]}
    assert tokens["attention_mask"].sum(1).max() == longest, "texts are cut at max_seq_length"
    assert_within(at_tokens(hidden, mask), at_tokens(io["last_hidden_state"], mask), facts, "last_hidden_state")
    assert_within(module.apply(variables, text), io["embeddings"], facts, "embeddings")
    assert (row.origins["pool"].startswith("1_Pooling/config.json"), module.normalize) == (True, "norm" in case)


@pytest.mark.parametrize("case", ["hf_bert_mlm", "hf_bert_token", "hf_roberta_mlm", "hf_distilbert_token"])
def test_an_encoder_is_taken_out_of_a_file_for_another_task(case, tmp_path):
    facts, io = golden(case)
    row, module, variables = load(folder_of(case, tmp_path / "r"))
    text = text_of(jax.tree.map(jnp.asarray, io))
    hidden = module.apply(variables, text, pool=False)
    assert_within(at_tokens(hidden, io), at_tokens(io["last_hidden_state"], io), facts, "last_hidden_state")
    assert module.pool == "cls" and "pooler" not in variables["params"] and "head" not in variables
    assert "has no" in row.origins["pool"]


@pytest.mark.parametrize(("case", "grid"), [("", (4, 4)), ("_at42", (3, 3)), ("_at42x84", (3, 6))])
def test_dinov2_with_registers_resamples_with_antialiasing(case, grid, tmp_path):
    facts, io = golden(f"hf_dinov2_reg{case}")
    row, module, variables = load(folder_of(f"hf_dinov2_reg{case}", tmp_path / "r"), grid)
    assert (row.pos_embed, module.pool) == ("bicubic_antialias", "class_mean")
    tokens, features = (module.apply(variables, jnp.asarray(io["image"]), pool=pool) for pool in (False, True))
    logits = features @ variables["head"]["kernel"] + variables["head"]["bias"]
    for name, found in {"tokens": tokens, "features": features, "logits": logits}.items():
        assert_within(found, io[name], facts, name)


@pytest.mark.parametrize("case", ["timm_resnet_avgmax", "timm_resnet_max"])
def test_a_resnet_pools_as_its_config_says_and_goes_back_to_timm(case, tmp_path):
    facts, io = golden(case)
    row, module, variables = load(folder_of(case, tmp_path / "r"))
    head = variables.pop("head")
    both = jax.jit(lambda variables, x: [module.apply(variables, x, pool=pool) for pool in (False, True)])
    feature_map, features = both(variables, jnp.asarray(io["image"]))
    logits = features @ head["kernel"] + head["bias"]
    for name, found in {"feature_map": feature_map, "features": features, "logits": logits}.items():
        assert_within(found, io[name], facts, name)
    assert row.origins["pool"] == "config.json: model_args.global_pool"
    convert(BackboneConfig(weights=str(tmp_path / "r")), tmp_path / "timm", to="timm")
    again = pretrained.resolve_weights(BackboneConfig(weights=str(tmp_path / "timm")))
    assert pretrained.module_of(again) == module


def test_backbone_pool_is_heeded_and_leaves_out_the_head_that_reads_other_features(tmp_path):
    path = folder_of("st_bert_mean_norm", tmp_path / "text")
    row, module, variables = load(path, pool="max")
    assert (module.pool, module.normalize, row.origins["pool"]) == ("max", False, "backbone.pool")
    assert "pooler" in load(path, pool="pooler")[2]["params"]
    with pytest.raises(InputError, match=r"has no pooler: set backbone\.pool to cls, mean or max"):
        load(folder_of("hf_bert_mlm", tmp_path / "mlm"), pool="pooler")
    with pytest.raises(InputError, match=r"backbone\.pool=class is nothing that bert_base does; it has: cls, mean"):
        load(path, pool="class")
    image = folder_of("hf_dinov2_reg", tmp_path / "image")
    row, module, variables = load(image, pool="class")
    assert (module.feature_dim, "head" in variables) == (16, False)
    _, io = golden("hf_dinov2_reg")
    class_token = module.apply(variables, jnp.asarray(io["image"]))
    np.testing.assert_allclose(class_token, io["pooler_output"], atol=2e-5 * 2.766, rtol=0)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_lasttoken": True}, "pooling_mode_lasttoken=true is not supported"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, 'pooling_mode="weightedmean" is not supported'),
        ("1_Pooling/config.json", {"pooling_mode_new": True}, "pooling_mode_new=true is not known here"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "puts words before each text"),
        ("modules.json", "2_Dense", 'module 2: type="sentence_transformers.models.Dense" is not supported there'),
        ("modules.json", "{", "modules.json is damaged"),
        ("1_Pooling/config.json", None, "1_Pooling/config.json is missing, which modules.json names"),
    ],
)
def test_pooling_that_is_not_here_is_named_with_the_way_out(file, change, message, tmp_path):
    path = folder_of("st_bert_mean_norm", tmp_path / "r")
    values = json.loads((path / file).read_text())
    if change is None:
        (path / file).unlink()
    elif change == "2_Dense":
        values[2]["type"] = "sentence_transformers.models.Dense"
        (path / file).write_text(json.dumps(values))
    else:
        (path / file).write_text(change if isinstance(change, str) else json.dumps(values | change))
    with pytest.raises(InputError) as error:
        pretrained.resolve_weights(BackboneConfig(weights=str(path)))
    assert message in str(error.value)
    assert "damaged" in message or "known here" in message or "set backbone.pool" in str(error.value)
    assert (
        pretrained.module_of(pretrained.resolve_weights(BackboneConfig(weights=str(path), pool="mean"))).pool == "mean"
    )


def test_a_name_that_the_config_contradicts_is_an_error(tmp_path):
    path = str(folder_of("hf_bert_mlm", tmp_path / "r"))
    for name, message in (("vit_tiny_patch16", "describes a Bert"), ("bert_base", "width=32 and not 768")):
        with pytest.raises(InputError, match=f"backbone.name={name} contradicts .*{message}.*leave backbone.name out"):
            pretrained.resolve_weights(BackboneConfig(name=name, weights=path))
