"""From a `Source` to an index of it, in TFDS's order; every example is decoded once, and damage met.

Beside the index its records, in shards that TFDS reads too, or none where each example is a file that stays there.
"""

import collections
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tljax.data.dataset import Item, Label, Source, Task
from tljax.data.input_spec import INPUTS
from tljax.data.records.record_index import finish, index_row, kept_if_of_use, open_task, progress
from tljax.data.records.record_parts import Examined, Part, clear, index_schema, write_parts
from tljax.data.records.record_reader import RecordReader
from tljax.errors import InputError, message_of
from tljax.io import checksums
from tljax.io.download.fetch import create_once
from tljax.problems.registry import problem_of


def prepare(source: Source, name: str, folder: Path, on_error: str, pack: bool) -> None:
    """Makes `folder`, if it is not there: array_record shards that TFDS reads, an index for each split, `task.json`.

    A split is in TFDS's order, by a hash of its ids. One process makes it and others wait; it goes on where one that
    was killed stopped, and ends with the same bytes.

    Args:
        source: the data set.
        name: what errors call it.
        folder: in the cache.
        on_error: `stop` at an example that cannot be used, or `skip` it.
        pack: whether there are shards; without them the index alone is made.

    Raises:
        InputError: an example cannot be used (with `on_error=stop`), or none of a split; two have the same id; the
            disk is full.
    """
    _check(source, name)
    with create_once(folder, resume=True, wrong=checksums.wrong_folder) as making:
        if not making:
            return
        features = _features(source) if pack else None
        schema, parts = index_schema(source.problem), {}
        with kept_if_of_use(making), progress(name, sum(map(len, source.splits.values()))) as done:
            for split, items in source.splits.items():
                ordered = _in_order(split, items, name)
                examine = functools.partial(_examine, source, split, ordered, features, on_error)
                parts[split] = write_parts(making, split, len(items), schema, examine, functools.partial(done, split))
            finish(making, folder, name, source, parts)
        if pack:
            _write_for_tfds(making, features, parts)
        clear(making)
        checksums.seal_folder(making, by_size=".array_record")  # whose blocks have checksums of their own


def open_packed(name: str, folder: Path) -> Task:
    """Returns the task whose records are in a folder that `prepare` made.

    Raises:
        InputError: files are missing or damaged.
    """
    import tensorflow_datasets as tfds

    mend = f"remove {folder}, and it is prepared again"
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # of a parser, on a damaged file
        raise InputError(f"{folder}: damaged ({message_of(error)}); {mend}") from error
    fields = [name for spec in INPUTS.values() for name in spec.fields(pairs=True)]
    columns = {name: name for name in fields if name in builder.info.features}
    again = "run it again, and it is prepared again"

    def records(split: str, _: Any) -> RecordReader:
        return RecordReader(builder, split, columns, again, seal=folder / checksums.NAME)

    return open_task(name, folder, records, mend)


def _check(source: Source, name: str) -> None:
    counts = collections.Counter(source.classes)
    for class_name in source.classes:
        if not class_name.strip() or len(class_name.splitlines()) != 1 or counts[class_name] > 1:
            raise InputError(
                f"{name}: class name {class_name!r} is empty, has a line break, or is there twice; rename it"
            )
    for split, items in source.splits.items():
        if not re.fullmatch(r"\w+", split):
            raise InputError(f"{name}: split {split!r}: its name may have letters, digits and _ only; rename it")
        if not len(items):
            raise InputError(f"{name}: split {split!r} has no example; fill it or remove it")


def _in_order(split: str, items: Sequence[Item], name: str) -> list[Item]:
    """Sorts items as TFDS shuffles them: by a hash of the ids, with the split's name for salt."""
    from tensorflow_datasets.core.hashing import Hasher

    hasher = Hasher(split)
    ordered = sorted(items, key=lambda item: (hasher.hash_key(item.id), item.id))
    for item, next_item in itertools.pairwise(ordered):
        if item.id == next_item.id:
            raise InputError(f"{name}: two examples of {split} have the id {item.id!r}; ids must be unique")
    return ordered


def _examine(source: Source, split: str, ordered: Sequence[Item], features: Any, on_error: str, place: int) -> Examined:
    """Reads, decodes and checks the example at a place."""
    item, spec = ordered[place], INPUTS[source.kind]
    try:
        content = _read(item)
        size = spec.check_content(content, item.id)
        row = index_row(item.id, _checked_label(source, item), content, size)
    except InputError as error:
        if on_error != "skip":
            raise
        return Examined(skipped={"split": split, "id": item.id, "reason": str(error)})
    about = spec.note(content)
    note = {"split": split, "id": item.id, "note": about} if about else None
    if features is None:
        return Examined(row, note=note)
    inputs = dict(zip(spec.fields(source.pairs), content if source.pairs else [content], strict=True))
    return Examined(row, _serialized(features, {"id": item.id, "label": row["label"], **inputs}), note=note)


def _serialized(features: Any, example: Mapping[str, Any]) -> bytes:
    """Serializes as `features.serialize_example` does, with the fields in an order that no process changes."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    encoded = features.encode_example(example)
    proto = ExampleSerializer(features.get_serialized_info()).get_tf_example(encoded)
    return proto.SerializeToString(deterministic=True)


def _read(item: Item) -> bytes | str | tuple[str, str]:
    try:
        return item.read()
    except OSError as error:
        raise InputError(f"{item.id}: cannot be read ({error.strerror or error}); mend or remove it") from error


def _checked_label(source: Source, item: Item) -> Label:
    """Returns a label as it is stored: an int; sorted ints; or floats, in full.

    Raises:
        InputError: it is none of the classes, or not as many finite numbers as there are values.
    """
    try:
        return problem_of(source.problem).checked_label(item.label, len(source.classes))
    except InputError as error:
        raise InputError(f"{item.id}: {error}; mend or remove it") from error


def _features(source: Source) -> Any:
    from tensorflow_datasets import features

    inputs = INPUTS[source.kind].tfds_features(source.pairs)
    label = problem_of(source.problem).tfds_feature(source.classes)
    return features.FeaturesDict({**inputs, "label": label, "id": features.Text()})


def _write_for_tfds(folder: Path, features: Any, parts: Mapping[str, Sequence[Part]]) -> None:
    """Gives the shards the names that TFDS wants, and describes them."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    template = tfds.core.ShardedFileTemplate(folder, dataset_name="tljax", filetype_suffix="array_record")
    splits = []
    for split, split_parts in parts.items():
        shards = [part for part in split_parts if part.size]
        of_split = template.replace(split=split)
        for number, part in enumerate(shards):
            part.records.rename(of_split.sharded_filepath(shard_index=number, num_shards=len(shards)))
        lengths, size = [len(part.index) for part in shards], sum(part.size for part in shards)
        splits.append(tfds.core.SplitInfo(split, lengths, size, of_split))
    identity = DatasetIdentity("tljax", tfds.core.Version("1.0.0"), str(folder), "tljax.data.records.array_records")
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)
