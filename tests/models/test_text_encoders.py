"""Text encoders of many families as repositories of transformers and sentence-transformers: there, and back."""

import functools
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
from safetensors.numpy import load_file

from tests.conftest import GOLDEN, golden
from tests.models.test_adapters import some_input, some_variables
from tests.models.test_bert import at_tokens, text_of
from tests.weights.test_pooling import assert_within, folder_of
from tljax.cli.convert import convert
from tljax.config.schema import BackboneConfig
from tljax.data.transforms.tokenize import Tokenizer
from tljax.errors import InputError
from tljax.models.registry import BACKBONES
from tljax.models.text.albert import Albert
from tljax.models.text.deberta import Deberta
from tljax.models.text.electra import Electra
from tljax.models.text.modernbert import ModernBert
from tljax.models.text.mpnet import MPNet
from tljax.peft.config import Adapter, Lora, Prompt
from tljax.peft.interceptors import apply_adapters, merge_lora
from tljax.weights import mappings, pretrained
from tljax.weights.configs import import_config
from tljax.weights.mapping import convert as convert_weights

pytestmark = pytest.mark.optimized

# case: its class, whose names, and how it pools
CASES = {
    "hf_xlmr_cls": ("Bert", "xlm-roberta", "cls_tanh"),
    "hf_xlmr_left_inner_pad": ("Bert", "xlm-roberta", "cls_tanh"),
    "hf_camembert_cls": ("Bert", "camembert", "cls_tanh"),
    "hf_mpnet_cls": ("MPNet", "mpnet", "cls_tanh"),
    "hf_mpnet_left_pad": ("MPNet", "mpnet", "cls_tanh"),
    "hf_mpnet_base": ("MPNet", "mpnet", "cls_tanh"),
    "hf_electra_cls": ("Electra", "electra", "cls_gelu"),
    "hf_albert_cls": ("Albert", "albert", "cls_tanh"),
    "hf_modernbert_cls_mean": ("ModernBert", "modernbert", "mean_gelu_norm"),
    "hf_modernbert_cls_cls": ("ModernBert", "modernbert", "cls_gelu_norm"),
    "hf_modernbert_inner_pad": ("ModernBert", "modernbert", "mean_gelu_norm"),
    "hf_modernbert_mlm": ("ModernBert", "modernbert", "cls"),
    "hf_deberta_v3_cls": ("Deberta", "deberta", "cls_gelu"),
    "hf_deberta_v3_inner_pad": ("Deberta", "deberta", "cls_gelu"),
    "hf_deberta_v2_conv_cls": ("Deberta", "deberta", "cls_gelu"),
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


@pytest.mark.parametrize("case", ["st_xlmr_mean_dense", "st_mpnet_mean_norm"])
def test_a_sentence_encoder_gives_its_librarys_embeddings(case, load, tmp_path):
    facts, io = golden(case)
    folder, row, module, variables = load(case)
    sentences = json.loads((folder / "sentences.json").read_text())
    tokens = Tokenizer(folder)(sentences, length=38)
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
    "hf/microsoft/mpnet-base/MPNetForMaskedLM": ("mpnet_base", "mpnet"),
    "hf/sentence-transformers/all-mpnet-base-v2/MPNetModel": ("all_mpnet_base", "mpnet"),
    "hf/google/electra-small-discriminator/ElectraForPreTraining": ("electra_small", "electra"),
    "hf/google/electra-base-discriminator/ElectraForPreTraining": ("electra_base", "electra"),
    "hf/albert/albert-base-v2/AlbertForMaskedLM": ("albert_base", "albert"),
    "hf/answerdotai/ModernBERT-base/ModernBertForMaskedLM": ("modernbert_base", "modernbert"),
    "hf/answerdotai/ModernBERT-large/ModernBertForMaskedLM": ("modernbert_large", "modernbert"),
    "hf/microsoft/deberta-v3-small/DebertaV2Model": ("deberta_v3_small", "deberta"),
    "hf/microsoft/deberta-v3-base/DebertaV2Model": ("deberta_v3_base", "deberta"),
    "hf/microsoft/deberta-v3-large/DebertaV2Model": ("deberta_v3_large", "deberta"),
    "hf/BAAI/bge-small-en-v1.5/BertModel": ("bge_small", "bert"),
    "hf/BAAI/bge-base-en-v1.5/BertModel": ("bge_base", "bert"),
}


def manifests() -> dict[str, dict[str, list[int]]]:
    return json.loads(gzip.decompress((GOLDEN / "manifests_text_encoders.json.gz").read_bytes()))


def test_every_manifest_is_checked():
    assert set(manifests()) == set(MANIFESTS)


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else(name):
    backbone, names = MANIFESTS[name]
    table, targets, heads = mappings.tables(BACKBONES[backbone])[names], *_targets(backbone)
    source = manifests()[name]
    done = convert_weights(_empty(source), table, targets, heads)
    assert set(done.arrays) == set(targets) - heads
    assert all(re.match(r"(lm_)?head\.|pooler\.|decoder\.|discriminator_|predictions\.", left) for left in done.ignored)


@pytest.mark.parametrize(
    "name", [name for name in MANIFESTS if re.search("mpnet-base/|electra-small|albert|v3-small", name)]
)
@pytest.mark.usefixtures("shapes_only")
def test_a_name_more_or_less_or_of_another_shape_is_named(name):
    backbone, names = MANIFESTS[name]
    table, targets, heads = mappings.tables(BACKBONES[backbone])[names], *_targets(backbone)
    source = manifests()[name]
    first, last = (
        sorted(source, key=lambda theirs: (table.ignores(table.canonical(theirs)), theirs))[i] for i in (0, 9)
    )
    for changed, message in (
        (source | {f"{first}_": [1]}, f"no mapping for source {first}_"),
        (
            {theirs: shape for theirs, shape in source.items() if theirs != last},
            table.by_source[table.canonical(last)].target,
        ),
        (source | {first: [*source[first], 2]}, f"source {first} "),
    ):
        with pytest.raises(InputError) as error:
            convert_weights(_empty(changed), table, targets, heads)
        assert message in str(error.value)


@functools.cache
def _targets(backbone: str) -> tuple:
    return pretrained.shapes(BACKBONES[backbone]), pretrained.optional(BACKBONES[backbone])


def _empty(names: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Arrays of those shapes that take no memory."""
    return {name: np.broadcast_to(np.zeros((), np.float32), shape) for name, shape in names.items()}


def _config(folder: Path, case: str, change: dict, name: str = "config.json"):
    """The row of a case's config with a change."""
    config = json.loads((GOLDEN / case / name).read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    return import_config.read(folder, "x")


@pytest.mark.parametrize("case", ["hf_modernbert_cls_mean", "hf_deberta_v3_cls"])
def test_the_keys_of_published_files_are_followed_as_those_that_the_library_writes(case, tmp_path):
    present, published = (_config(tmp_path, case, {}, name) for name in ("config.json", "config_hub.json"))
    assert published == present
    if "modernbert" in case:
        assert (
            _config(tmp_path, case, {"layer_types": None, "global_attn_every_n_layers": 2}).architecture["global_every"]
            == 2
        )
        hub = _config(tmp_path, case, {"global_rope_theta": 5.0}, "config_hub.json")
        assert (hub.architecture["global_period"], hub.architecture["local_period"]) == (5.0, 10000.0)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("hf_mpnet_cls", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets=16 is not supported"),
        ("hf_electra_cls", {"embedding_size": 0}, "embedding_size=0 must be a whole number, 1 or more"),
        ("hf_albert_cls", {"inner_group_num": 2}, "inner_group_num=2 is not supported, only 1"),
        ("hf_albert_cls", {"num_hidden_groups": 2}, "num_hidden_groups=2 does not divide the 3 layers"),
        ("hf_modernbert_cls_mean", {"mlp_bias": True}, "mlp_bias=true is not supported, only false"),
        ("hf_modernbert_cls_mean", {"classifier_pooling": "max"}, 'classifier_pooling="max" is not supported'),
        ("hf_modernbert_cls_mean", {"layer_types": ["sliding_attention"] * 4}, "is not supported, only every so many"),
        ("hf_modernbert_cls_mean", {"layer_types": ["full_attention"]}, "another number of layers"),
        ("hf_modernbert_cls_mean", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, 'rope_type="yarn"'),
        ("hf_modernbert_cls_mean", {"classifier_activation": "gelu_new"}, "only that of hidden_activation"),
        ("hf_deberta_v3_cls", {"share_att_key": False}, "share_att_key=false is not supported, only true"),
        ("hf_deberta_v3_cls", {"position_biased_input": True}, "position_biased_input=true is not supported"),
        ("hf_deberta_v3_cls", {"pos_att_type": ["c2p"]}, 'pos_att_type=["c2p"] is not supported'),
        ("hf_deberta_v3_cls", {"position_buckets": -1}, "position_buckets=-1 must be a whole number"),
        ("hf_deberta_v2_conv_cls", {"conv_groups": 2}, "conv_groups=2 is not supported, only 1"),
    ],
)
def test_a_text_encoder_that_is_another_is_refused(case, change, message, tmp_path):
    with pytest.raises(InputError) as error:
        _config(tmp_path, case, change)
    assert message in str(error.value)


# Of each class one that is quick to compile.
TINY = {
    "mpnet": MPNet(width=16, depth=2, heads=2, vocabulary=50, positions=16, pool="cls_tanh"),
    "electra": Electra(width=16, depth=2, heads=2, vocabulary=50, positions=16, embedding_width=8, pool="cls_gelu"),
    "albert": Albert(width=16, heads=2, vocabulary=50, positions=16, embedding_width=8, repeats=2, pool="cls_tanh"),
    "modernbert": ModernBert(width=16, depth=2, heads=2, mlp_width=24, vocabulary=50, positions=16, window=4),
    "deberta": Deberta(
        width=16, depth=2, heads=2, vocabulary=50, positions=16, buckets=4, conv_size=3, pool="cls_gelu"
    ),
}


@pytest.mark.parametrize("name", TINY)
def test_adapters_start_silent_and_merge_and_prompts_are_tokens_put_in_by_hand(name):
    backbone, x = TINY[name], some_input(TINY[name])
    plain = some_variables(backbone)["params"]["backbone"]
    features = backbone.apply({"params": plain}, x)
    lora = Lora(rank=2, alpha=3.0)
    weights = some_variables(backbone, lora)["params"]
    with apply_adapters(backbone, (lora,)):
        adapted = backbone.apply({"params": weights["backbone"]}, x)
    merged = merge_lora(weights, (lora,))["backbone"]
    np.testing.assert_allclose(backbone.apply({"params": merged}, x), adapted, atol=1e-5)
    assert np.abs(adapted - features).max() > 1e-3
    for adapter in (Adapter(3), Adapter(3, parallel=True)):
        weights = some_variables(backbone, adapter)["params"]["backbone"]
        with apply_adapters(backbone, (adapter,)):
            assert np.abs(backbone.apply({"params": weights}, x) - features).max() > 1e-3
    prompt = Prompt(3)
    prompts = some_variables(backbone, prompt)["params"]["backbone"]["block_0"]["prompt"]
    hidden = backbone.apply({"params": plain}, x, stop=1)
    mask = np.insert(hidden["attention_mask"], [1] * 3, 1, axis=1)
    rows = jnp.stack([jnp.concatenate([row[:1], prompts, row[1:]]) for row in hidden["hidden"]])
    hidden = {"hidden": rows, "attention_mask": jnp.asarray(mask)}
    hidden = backbone.apply({"params": plain}, hidden, start=1, stop=1 + backbone.depth)
    hidden = jax.tree.map(lambda leaf: jnp.asarray(np.delete(leaf, np.s_[1:4], axis=1)), hidden)
    by_hand = backbone.apply({"params": plain}, hidden, start=1 + backbone.depth)
    with apply_adapters(backbone, (prompt,)):
        prompted = backbone.apply({"params": some_variables(backbone, prompt)["params"]["backbone"]}, x)
    np.testing.assert_allclose(prompted, by_hand, atol=1e-6)
    assert np.abs(prompted - features).max() > 1e-3
