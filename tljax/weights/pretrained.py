"""From `config.backbone` to a network and its pretrained arrays, converted once and cached by content."""

import dataclasses
import difflib
import functools
import hashlib
import threading
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from tljax import console
from tljax.config.schema import BackboneConfig, Experiment
from tljax.config.serialization import build, to_dict
from tljax.data.preprocessing import Preprocessing
from tljax.errors import InputError
from tljax.io import buckets, checksums
from tljax.io.arrays import load_metadata, load_tree, save_tree
from tljax.io.download import hub
from tljax.io.download.fetch import cache_dir, create_once, fetch, local_copy, sha256_of
from tljax.models import registry
from tljax.models.base import Backbone, attributes
from tljax.weights import mappings
from tljax.weights.adapt import adapt_channels, resample_pos_embed
from tljax.weights.catalog import CATALOG, PICTURE, Pretrained
from tljax.weights.configs import import_config, sentence_transformers
from tljax.weights.mapping import Shape, Table, convert
from tljax.weights.mappings.vision import vit
from tljax.weights.readers import files

POOLER = "params/pooler/"
AFTER = (POOLER, "params/dense/")  # what reads pooled features
# Attributes that a name does not decide: a checkpoint may have others.
_NOT_IN_A_NAME = ("grid", "gelu", "eps", "conv_eps", "pool", "normalize", "vocabulary", "conv_mlp")
_TORCH = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt", ".index.json")
_CONVERTING = threading.Lock()  # a thread may be at it when another asks


def resolve_weights(config: BackboneConfig) -> Pretrained:
    """Returns the row of the catalogue that a config means, or one that the weights' own folder describes.

    Raises:
        InputError: the name or the weights are unknown, or a name is needed and not given.
    """
    row = _known(config.weights) or _described(config)
    if row and config.name not in ("", row.backbone):
        _check_name(config.name, row)
    row = row or Pretrained(config.weights, "", "", "", Preprocessing(), "unknown")
    name = config.name or row.backbone
    if not name:
        what = config.weights or "random weights"
        raise InputError(f"{what} need a backbone.name; there are: {', '.join(registry.BACKBONES)}")
    module = registry.build(name, row.architecture)
    file = Path(config.weights).expanduser()
    if config.weights.endswith(".npz"):  # Google's: what was trained there is computed as it was there
        row = dataclasses.replace(row, architecture=dict(module.trained_by("google")))
    elif not row.source and file.name.endswith(_TORCH) and file.is_file():
        row = dataclasses.replace(row, architecture=row.architecture | mappings.attributes_in(module, file))
    row = dataclasses.replace(row, backbone=name, sha256=config.sha256 or row.sha256)
    return _with_pool(row if row.origins else _assumed(row, module), config.pool)


def _check_name(name: str, row: Pretrained) -> None:
    """Raises InputError where weights describe themselves as another network than the one that is named."""
    described, by_name = module_of(row), registry.build(name, {})
    what = f"backbone.name={name} contradicts {row.uri}, which describes a {type(described).__name__}"
    if type(described) is not type(by_name):
        raise InputError(f"{what}: leave backbone.name out")
    sizes, others = decided_by_name(described), decided_by_name(by_name)
    wrong = [f"{key}={sizes[key]} and not {others[key]}" for key in sizes if sizes[key] != others[key]]
    if wrong:
        raise InputError(f"{what} with {', '.join(wrong[:3])}: leave backbone.name out")


def decided_by_name(module: Backbone) -> dict[str, Any]:
    """Returns the attributes that a backbone's name decides."""
    sizes = {key: value for key, value in attributes(module).items() if key not in _NOT_IN_A_NAME}
    if "mlp_width" in sizes:
        sizes["mlp_width"] = module.mlp_width or 4 * module.width
    if "layer_scale" in sizes:  # what it starts from is no part of a trained network
        sizes["layer_scale"] = module.layer_scale is not None
    return sizes


def _assumed(row: Pretrained, module: Backbone) -> Pretrained:
    """Returns the row of weights that say nothing of what they expect of pictures, with what is assumed, and why."""
    why = "assumed, as there are no weights" if not row.uri else f"assumed, as nothing lies beside {row.uri}"
    origins = dict.fromkeys((*PICTURE, "pool"), f"{why}: ImageNet's") | {"pool": f"the backbone {row.backbone}"}
    if (size := module.input_spec.size) and row.uri and row.preprocessing == Preprocessing():
        images = dataclasses.replace(row.preprocessing, size=size[0])
        row = dataclasses.replace(row, preprocessing=images)
        origins["size"] = f"{why}: the network's own image size"
    return dataclasses.replace(row, origins=origins)


def _with_pool(row: Pretrained, pool: str) -> Pretrained:
    """Returns the row with a network that pools as `backbone.pool` says.

    Raises:
        InputError: its family does not pool so.
    """
    if not pool:
        return row
    pools = in_file(row).pools
    if pool not in pools:
        known = ", ".join(pools) or "one way to pool"
        raise InputError(f"backbone.pool={pool} is nothing that {row.backbone} does; it has: {known}")
    return dataclasses.replace(row, pool=pools[pool], origins=row.origins | {"pool": "backbone.pool"})


def in_file(row: Pretrained) -> Backbone:
    """Returns the network that a row's weights fill, at their own size, pooled as their own head wants it."""
    return registry.build(row.backbone, row.architecture)


def module_of(row: Pretrained) -> Backbone:
    """Returns the network that a row's weights fill, at their own size, pooled as it is to be used."""
    module = in_file(row)
    if not row.pool:
        return module
    return module.clone(**module.pool_attributes(row.pool))


def reads(row: Pretrained) -> str:
    """Returns what a row's network takes: `image`, `text` or `features`."""
    return module_of(row).input_spec.kind


def tokenizer(row: Pretrained, uri: str) -> Path:
    """Returns the file or folder of the tokenizer at `uri`, or if that is empty, of a row's own network.

    Raises:
        InputError: neither says where it is.
    """
    if uri:
        return fetch(uri)
    if not row.uri:
        raise InputError(f"{row.backbone} without weights has no tokenizer: set task.tokenizer to a file or folder")
    path = fetch(row.uri, row.sha256)
    return path if path.is_dir() else path.parent


def _known(weights: str) -> Pretrained | None:
    by_uri = {row.uri: row for row in CATALOG.values()}
    return CATALOG.get(weights) or by_uri.get(weights)


def _described(config: BackboneConfig) -> Pretrained | None:
    """Returns what a folder of `convert`, or a repository as timm and transformers lay it out, says of itself."""
    weights = config.weights
    if weights.startswith("hf://"):
        # Only a whole repository is described; a file in one may be anything.
        if weights.count("/") != 3:
            return None
        if row := _read_folder(hub.fetch_description(weights), config):
            module_of(row)  # judged before its weights are fetched
        return _read_folder(fetch(weights).parent, config)
    if not weights or ("://" in weights and buckets.scheme_of(weights) not in buckets.SCHEMES):
        return None
    folder = local_copy(weights)
    if not folder.exists():
        near = difflib.get_close_matches(weights, CATALOG, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "the names are in tljax/weights/catalog.csv"
        raise InputError(f"no backbone.weights {weights!r}, neither a path nor a name in the catalogue: {hint}")
    if (folder / "tljax.json").is_file():
        facts = load_metadata(folder)
        where = f"{folder / 'tljax.json'}: pretrained"
        row = build(Pretrained, {**facts["pretrained"], "uri": weights, "sha256": ""}, where)
        return row if row.origins else dataclasses.replace(row, origins=dict.fromkeys((*PICTURE, "pool"), "tljax.json"))
    return _read_folder(folder, config) if folder.is_dir() else None


def _read_folder(folder: Path, config: BackboneConfig) -> Pretrained | None:
    """Returns what a folder with a `config.json` says of itself; None where it has none."""
    row = import_config.read(folder, config.weights, pooling=not config.pool)
    if row and config.name and row.source != "timm":  # where the name here is that of a family, of any size
        _check_name(config.name, row)
    return row


@functools.lru_cache(maxsize=4)  # of one network it is asked several times
def shapes(module: Backbone, channels: int = 3) -> Mapping[str, Shape]:
    """Returns path (`params/…`, `batch_stats/…`) -> shape of every array in a backbone, and `head/…` for any classes.

    Args:
        module: the backbone.
        channels: of its images, if it takes images.
    """
    example = module.input_spec.abstract(channels)
    return shapes_of(module, jax.eval_shape(module.init, jax.random.key(0), example))


def shapes_of(module: Backbone, variables: Mapping[str, Any]) -> Mapping[str, Shape]:
    """Returns a backbone's `shapes` from its variables, or from what has their shapes."""
    heads = dict.fromkeys(optional(module), (None,))
    heads |= {path: (module.feature_dim, None) for path in heads if path.endswith("kernel")}
    own = {path: tuple(leaf.shape) for path, leaf in flatten_dict(variables, sep="/").items()}
    return MappingProxyType(own | heads)


def optional(module: Backbone) -> frozenset[str]:
    """Returns what a checkpoint may lack: the head of the task that it was trained for."""
    return frozenset(f"{head}/{leaf}" for head in module.pretrained_heads for leaf in ("kernel", "bias"))


def restore(
    row: Pretrained, module: Backbone, channels: int = 3, expected: Mapping[str, Shape] | None = None
) -> dict[str, Any]:
    """Reads pretrained variables {params, batch_stats, head} on the host, fitted to `module`'s positions and images.

    Args:
        row: the checkpoint; where it has a head of its own, that is `head`.
        module: the network, at the size of its images.
        channels: of the images, if it takes images.
        expected: the network's `shapes`, where they are known.

    Raises:
        InputError: the weights cannot be had, are not the ones pinned, or do not fit.
    """
    arrays = flatten_dict(load_tree(converted(row)), sep="/")
    left_out = _left_out(row, arrays)
    arrays = {path: array for path, array in arrays.items() if path not in left_out}
    for path, grid in module.position_grids.items():
        arrays[path] = resample_pos_embed(arrays[path], module_of(row).position_grids[path], grid, row.pos_embed)
    if kernel := module.input_kernel:
        arrays[kernel] = adapt_channels(arrays[kernel], channels)
    expected, heads = expected or shapes(module, channels), optional(module)
    if any(path.startswith(POOLER) for path in expected.keys() - arrays.keys()):
        raise InputError(f"{row.uri} has no pooler: set backbone.pool to cls, mean or max")
    wrong = [path for path in expected.keys() - heads if path not in arrays or arrays[path].shape != expected[path]]
    wrong += arrays.keys() - expected.keys()
    if wrong:
        raise InputError(f"{row.uri}: does not fit {row.backbone}: {', '.join(sorted(wrong)[:4])}")
    # Files in half precision become float32 here: the optimizer's steps would be lost in their rounding.
    return unflatten_dict({path: array.astype(np.float32, copy=False) for path, array in arrays.items()}, sep="/")


def _left_out(row: Pretrained, paths: Iterable[str]) -> list[str]:
    """Returns paths of what stands after the blocks and is not used where features are pooled in another way."""
    if not row.pool or module_of(row) == in_file(row):
        return []
    unused = [group for group in AFTER if group.split("/")[1] not in module_of(row).groups]
    return sorted(path for path in paths if path.startswith(("head", *unused)))


def provenance(
    experiment: Experiment,
    row: Pretrained,
    module: Backbone,
    new: Sequence[str],
    own: Mapping[str, Shape] | None = None,
) -> dict[str, Any]:
    """Returns what becomes of the pretrained arrays: how many are `kept`, the others' names by what is done to them.

    These are `resampled` (for another grid of patches), `adapted` (to another number of channels), `initialized` and
    `ignored`.

    Args:
        experiment: says whether there are weights, and what of the head.
        row: the checkpoint.
        module: the network, at the size of its images.
        new: what the network has besides, by name.
        own: its backbone's `shapes`, where they are known.
    """
    if not experiment.backbone.weights:
        return {"kept": 0, "resampled": [], "adapted": [], "initialized": list(new), "ignored": []}
    heads = ("kernel", "bias")[: 1 + experiment.head.bias]
    channels = experiment.task.channels or row.preprocessing.inputs
    own = (own or shapes(module, channels)).keys() - optional(module)
    facts = load_metadata(converted(row))
    stored = module_of(row).position_grids
    resampled = [path for path, grid in module.position_grids.items() if grid != stored[path]]
    adapted = [module.input_kernel] if module.input_kernel and channels != row.preprocessing.inputs else []
    pretrained = experiment.head.init == "pretrained"
    pooler = _left_out(row, [path for path in shapes(in_file(row), channels) if path.startswith(AFTER)])
    return {
        "kept": len(own) - len(resampled) - len(adapted) + (len(heads) if pretrained else 0),
        "resampled": resampled,
        "adapted": adapted,
        "initialized": list(new),
        "ignored": [*facts["ignored"], *([] if pretrained else facts["head"]), *pooler],
    }


def converted(row: Pretrained) -> Path:
    """Returns the folder with the row's arrays under our names; converted now if it is not in the cache.

    The key is the file's content and the table of rules, so that a change in either is converted anew; and so is what
    was damaged since.
    """
    with _CONVERTING:
        path = fetch(row.uri, row.sha256)
        if (path / "tljax.json").is_file():
            return path
        path = _file_in(path) if path.is_dir() else path
        sha256 = row.sha256 or sha256_of(path)
        sha256 += sha256_of(_dense_file(path)) if _has_dense(row) else ""
        key = hashlib.sha256(f"{sha256} {row.source} {in_file(row)} {_tables(row)}".encode()).hexdigest()
        target = cache_dir() / "backbones" / f"{row.backbone.replace(':', '.')}-{key[:16]}"
        with create_once(target, wrong=checksums.wrong_folder) as making:
            if making:
                with console.waiting(f"converting {row.uri}"):
                    write(making, row, *read(row, path))
        return target


def _file_in(folder: Path) -> Path:
    """Returns the weights in a folder that is laid out as a repository on the hub."""
    for name in hub.WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: no weights in it; looked for {', '.join(hub.WEIGHTS)}")


def _has_dense(row: Pretrained) -> bool:
    """Returns whether a text encoder's row has a dense layer, which sentence-transformers keeps in another file."""
    return bool(row.architecture.get("dense_width"))


def _dense_file(path: Path) -> Path:
    """Returns the file with the dense layer that belongs to a file of weights."""
    folder = path.parent / sentence_transformers.DENSE
    file = next((folder / name for name in hub.WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder}: no weights in it, which modules.json names; looked for {', '.join(hub.WEIGHTS)}")
    return file


def read(row: Pretrained, path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads a file, or a folder as the hub has it: arrays under our flat paths, and names of what else it has."""
    path = _file_in(path) if path.is_dir() else path
    source, module, tables = files.read(path), in_file(row), _tables(row)
    if _has_dense(row):
        dense = files.read(_dense_file(path))
        source = ChainMap({f"{sentence_transformers.DENSE}.{name}": dense[name] for name in dense}, source)
    name = row.source or max(tables, key=lambda name: _explained(source, tables[name]))
    expected = dict(shapes(module, row.preprocessing.inputs))
    table = tables[name]
    for path in module.position_grids if table.class_row else ():
        rows = expected[path][1] + 1
        expected[path] = (1, rows, *expected[path][2:])
    try:
        arrays, ignored = convert(source, table, expected, optional(module))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if table.class_row:
        vit.fold_class_row(arrays)
    if {"head/kernel", "head/bias"} <= arrays.keys() and arrays["head/kernel"].shape[1:] != arrays["head/bias"].shape:
        classes = arrays["head/kernel"].shape[1], len(arrays["head/bias"])
        raise InputError(f"{row.uri}: its head's weight is for {classes[0]} classes, its bias for {classes[1]}")
    return arrays, ignored


def write(folder: Path, row: Pretrained, arrays: Mapping[str, np.ndarray], ignored: Sequence[str] = ()) -> None:
    """Writes arrays for Orbax, and `tljax.json` that says what they are.

    Args:
        folder: an empty one.
        row: what they are.
        arrays: by our flat paths.
        ignored: names of what their source has besides.
    """
    heads = sorted(path for path in arrays if path.startswith("head"))
    facts = {"pretrained": to_dict(row), "ignored": list(ignored), "head": heads}
    save_tree(folder, unflatten_dict(dict(arrays), sep="/"), facts)


def _tables(row: Pretrained) -> Mapping[str, Table]:
    return mappings.tables(in_file(row))


def _explained(source: Mapping, table: Table) -> int:
    return sum(table.canonical(name) in table.by_source for name in source)
