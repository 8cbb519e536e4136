"""A tokenizer's regular expressions are tried before they meet a data set."""

import json

import pytest

from tljax.data.transforms.tokenize import Tokenizer
from tljax.errors import InputError

# Of Llama 3 and its like.
GOOD = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _write(folder, pattern: str):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "[PAD]": 1}, "unk_token": "[UNK]"}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({"version": "1.0", "added_tokens": [], **parts, "pre_tokenizer": split, "model": model}))
    return file


def test_an_expression_that_runs_away_is_refused_and_a_good_one_is_not(tmp_path):
    assert Tokenizer(_write(tmp_path, GOOD))(["some text"], 4)["attention_mask"].sum() == 2
    for pattern in (r"(x+x+)+y", r"(\s+)*z"):
        folder = tmp_path / str(len(pattern))
        folder.mkdir()
        with pytest.raises(InputError, match=r"tokenizer\.json: (a regular expression in it runs away|its reg)"):
            Tokenizer(_write(folder, pattern))
