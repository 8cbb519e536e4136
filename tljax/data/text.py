"""From texts to token ids, with the tokenizer that a checkpoint was trained with."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers.implementations import BertWordPieceTokenizer
from tokenizers.models import WordPiece

from tljax.errors import InputError

FILES = ("tokenizer.json", "vocab.txt")  # looked for in a folder in this order
_PADDING = ("[PAD]", "<pad>")


@dataclass(frozen=True)
class Tokenizer:
    """A checkpoint's own tokenizer.

    Attributes:
        path: a `tokenizer.json`, a BERT `vocab.txt` (WordPiece, 1609.08144), or the folder with one of them.
        lower_case: whether a `vocab.txt` is of lower-cased text without accents; if None, what `do_lower_case` in the
            `tokenizer_config.json` beside it says, else True. A `tokenizer.json` says so itself.

    Raises:
        InputError: there is no such file, it is damaged, or it has no padding token.
    """

    path: Path
    lower_case: bool | None = None

    def __post_init__(self):
        _load(self.path, self.lower_case, None)

    def __call__(self, texts: Sequence[str] | Sequence[tuple[str, str]], length: int) -> dict[str, np.ndarray]:
        """The token ids of texts, or of pairs of texts, with the special tokens that the checkpoint expects.

        A text that is too long is cut at its end; of a pair, the longer one. A shorter one is padded on the right.

        Returns:
            `input_ids`, `attention_mask` (1 at tokens, 0 at padding) and `token_type_ids` (of a pair, which of the
            two), each int32 [batch, length]; and `truncated`, int32 [batch], 1 where a text was cut.

        Raises:
            InputError: `length` leaves no room beside the special tokens.
        """
        tokenizer = _load(self.path, self.lower_case, length)
        encodings = tokenizer.encode_batch(list(texts))
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        found = {
            name: np.array([getattr(one, column) for one in encodings], np.int32).reshape(len(texts), length)
            for name, column in columns.items()
        }
        return found | {"truncated": np.array([bool(one.overflowing) for one in encodings], np.int32)}


# A tokenizer of the library holds the length that it cuts to: each length has its own, and threads share them.
@lru_cache(maxsize=8)
def _load(path: Path, lower_case: bool | None, length: int | None) -> tokenizers.Tokenizer | BertWordPieceTokenizer:
    file = _file(path)
    try:
        tokenizer = _wordpiece(file, lower_case) if file.suffix == ".txt" else tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception and TypeError
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: not a {file.name} that can be read ({reason}); fetch it anew") from error
    padding = next((token for token in _PADDING if tokenizer.token_to_id(token) is not None), None)
    if padding is None:
        raise InputError(f"{file}: no padding token, neither {' nor '.join(_PADDING)}; take another tokenizer")
    if length is not None:
        special = tokenizer.num_special_tokens_to_add(is_pair=True)
        if length <= special:
            raise InputError(f"a length of {length} leaves no room beside {special} special tokens; take a longer one")
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_token=padding, pad_id=tokenizer.token_to_id(padding))
    return tokenizer


def _file(path: Path) -> Path:
    found = next((path / name for name in FILES if (path / name).is_file()), path)
    if not found.is_file():
        raise InputError(f"{path}: no tokenizer there; it wants {' or '.join(FILES)}")
    return found


def _wordpiece(vocabulary: Path, lower_case: bool | None) -> BertWordPieceTokenizer:
    if lower_case is None:
        beside = vocabulary.parent / "tokenizer_config.json"
        lower_case = not beside.is_file() or json.loads(beside.read_text()).get("do_lower_case", True)
    return BertWordPieceTokenizer(WordPiece.read_file(str(vocabulary)), lowercase=lower_case)
