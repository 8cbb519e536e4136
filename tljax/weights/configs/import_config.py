"""Reads the `config.json` that timm and transformers put beside a checkpoint: network, preprocessing, class names."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from tljax.errors import InputError
from tljax.io.download.hub import WEIGHTS
from tljax.io.json_keys import load_json
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import sentence_transformers, timm, transformers
from tljax.weights.configs.transformers import SILENT
from tljax.weights.configs.transformers_text import TEXTS
from tljax.weights.readers import files

# model_type -> the end of a name that only a head's file has, and how it pools with it and without.
_ROBERTA = ("classifier.dense.weight", "cls_tanh", "cls")
_POOLERS = ("bert", "mpnet", "albert")  # where a file may lack the pooler that its config is silent of
_TELLING = {
    "bert": ("pooler.dense.weight", "cls_tanh", "cls"),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _ROBERTA),
    "distilbert": ("pre_classifier.weight", "cls_relu", "cls"),
    "mpnet": (("pooler.dense.weight", "classifier.dense.weight"), "cls_tanh", "cls"),
    "electra": ("classifier.dense.weight", "cls_gelu", "cls"),
    "albert": ("pooler.weight", "cls_tanh", "cls"),
    "modernbert": ("classifier.weight", "{}_gelu_norm", "{}"),  # what its config says, with the classifier's layers
    "deberta-v2": ("pooler.dense.weight", "cls_gelu", "cls"),
    "dinov2": ("classifier.weight", "class_mean", "class"),
    "dinov2_with_registers": ("classifier.weight", "class_mean", "class"),
}


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
        return timm.read(config, uri)
    row = _as_saved(transformers.read(config, folder, uri), config["model_type"], folder)
    return sentence_transformers.pooled(row, folder) if pooling and config["model_type"] in TEXTS else row


def _as_saved(row: Pretrained, kind: str, folder: Path) -> Pretrained:
    """Returns the row, pooled as names in its file tell where its config says nothing of the head, or has another."""
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if kind not in _TELLING or file is None:
        return row
    ending, with_it, without = _TELLING[kind]
    if row.origins["pool"] != SILENT and not (kind in _POOLERS and row.architecture["pool"] == with_it):
        return row
    has = any(name.endswith(ending) for name in files.read(file))
    architecture = row.architecture | {"pool": (with_it if has else without).format(row.architecture.get("pool"))}
    what = ending if isinstance(ending, str) else " or ".join(ending)
    origins = row.origins | {"pool": f"{file.name}, which has {'a' if has else 'no'} {what}"}
    return dataclasses.replace(row, architecture=architecture, origins=origins)
