"""Reads a SentencePiece model (1808.06226), as DeBERTa has it where no `tokenizer.json` lies beside the weights."""

import struct
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

from tljax.errors import InputError

# Fields of its protocol buffer: of the model, of a piece, of the trainer's settings, of the normalizer's.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE = 1, 2
_MODEL_TYPE, _UNKNOWN, _BYTES = 3, 40, 35
_CHARACTERS, _SPACE_FIRST, _FEWER_SPACES = 2, 3, 4
_UNIGRAM = 1
_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")


def read(file: Path, lower_case: bool) -> tokenizers.Tokenizer:
    """Returns the tokenizer with DeBERTa's special tokens, `[CLS] text [SEP]` or `[CLS] text [SEP] pair [SEP]`.

    Args:
        file: the model.
        lower_case: whether text is lower-cased first.

    Raises:
        InputError: the model is damaged or not a unigram model, or has settings that cannot be followed.
    """
    try:
        pieces, trainer, normalizer = _parsed(file.read_bytes())
    except (ValueError, IndexError, struct.error) as error:
        raise InputError(f"{file}: no SentencePiece model, or a damaged one; fetch it anew") from error
    if trainer.get(_MODEL_TYPE, _UNIGRAM) != _UNIGRAM or trainer.get(_BYTES, 0):
        raise InputError(f"{file}: not a unigram model without byte fallback, the only kind read here")
    if not (normalizer.get(_SPACE_FIRST, 1) and normalizer.get(_FEWER_SPACES, 1)):
        raise InputError(f"{file}: keeps spaces as they are, which is not supported: bring a tokenizer.json")
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, trainer.get(_UNKNOWN, 0)))
    steps = [normalizers.Lowercase()] if lower_case else []
    steps.append(normalizers.Strip())
    steps += [normalizers.Precompiled(normalizer[_CHARACTERS])] if normalizer.get(_CHARACTERS) else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(list(_SPECIAL))  # those that it lacks, as [MASK], come after its pieces
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _parsed(data: bytes) -> tuple[list[tuple[str, float]], dict[int, int | bytes], dict[int, int | bytes]]:
    """Returns pieces with their scores, and the settings of trainer and normalizer by field."""
    pieces: list[tuple[str, float]] = []
    settings: dict[int, dict[int, int | bytes]] = {_TRAINER: {}, _NORMALIZER: {}}
    for field, value in _fields(data):
        if field == _PIECES:
            piece = dict(_fields(value))
            pieces.append((piece[_TEXT].decode(), struct.unpack("<f", piece.get(_SCORE, bytes(4)))[0]))
        elif field in settings:
            settings[field] |= dict(_fields(value))
    if not pieces:
        raise ValueError("no pieces")
    return pieces, settings[_TRAINER], settings[_NORMALIZER]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of each field of a protocol buffer's message: an integer, or bytes."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
        elif kind in (1, 2, 5):
            size, place = _varint(data, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
            if place + size > len(data):
                raise ValueError("cut short")
            value, place = data[place : place + size], place + size
        else:
            raise ValueError(f"no field of kind {kind}")
        yield tag >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Returns a number of seven bits a byte, and the place after it."""
    number = shift = 0
    while True:
        number |= (data[place] & 127) << shift
        place, shift = place + 1, shift + 7
        if data[place - 1] < 128:
            return number, place
