"""From `config.backbone` to a network and its pretrained arrays, converted once and cached by content."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from tljax import checkpoint
from tljax.config import BackboneConfig, Preprocessing, build, to_dict
from tljax.errors import InputError
from tljax.models import BACKBONES
from tljax.models.resnet import ResNet
from tljax.models.vit import ViT
from tljax.weights import CATALOG, Pretrained, files
from tljax.weights.rules import convert
from tljax.weights.sources import cache_dir, check_sha256, fetch, made_once, sha256_of
from tljax.weights.surgery import resample_pos_embed

Backbone = ResNet | ViT
POS_EMBED = "params/stem/pos_embed"


def resolve(config: BackboneConfig) -> Pretrained:
    """The row of the catalogue that a config means, or one made up for weights that are not in it.

    Raises:
        InputError: the name or the weights are unknown, or a name is needed and not given.
    """
    by_uri = {row.uri: row for row in CATALOG.values()}
    row = CATALOG.get(config.weights) or by_uri.get(config.weights)
    if row is None and config.weights and Path(config.weights, "tljax.json").is_file():
        facts = checkpoint.load_facts(Path(config.weights))
        row = build(Pretrained, {**facts["pretrained"], "uri": config.weights, "sha256": ""}, "tljax.json")
    if row is None and config.weights and "://" not in config.weights and not Path(config.weights).exists():
        raise InputError(f"no backbone.weights {config.weights!r}: neither a path nor one of {', '.join(CATALOG)}")
    if row is None:
        row = Pretrained(config.weights, "", "", "", Preprocessing(), "unknown")
    name = config.name or row.backbone
    if name not in BACKBONES:
        problem = f"no backbone.name {name!r}" if name else f"{config.weights or 'random weights'} need a backbone.name"
        raise InputError(f"{problem}; there are: {', '.join(BACKBONES)}")
    return dataclasses.replace(row, backbone=name, sha256=config.sha256 or row.sha256)


def shapes(module: Backbone) -> dict[str, tuple[int, ...]]:
    """Path (`params/…`, `batch_stats/…`) -> shape of every array in a backbone."""
    size = module.patch_size * module.grid[0] if isinstance(module, ViT) else 64
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(variables, sep="/").items()}


def restore(row: Pretrained, module: Backbone) -> dict[str, Any]:
    """Pretrained variables {params, batch_stats} on the host, fitted to `module`'s grid of patches.

    Raises:
        InputError: the weights cannot be had, are not the ones pinned, or do not fit.
    """
    tree = checkpoint.load_tree(converted(row))
    arrays = flatten_dict(tree, sep="/")
    if isinstance(module, ViT):
        native = BACKBONES[row.backbone].grid
        arrays[POS_EMBED] = resample_pos_embed(arrays[POS_EMBED], native, module.grid, row.pos_embed)
    wanted = shapes(module)
    wrong = [
        path for path in wanted.keys() | arrays.keys() if path not in arrays or arrays[path].shape != wanted.get(path)
    ]
    if wrong:
        raise InputError(f"{row.uri}: does not fit {row.backbone}: {', '.join(sorted(wrong)[:4])}")
    return unflatten_dict(arrays, sep="/")


def converted(row: Pretrained) -> Path:
    """The folder with the row's arrays under our names; converted now if it is not in the cache.

    The key is the file's content and the table of rules, so that a change in either is converted anew.
    """
    path = fetch(row.uri, row.sha256)
    if path.is_dir():
        return path
    found = row.sha256 or sha256_of(path)
    key = hashlib.sha256(f"{found} {row.source} {BACKBONES[row.backbone]} {_tables(row)}".encode()).hexdigest()
    target = cache_dir() / "backbones" / f"{row.backbone}-{key[:16]}"
    with made_once(target) as making:
        if making:
            write(row, path, making)
    return target


def write(row: Pretrained, path: Path, folder: Path) -> None:
    """Converts the file at `path` into `folder`: Orbax arrays, and `tljax.json` saying what they are."""
    if row.sha256:
        check_sha256(path, row.sha256, row.uri)
    source = files.read(path)
    tables = _tables(row)
    name = row.source or max(tables, key=lambda name: _explained(source, tables[name]))
    done = convert(source, tables[name], shapes(BACKBONES[row.backbone]))
    facts = {"pretrained": to_dict(dataclasses.replace(row, source=name)), "ignored": done.ignored}
    checkpoint.save_tree(folder, unflatten_dict(done.arrays, sep="/"), facts)


def _tables(row: Pretrained) -> Mapping[str, Any]:
    return BACKBONES[row.backbone].rules()


def _explained(source: Mapping[str, np.ndarray], rules: Any) -> int:
    return sum(any(rule.target and re.fullmatch(rule.source, name) for rule in rules) for name in source)
