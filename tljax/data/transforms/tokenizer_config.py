"""Reads what lies beside a tokenizer: `tokenizer_config.json` and sentence-transformers' own file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import ByteLevel

from tljax.errors import InputError
from tljax.io import harmless_keys
from tljax.io.json_keys import Keys, load_json

FILES = ("tokenizer_config.json", "sentence_bert_config.json")
_SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}  # BERT's
_NO_LIMIT = 10**6  # transformers writes 10**30 where there is none
# Classes that read a `vocab.txt` as WordPiece; others cut words in ways of their own.
_WORDPIECE = ("BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer", "ElectraTokenizer", "PreTrainedTokenizer")
_WORDPIECE += ("TokenizersBackend",)


@dataclass(frozen=True)
class Settings:
    """The settings that files beside a tokenizer have; None where they are silent.

    Attributes:
        lower_case: whether text is lower-cased.
        strip_accents: whether accents are taken off.
        chinese: whether each Chinese character is a word.
        special: name -> special token: `unk_token`, `sep_token`, `pad_token`, `cls_token`, `mask_token`.
        limit: the most tokens that it makes of a text.
        limited_by: the file and key that say so.
        lower_first: whether sentence-transformers lower-cases a text before the tokenizer sees it.
        prefix_space: whether a text is read as if a space stood before it.
    """

    lower_case: bool | None = None
    strip_accents: bool | None = None
    chinese: bool | None = None
    special: Mapping[str, str] | None = None
    limit: int | None = None
    limited_by: str = ""
    lower_first: bool = False
    prefix_space: bool | None = None

    @property
    def in_effect(self) -> str:
        """Returns what changes the tokens of a `vocab.txt`, beside its case and `limit`; empty where nothing does."""
        parts = [f"strip_accents={self.strip_accents}"] if self.strip_accents is not None else []
        parts += ["chinese=False"] if self.chinese is False else []
        parts += [f"{name}={token}" for name, token in (self.special or {}).items() if token != _SPECIAL[name]]
        return " ".join(parts)


def read(tokenizer: Path) -> Settings:
    """Reads what lies beside a `tokenizer.json`, `vocab.txt` or `spm.model`.

    Raises:
        InputError: a key is unknown, or has a value that cannot be followed here.
    """
    folder = tokenizer.parent
    config = load_json(folder / FILES[0], str(folder / FILES[0]))
    keys = Keys({} if config is None else config, FILES[0], str(folder), harmless_keys.TOKENIZER)
    is_wordpiece = tokenizer.suffix == ".txt"
    prefix_space = keys.flag("add_prefix_space", False) if "add_prefix_space" in keys else None
    _refuse(keys, tokenizer.suffix)
    flags = {key: keys.flag(key, False) if key in keys else None for key in _FLAGS}
    special = {name: _token(keys, name) for name in _SPECIAL if name in keys}
    limits = [(_limit(keys, key), keys.origin(key, "")) for key in ("model_max_length", "max_len")]
    _check_added(keys, set(special.values()) if is_wordpiece else None)
    keys.finish()
    sentence = load_json(folder / FILES[1], str(folder / FILES[1]))
    lines = Keys({} if sentence is None else sentence, FILES[1], str(folder), harmless_keys.SENTENCE)
    limits.append((_limit(lines, "max_seq_length"), lines.origin("max_seq_length", "")))
    lower_first = lines.flag("do_lower_case", False)
    lines.get("model_args"), lines.get("tokenizer_args"), lines.get("config_args")
    lines.finish()
    limit, limited_by = min(((n, origin) for n, origin in limits if n), default=(None, ""))
    return Settings(*flags.values(), special or None, limit, limited_by, lower_first, prefix_space)


_FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")


def _refuse(keys: Keys, suffix: str) -> None:
    """Raises InputError for what no tokenizer here does."""
    keys.only(padding_side="right", truncation_side="right", split_special_tokens=False, pad_token_type_id=0)
    keys.only(do_basic_tokenize=True, never_split=[], wordpieces_prefix="##", auto_map=None)
    name = keys.text("tokenizer_class")
    if suffix == ".model":  # which names its tokens itself, and of which DeBERTa's tokenizer changes nothing
        keys.only(split_by_punct=False, strip_accents=None, tokenize_chinese_chars=None)
        if name and name.removesuffix("Fast") != "DebertaV2Tokenizer":
            raise keys.refusal("tokenizer_class", "reads spm.model in a way of its own: bring a tokenizer.json")
    if name and suffix == ".txt" and name.removesuffix("Fast") not in _WORDPIECE:
        raise keys.refusal("tokenizer_class", "cuts vocab.txt in a way of its own: bring a tokenizer.json")


def _token(keys: Keys, key: str) -> str:
    """Returns a special token, which is a text or an object with one."""
    value = keys.get(key)
    token = value.get("content") if isinstance(value, dict) else value
    if not isinstance(token, str) or not token:
        raise keys.refusal(key, "must be a token")
    return token


def _check_added(keys: Keys, own: set[str] | None) -> None:
    """Raises InputError for tokens that a `vocab.txt` of these `own` special ones would cut; the other form has all."""
    for key in ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "added_tokens"):
        value = keys.get(key, [])
        items = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(items, list):
            raise keys.refusal(key, "must be a list of tokens, or an object of them")
        tokens = {item.get("content") if isinstance(item, dict) else item for item in items}
        if own is not None and tokens - (own | set(_SPECIAL.values())):
            raise keys.refusal(key, "has tokens that vocab.txt alone does not keep whole: bring a tokenizer.json")


def _limit(keys: Keys, key: str) -> int | None:
    value = keys.get(key)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value >= _NO_LIMIT):
        return None
    return keys.whole(key)


def overrides(tokenizer: tokenizers.Tokenizer, settings: Settings, file: Path) -> dict[str, bool]:
    """Returns how to normalize otherwise than a `tokenizer.json` says, by the config beside it, as transformers does.

    Args:
        tokenizer: a `tokenizer.json` that was read.
        settings: of the config beside it.
        file: what errors call it.

    Raises:
        InputError: it normalizes, or cuts, in a way in which that cannot be said.
    """
    explicit = {"lowercase": settings.lower_case, "strip_accents": settings.strip_accents}
    explicit |= {"handle_chinese_chars": settings.chinese}
    explicit = {name: value for name, value in explicit.items() if value is not None}
    present, cutter = tokenizer.normalizer, tokenizer.pre_tokenizer
    if isinstance(cutter, ByteLevel) and settings.prefix_space not in (None, cutter.add_prefix_space):
        raise _contradiction(file, "add_prefix_space", settings.prefix_space)
    if isinstance(present, BertNormalizer):
        return {name: value for name, value in explicit.items() if getattr(present, name) != value}
    lowers = present is not None and present.normalize_str("A") == "a"
    if settings.lower_case and not lowers:
        raise _contradiction(file, "do_lower_case", True)
    return {}


def _contradiction(file: Path, key: str, value: bool) -> InputError:
    return InputError(f"{file.parent / FILES[0]}: {key}={str(value).lower()} contradicts {file.name}: mend one of them")


def normalize(tokenizer: tokenizers.Tokenizer, settings: Settings, file: Path) -> None:
    """Makes a `tokenizer.json` normalize as the config beside it says.

    Args:
        tokenizer: a `tokenizer.json` that was read.
        settings: of the config beside it.
        file: what errors call it.

    Raises:
        InputError: as `overrides`.
    """
    changes, present = overrides(tokenizer, settings, file), tokenizer.normalizer
    if changes:
        names = ("clean_text", "lowercase", "strip_accents", "handle_chinese_chars")
        tokenizer.normalizer = BertNormalizer(**({name: getattr(present, name) for name in names} | changes))
