"""From texts to token ids, with the tokenizer that a checkpoint was trained with."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers.implementations import BertWordPieceTokenizer
from tokenizers.models import WordPiece

from tljax.data import array_cache
from tljax.data.dataset import Split
from tljax.data.transforms import sentencepiece, tokenizer_config
from tljax.data.transforms.patterns import check_patterns
from tljax.errors import InputError, message_of
from tljax.io.checked_files import one_line

Texts = Sequence[str] | Sequence[tuple[str, str]]

FILES = ("tokenizer.json", "vocab.txt", "spm.model")  # looked for in a folder in this order
_KINDS = {Path(name).suffix: name for name in FILES}
_PADDING = ("[PAD]", "<pad>")
_CHUNK = 1024  # texts that the tokenizer's own threads share


@dataclass(frozen=True)
class Tokenizer:
    """A checkpoint's own tokenizer.

    Attributes:
        path: a `tokenizer.json`, a BERT `vocab.txt` (WordPiece, 1609.08144), DeBERTa's `spm.model`, or the folder with
            one of them.
        lower_case: whether a `vocab.txt` is of lower-cased text without accents; if None, what `do_lower_case` in the
            `tokenizer_config.json` beside it says, else True. A `tokenizer.json` says so itself.

    Raises:
        InputError: there is no such file, it is damaged, or it has no padding token.
    """

    path: Path
    lower_case: bool | None = None

    def __post_init__(self):
        _load(self.path, self.lower_case, None)

    @cached_property
    def settings(self) -> tokenizer_config.Settings:
        """Returns what files beside it say of it."""
        return tokenizer_config.read(_file(self.path))

    def cut(self, length: int) -> int:
        """Returns the most tokens of a text where `length` are asked for: the checkpoint's own limit may be lower."""
        return min(length, self.settings.limit or length)

    def __call__(self, texts: Texts, length: int) -> dict[str, np.ndarray]:
        """Returns the token ids of texts, or of pairs of texts, with the special tokens that the checkpoint expects.

        A text that is too long is cut at its end; of a pair, the longer one. A shorter one is padded on the right.

        Returns:
            What `pad` gives; and `truncated`, int32 [batch], 1 where a text was cut.

        Raises:
            InputError: `length` leaves no room beside the special tokens.
        """
        rows, lost = self.encode(texts, length)
        return self.pad(rows, length) | {"truncated": np.array([n > 0 for n in lost], np.int32)}

    def encode(self, texts: Texts, length: int) -> tuple[list[np.ndarray], list[int]]:
        """Encodes texts, each cut to `cut(length)` tokens.

        Returns:
            Ids and token types of each, int32 [2, tokens]; and how many tokens each lost.
        """
        length = self.cut(length)
        if self.settings.lower_first:
            texts = [_lowered(text) for text in texts]
        cutting, uncut = _load(self.path, self.lower_case, length), _load(self.path, self.lower_case, None)
        encodings = _encode_batch(uncut, list(texts), self.path)
        lengths = [len(encoding.ids) for encoding in encodings]
        long = [i for i, n in enumerate(lengths) if n > length]
        for i, encoding in zip(long, _encode_batch(cutting, [texts[i] for i in long], self.path), strict=True):
            encodings[i] = encoding
        rows = [np.array([encoding.ids, encoding.type_ids], np.int32) for encoding in encodings]
        return rows, [n - len(encoding.ids) for n, encoding in zip(lengths, encodings, strict=True)]

    def pad(self, rows: Sequence[np.ndarray], length: int) -> dict[str, np.ndarray]:
        """Returns what a network reads of texts that `encode` gave.

        Returns:
            `input_ids`, `attention_mask` (1 at tokens, 0 at padding) and `token_type_ids` (of a pair, which of the
            two), each int32 [batch, length].
        """
        shape = len(rows), length
        ids, mask, types = np.full(shape, self._pad_id, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for i, row in enumerate(rows):
            tokens = row.shape[1]
            ids[i, :tokens], types[i, :tokens] = row
            mask[i, :tokens] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    @property
    def files(self) -> dict[str, Path]:
        """All files that are read of `path`, by the names under which a folder has them."""
        file = _file(self.path)
        beside = [file.parent / name for name in tokenizer_config.FILES]
        return {_KINDS.get(file.suffix, "tokenizer.json"): file} | {
            path.name: path for path in beside if path.is_file()
        }

    @cached_property
    def sha256(self) -> str:
        """A hash of the file, and of what says how to read it; not of its limit, which `cut` has."""
        file, settings = _file(self.path), self.settings
        if file.suffix == ".txt":
            reading = f"{_lower_case(self.lower_case, settings)}{settings.in_effect}"
        elif file.suffix == ".model":
            reading = f"{bool(settings.lower_case)}"
        else:
            changes = tokenizer_config.overrides(tokenizers.Tokenizer.from_file(str(file)), settings, file)
            reading = f"{self.lower_case}{changes or ''}"
        reading += "lower_first" if settings.lower_first else ""
        return hashlib.sha256(file.read_bytes() + reading.encode()).hexdigest()

    @cached_property
    def _pad_id(self) -> int:
        tokenizer = _load(self.path, self.lower_case, None)
        return tokenizer.token_to_id(_padding(tokenizer, _file(self.path)))


def tokenized(split: Split, tokenizer: Tokenizer, length: int) -> array_cache.ArrayCache:
    """Returns what `Tokenizer.encode` gives of each text of a split, made once.

    Its facts are `truncated`, how many texts were cut, and `lost`, the tokens that they lost together.

    Args:
        split: whose texts.
        tokenizer: that encodes them.
        length: the most tokens of each.
    """
    facts = {"truncated": 0, "lost": 0}

    def rows() -> Iterator[np.ndarray]:
        for start in range(0, len(split), _CHUNK):
            examples = split.__getitems__(range(start, min(start + _CHUNK, len(split))))
            encoded, lost = tokenizer.encode([text_of(example) for example in examples], length)
            facts["truncated"] += sum(n > 0 for n in lost)
            facts["lost"] += sum(lost)
            yield from encoded

    def again(place: int) -> np.ndarray:
        return tokenizer.encode([text_of(split[place])], length)[0][0]

    return array_cache.get_or_create(
        array_cache.folder_of("tokens", split.key, tokenizer.sha256, tokenizer.cut(length)), rows(), facts, again
    )


def text_of(example: Mapping[str, Any]) -> str | tuple[str, str]:
    """Returns the text of an example, or its two."""
    return (example["text"], example["text_pair"]) if "text_pair" in example else example["text"]


# A tokenizer of the library holds the length that it cuts to: each length has its own, and threads share them.
@lru_cache(maxsize=8)
def _load(path: Path, lower_case: bool | None, length: int | None) -> tokenizers.Tokenizer | BertWordPieceTokenizer:
    file = _file(path)
    settings = tokenizer_config.read(file)
    is_json = file.suffix not in (".txt", ".model")
    if is_json:
        check_patterns(file)
    try:
        if is_json:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        elif file.suffix == ".model":
            tokenizer = sentencepiece.read(file, bool(settings.lower_case))
        else:
            tokenizer = _wordpiece(file, lower_case, settings)
    except InputError:
        raise
    except Exception as error:  # the library raises plain Exception and TypeError
        raise InputError(f"{file}: not a {file.name} that can be read ({message_of(error)}); fetch it anew") from error
    if is_json:
        tokenizer_config.normalize(tokenizer, settings, file)
    _padding(tokenizer, file)
    # What its file says of padding and truncation is for another use of it.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if length is not None:
        special = tokenizer.num_special_tokens_to_add(is_pair=True)
        if length <= special:
            raise InputError(f"task.max_tokens={length} leaves no room beside {special} special tokens: give more")
        tokenizer.enable_truncation(length)
    return tokenizer


def _padding(tokenizer: tokenizers.Tokenizer | BertWordPieceTokenizer, file: Path) -> str:
    own = (tokenizer_config.read(file).special or {}).get("pad_token")
    known = (own,) if own else _PADDING
    padding = next((token for token in known if tokenizer.token_to_id(token) is not None), None)
    if padding is None:
        raise InputError(f"{file}: no padding token, neither {' nor '.join(known)}; take another tokenizer")
    return padding


def _encode_batch(tokenizer: Any, texts: Sequence[Any], path: Path) -> list[tokenizers.Encoding]:
    try:
        return tokenizer.encode_batch(texts)
    except BaseException as error:  # a panic of the library is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise InputError(one_line(f"{path}: its tokenizer gives up on a text ({error}); take another one")) from error


def _file(path: Path) -> Path:
    file = next((path / name for name in FILES if (path / name).is_file()), path)
    if not file.is_file():
        raise InputError(f"{path}: no tokenizer there; it wants {' or '.join(FILES)}")
    return file


def _wordpiece(
    vocabulary: Path, lower_case: bool | None, settings: tokenizer_config.Settings
) -> BertWordPieceTokenizer:
    return BertWordPieceTokenizer(
        WordPiece.read_file(str(vocabulary)),
        lowercase=_lower_case(lower_case, settings),
        strip_accents=settings.strip_accents,
        handle_chinese_chars=settings.chinese is not False,
        **(settings.special or {}),
    )


def _lower_case(lower_case: bool | None, settings: tokenizer_config.Settings) -> bool:
    """Tells whether a `vocab.txt` is of lower-cased text, as it is unless a caller or its config says otherwise."""
    return settings.lower_case is not False if lower_case is None else lower_case


def _lowered(text: str | tuple[str, str]) -> str | tuple[str, str]:
    return text.lower() if isinstance(text, str) else (text[0].lower(), text[1].lower())
