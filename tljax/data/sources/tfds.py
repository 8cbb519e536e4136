"""Data sets of TensorFlow Datasets, read where TFDS prepared them, without TensorFlow; only an index is made here."""

import dataclasses
import difflib
import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tljax import console
from tljax.config.schema import TaskConfig
from tljax.data.dataset import Label, Source, Task, values_of
from tljax.data.input_spec import INPUTS
from tljax.data.labels import Labels, infer, is_missing
from tljax.data.records.record_index import finish, index_row, kept_if_of_use, open_task, progress
from tljax.data.records.record_parts import Examined, Part, clear, index_schema, write_parts
from tljax.data.records.record_reader import RecordReader
from tljax.data.sources import vtab
from tljax.data.sources.columns import say
from tljax.data.sources.tfds_features import Features, choose
from tljax.errors import InputError
from tljax.io import checksums
from tljax.io.download.fetch import cache_dir, create_once, locked
from tljax.problems.registry import problem_of

_DESCRIPTION = "tfds.json"  # the seal of a set's `dataset_info.json`, and the like, beside its index


def load(spec: str, config: TaskConfig) -> Task:
    """Opens `tfds:NAME[/CONFIG][:VERSION]` in `TFDS_DATA_DIR`, or `tfds:PATH` of a folder with a `dataset_info.json`.

    Records keep TFDS's order. A set that is not prepared yet is prepared, where TFDS can without TensorFlow.
    `task.label` may be `vtab:NAME`, which VTAB derives. A split whose labels were withheld is left out, and said.

    Raises:
        InputError: there is no such set, it is not in array_record (the command that makes it so is named), shards
            are missing, several features could be meant, or with `on_error=stop` an example cannot be used.
    """
    name = f"tfds:{spec}"
    if config.split:
        raise InputError(f"{name}: has splits of its own; leave task.split empty")
    builder = _builder(spec, name)
    features = choose(builder.info, config, name)
    mend = f"prepare {builder.data_path} again with TFDS"
    readers = {split: RecordReader(builder, split, features.all, mend) for split in _splits(builder, features)}
    key = [
        problem_of(config.problem).layout_version,
        _stamps(builder),
        features.kind,
        [*features.inputs],
        config.label,
        config.problem,
    ]
    key += [config.on_error, config.classes]
    folder = cache_dir() / "datasets" / f"tfds-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
    with create_once(folder, resume=True, wrong=checksums.wrong_folder) as making:
        if making:
            with kept_if_of_use(making):
                _index(making, folder, readers, features, config, name)
                checksums.seal(making / _DESCRIPTION, _descriptions(builder))
                checksums.seal_folder(making)
    if reason := checksums.wrong(folder / _DESCRIPTION):
        raise InputError(f"{name}: {builder.data_path} is damaged ({reason}); {mend}")
    kind = _Brightened if builder.name == "dsprites" else RecordReader

    def records(split: str, index: pa.Table) -> RecordReader:
        return kind(builder, split, features.inputs, mend, values_of(index.column("row")))

    return open_task(name, folder, records, f"remove {folder}, and it is made again")


class _Brightened(RecordReader):
    """Records of dSprites, whose pixels are 0 and 1, and which VTAB multiplies by 255."""

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [example | {"image": self._brightened(example["image"])} for example in super().__getitems__(rows)]

    def _brightened(self, image: bytes) -> bytes:
        data = io.BytesIO()
        Image.open(io.BytesIO(image)).point(lambda level: 255 * level).save(data, "PNG")
        return data.getvalue()


def _builder(spec: str, name: str) -> Any:
    """Returns a builder whose files are there, as array_record."""
    import tensorflow_datasets as tfds

    path = Path(spec).expanduser()
    if (path / "dataset_info.json").exists():
        try:
            builder = tfds.builder_from_directory(path)
        except Exception as error:  # of a parser, on a damaged file
            raise InputError(f"{name}: damaged ({_line(error)}); prepare it again with TFDS") from error
    elif spec.startswith(("/", ".", "~")):
        levels = ("*", "*/*", "*/*/*")  # of name, configuration and version
        below = [str(info.parent) for level in levels for info in sorted(path.glob(f"{level}/dataset_info.json"))][:3]
        raise InputError(f"{name}: no dataset_info.json in it; give {' or '.join(below) or 'a folder of TFDS'}")
    else:
        builder = _by_name(spec, name)
    formats = {kind.value for kind in builder.info.available_file_formats()} | {builder.info.file_format.value}
    if "array_record" not in formats:
        convert = f"tfds convert_format --dataset_version_dir={builder.data_path} --out_file_format=array_record"
        raise InputError(
            f"{name}: is stored as {', '.join(sorted(formats))}, which only TensorFlow reads: where it is "
            f"(pip install 'tljax[prepare]'), run `{convert}`"
        )
    return builder


def _by_name(spec: str, name: str) -> Any:
    import tensorflow_datasets as tfds

    data_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    try:
        builder = tfds.builder(spec, data_dir=data_dir)
        if builder.is_prepared():
            return builder
        builder = tfds.builder(spec, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = {row.partition("/")[0] for row in tfds.list_builders(with_community_datasets=False)}
        near = difflib.get_close_matches(spec.partition("/")[0].partition(":")[0], sorted(known), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "a folder is given as tfds:./PATH"
        raise InputError(f"{name}: TFDS has no such set; {hint}") from error
    except Exception as error:  # AssertionError, ValueError and others: a version or a configuration it does not have
        raise InputError(f"{name}: {_line(error)}") from error
    try:
        folder = cache_dir() / "datasets" / f"tfds-{re.sub(r'[^0-9A-Za-z.]', '-', spec)}"
        with locked(folder), console.waiting(f"preparing {name}"):
            builder.download_and_prepare()  # nothing, where another process did meanwhile
    except Exception as error:  # whatever a builder and an HTTP client raise
        build = f"tfds build {spec} --file_format=array_record --data_dir={data_dir}"
        raise InputError(
            f"{name}: TFDS cannot prepare it here ({_line(error)}); where TensorFlow is "
            f"(pip install 'tljax[prepare]'), run `{build}`"
        ) from error
    return builder


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}"


def _splits(builder: Any, features: Features) -> list[str]:
    """Lists the splits with examples, and of VTAB's labels those that have the feature."""
    splits = [split for split, info in builder.info.splits.items() if info.num_examples]
    if features.derived:
        sizes = vtab.ROWS[features.derived.dataset].sizes
        return [split for split in splits if split in sizes]
    return splits


def _descriptions(builder: Any) -> dict[str, Path]:
    """Returns the files in which TFDS describes the records, which have checksums of their own, by absolute path."""
    paths = (path.absolute() for path in Path(builder.data_path).iterdir())
    return {str(path): path for path in paths if path.suffix in (".json", ".txt")}


def _stamps(builder: Any) -> list[tuple[str | int, ...]]:
    """Returns what stands for the content of each file."""
    files = [path for path in sorted(Path(builder.data_path).iterdir()) if path.is_file()]
    return [(str(path.absolute()), *checksums.stamp(path)) for path in files]


def _index(
    making: Path, folder: Path, readers: Mapping[str, RecordReader], features: Features, config: TaskConfig, name: str
) -> None:
    """Reads every example once: labels, ids, sizes from the headers of images, hashes."""
    withheld = [split for split, records in readers.items() if _is_withheld(records, features)]
    if withheld:
        console.console.print(f"{name}: {', '.join(withheld)} has no labels, and is left out")
    readers = {split: records for split, records in readers.items() if split not in withheld}
    if not readers:
        raise InputError(f"{name}: no split has labels in {', '.join(features.labels)}; set task.label")
    labels = _labels(readers, features, config)
    source = Source(name, features.kind, config.problem, labels.classes, {}, pairs=len(features.inputs) == 2)
    schema = index_schema(config.problem).append(pa.field("row", pa.int64()))
    parts = {}
    with progress(name, sum(map(len, readers.values()))) as done:
        for split, records in readers.items():
            examine = functools.partial(_examine, records, features, labels, config.on_error)
            split_parts = write_parts(making, split, len(records), schema, examine, functools.partial(done, split))
            parts[split] = _with_unique_ids(split_parts)
    finish(making, folder, name, source, parts)
    clear(making)


def _is_withheld(records: RecordReader, features: Features) -> bool:
    """Tells whether no example of a split has a label; a few examples tell where some have."""
    for rows in (range(min(16, len(records))), range(len(records))):
        try:
            if not all(is_missing(features.values(records.__getitems__([row])[0])) for row in rows):
                return False
        except InputError:  # damage is met again when the index is made, which knows what to do
            return False
    return True


def _labels(readers: Mapping[str, RecordReader], features: Features, config: TaskConfig) -> Labels:
    columns, has_classes = features.labels, problem_of(config.problem).has_classes
    if features.classes and config.classes:
        raise InputError(f"{config.dataset}: the data name the classes; leave task.classes empty")
    if not has_classes and len(columns) == 1:
        first = next(iter(readers.values())).__getitems__([0])[0]
        per_example = np.size(first[columns[0]])
        columns = columns if per_example == 1 else tuple(f"{columns[0]}_{i}" for i in range(per_example))

    def rows() -> Iterator[tuple[str, Sequence[Any]]]:
        for split, records in readers.items():
            for row in range(len(records)):
                yield f"{split}, record {row}", features.values(records.__getitems__([row])[0])

    if features.classes and has_classes:
        return infer(config.problem, columns, (), features.classes, numbered=True)
    labels = infer(config.problem, columns, rows(), config.classes)
    if has_classes:
        say(config.dataset, labels, columns, rows())
    return labels


def _examine(records: RecordReader, features: Features, labels: Labels, on_error: str, place: int) -> Examined:
    id = f"{place:08d}"
    try:
        (example,) = records.__getitems__([place])
        id = example.get(features.id, id)
        content = [example[name] for name in features.inputs]
        size = INPUTS[features.kind].check_header(content)
        label = _label(features, labels, example)
        row = index_row(id, label, content[0] if len(content) == 1 else tuple(content), size)
        return Examined({**row, "row": place})
    except InputError as error:
        reason = f"{records.split}, record {place} ({id}): {error}"
        if on_error != "skip":
            raise InputError(f"{reason}; mend it, or set task.on_error=skip") from error
        return Examined(skipped={"split": records.split, "id": id, "reason": reason})


def _with_unique_ids(parts: Sequence[Part]) -> list[Part]:
    """Puts record numbers before ids where two are equal: some sets have names of files without their folders."""
    columns = [(part.index.column("row").to_pylist(), part.index.column("id").to_pylist()) for part in parts]
    if len({id for _, ids in columns for id in ids}) == sum(len(ids) for _, ids in columns):
        return list(parts)
    numbered = [[f"{row:08d}/{id}" for row, id in zip(rows, ids, strict=True)] for rows, ids in columns]
    return [
        dataclasses.replace(part, index=part.index.set_column(0, "id", pa.array(ids)))
        for part, ids in zip(parts, numbered, strict=True)
    ]


def _label(features: Features, labels: Labels, example: Mapping[str, Any]) -> Label:
    values = features.values(example)
    if not problem_of(labels.problem).has_classes:
        values = np.ravel(values).tolist()
    return labels.encode(values)
