"""Text encoders of many families as repositories of transformers and sentence-transformers: there, and back."""

import functools
import gzip
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from tests.conftest import GOLDEN, golden
from tests.models.test_bert import at_tokens, text_of
from tests.models.test_resnet import check_manifest
from tests.weights.test_pooling import assert_within, folder_of
from tljax.cli.convert import convert
from tljax.config.schema import BackboneConfig
from tljax.data.transforms.tokenize import Tokenizer
from tljax.errors import InputError
from tljax.models.registry import BACKBONES
from tljax.weights import mappings, pretrained

pytestmark = pytest.mark.optimized

# case: its class, whose names, and how it pools
CASES = {
    "hf_xlmr_cls": ("Bert", "xlm-roberta", "cls_tanh"),
    "hf_xlmr_left_inner_pad": ("Bert", "xlm-roberta", "cls_tanh"),
    "hf_camembert_cls": ("Bert", "camembert", "cls_tanh"),
}
WITH_WEIGHTS = [case for case in CASES if golden(case)[0]["weights_from"] is None]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Case -> its folder, row, module and variables, read once."""

    @functools.cache
    def loaded(case):
        folder = folder_of(case, tmp_path_factory.mktemp("texts") / "r")
        row = pretrained.resolve_weights(BackboneConfig(weights=str(folder)))
        arrays, _ = pretrained.read(row, folder)
        return folder, row, pretrained.module_of(row), jax.tree.map(jnp.asarray, unflatten_dict(arrays, sep="/"))

    return loaded


def lengthened(text: dict, pad_id: int) -> dict:
    """The same with three tokens of padding more."""
    fill = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": 0}
    return {name: jnp.pad(array, ((0, 0), (0, 3)), constant_values=fill[name]) for name, array in text.items()}


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_features_and_logits_are_the_references(case, load):
    facts, io = golden(case)
    _, row, module, variables = load(case)
    assert (type(module).__name__, row.source, module.pool) == CASES[case]
    assert set(variables["params"]) == set(module.groups)
    text = text_of(jax.tree.map(jnp.asarray, io))
    hidden, features = (module.apply(variables, text, pool=pool) for pool in (False, True))
    assert_within(at_tokens(hidden, io), at_tokens(io["last_hidden_state"], io), facts, "last_hidden_state")
    if "features" in io:
        assert_within(features, io["features"], facts, "features")
    if "head" in variables:
        logits = features @ variables["head"]["kernel"] + variables["head"]["bias"]
        assert_within(logits, io["logits"], facts, "logits")
        mistakes = [change for change in facts["max_abs_change_if"].values() if change]
        assert min(mistakes) > facts["bound"] * np.abs(io["logits"]).max(), "a usual mistake would pass"
    for cut in (0, 1, len(module.groups) - 1):
        half = module.apply(variables, text, stop=cut)
        assert set(half) <= {*text, "hidden"}
        np.testing.assert_array_equal(module.apply(variables, half, start=cut), features)
    longer = module.apply(
        variables, lengthened(text, json.loads((GOLDEN / case / "config.json").read_text())["pad_token_id"])
    )
    np.testing.assert_allclose(longer, features, atol=2e-5, rtol=0)
    nothing = module.apply(variables, text | {"attention_mask": jnp.zeros_like(text["attention_mask"])})
    assert np.isfinite(nothing).all()


@pytest.mark.parametrize("case", WITH_WEIGHTS)
def test_a_repository_goes_out_as_it_came_to_the_bit(case, load, tmp_path):
    folder, row, module, _ = load(case)
    convert(BackboneConfig(weights=str(folder)), tmp_path / "hf", to="hf")
    again = pretrained.resolve_weights(BackboneConfig(weights=str(tmp_path / "hf")))
    assert (pretrained.module_of(again), again.source, again.backbone) == (module, row.source, row.backbone)
    table = mappings.tables(module)[row.source]
    source, written = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "hf"))
    source = {table.canonical(name): array for name, array in source.items()}
    source = {name: array for name, array in source.items() if not table.ignores(name)}
    assert set(written) == set(source)
    for name, array in source.items():
        assert (written[name].shape, written[name].tobytes()) == (array.shape, array.tobytes()), name
    theirs, ours = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "hf"))
    same = ours.keys() & theirs.keys() - {"architectures", "id2label", "label2id"}
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


@pytest.mark.parametrize("case", ["st_xlmr_mean_dense"])
def test_a_sentence_encoder_gives_its_librarys_embeddings(case, load, tmp_path):
    facts, io = golden(case)
    folder, row, module, variables = load(case)
    sentences = json.loads((folder / "sentences.json").read_text())
    tokens = Tokenizer(folder)(sentences, length=40)
    text = {name: jnp.asarray(array) for name, array in tokens.items() if name != "truncated"}
    longest = io["last_hidden_state"].shape[1]
    mask = {"attention_mask": tokens["attention_mask"][:, :longest]}
    assert tokens["attention_mask"].sum(1).max() == longest
    hidden = module.apply(variables, text, pool=False)[:, :longest]
    assert_within(at_tokens(hidden, mask), at_tokens(io["last_hidden_state"], mask), facts, "last_hidden_state")
    embeddings = module.apply(variables, text)
    assert embeddings.shape[1] == module.feature_dim
    assert_within(embeddings, io["embeddings"], facts, "embeddings")
    half = module.apply(variables, text, stop=2)
    np.testing.assert_array_equal(module.apply(variables, half, start=2), embeddings)
    convert(BackboneConfig(weights=str(folder)), tmp_path / "hf", to="hf")
    again = pretrained.resolve_weights(BackboneConfig(weights=str(tmp_path / "hf")))
    assert pretrained.module_of(again) == module
    restored = pretrained.restore(again, module)
    jax.tree.map(np.testing.assert_array_equal, restored, pretrained.restore(row, module))


def test_a_dense_layer_after_the_pooling_is_read_from_its_own_file_or_left_out(load, tmp_path):
    folder, row, module, _ = load("st_xlmr_mean_dense")
    assert (module.groups[-1], module.dense_width, module.dense_activation) == ("dense", 20, "tanh")
    assert row.origins["pool"] == "1_Pooling/config.json and 2_Dense/config.json"
    plain = pretrained.resolve_weights(BackboneConfig(weights=str(folder), pool="mean"))
    assert (pretrained.module_of(plain).feature_dim, "dense" in pretrained.module_of(plain).groups) == (32, False)
    convert(BackboneConfig(weights=str(folder)), tmp_path / "orbax")
    kept = pretrained.resolve_weights(BackboneConfig(weights=str(tmp_path / "orbax"), pool="cls"))
    assert "dense" not in pretrained.restore(kept, pretrained.module_of(kept))["params"]
    other = shutil.copytree(folder, tmp_path / "other")
    dense = json.loads((other / "2_Dense" / "config.json").read_text())
    for change, message in (
        ({"bias": False}, "2_Dense/config.json: bias=false is not supported"),
        ({"activation_function": "torch.nn.modules.activation.ReLU"}, 'ReLU" is not supported'),
        ({"in_features": 7}, "in_features=7 is not supported, only 32"),
    ):
        (other / "2_Dense" / "config.json").write_text(json.dumps(dense | change))
        with pytest.raises(InputError) as error:
            pretrained.resolve_weights(BackboneConfig(weights=str(other)))
        assert message in str(error.value)
    (other / "2_Dense" / "config.json").write_text(json.dumps(dense))
    (other / "2_Dense" / "model.safetensors").unlink()
    row = pretrained.resolve_weights(BackboneConfig(weights=str(other)))
    with pytest.raises(InputError, match=r"2_Dense: no weights in it, which modules\.json names"):
        pretrained.restore(row, module)


MANIFESTS = {
    "hf/FacebookAI/xlm-roberta-base/XLMRobertaForMaskedLM": ("xlm_roberta_base", "xlm-roberta"),
    "hf/FacebookAI/xlm-roberta-large/XLMRobertaForMaskedLM": ("xlm_roberta_large", "xlm-roberta"),
    "hf/intfloat/multilingual-e5-base/XLMRobertaModel": ("multilingual_e5_base", "xlm-roberta"),
    "hf/BAAI/bge-small-en-v1.5/BertModel": ("bge_small", "bert"),
    "hf/BAAI/bge-base-en-v1.5/BertModel": ("bge_base", "bert"),
}


def manifests() -> dict[str, dict[str, list[int]]]:
    return json.loads(gzip.decompress((GOLDEN / "manifests_text_encoders.json.gz").read_bytes()))


def test_every_manifest_is_checked():
    assert set(manifests()) == set(MANIFESTS)


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_published_name_is_mapped_and_nothing_else(name):
    backbone, names = MANIFESTS[name]
    source, table = manifests()[name], mappings.tables(BACKBONES[backbone])[names]
    ignored = {theirs for theirs in source if table.ignores(table.canonical(theirs))}
    assert all(theirs.startswith(("lm_head.", "pooler.")) for theirs in ignored)
    check_manifest(
        {theirs: shape for theirs, shape in source.items() if theirs not in ignored}, BACKBONES[backbone], names
    )
