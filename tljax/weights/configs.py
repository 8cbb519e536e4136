"""Reads the `config.json` that timm and transformers put beside a checkpoint: network, preprocessing, class names."""

from collections.abc import Mapping
from pathlib import Path

from tljax.errors import InputError
from tljax.weights import Pretrained, sentence_configs, timm_configs, transformers_configs
from tljax.weights.keys import load_json


def read(folder: Path, uri: str, pooling: bool = True) -> Pretrained | None:
    """The row that a folder with a `config.json` describes, or None if there is none.

    Args:
        folder: the folder.
        uri: what errors call it.
        pooling: whether what sentence-transformers put there of pooling is read.

    Raises:
        InputError: a file is damaged, describes a network that tljax does not have, or has a key that is neither
            followed here nor known to be harmless.
    """
    config = load_json(folder / "config.json", f"{uri}: config.json")
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise InputError(f"{uri}: config.json must be an object with keys, not {type(config).__name__}")
    if "architecture" in config:
        return timm_configs.read(config, uri)
    row = transformers_configs.read(config, folder, uri)
    return sentence_configs.pooled(row, folder) if pooling and row.source in ("bert", "roberta", "distilbert") else row
