"""A data set of the user's own: a function, named `package.module:name`, that returns its examples."""

import functools
import hashlib
import inspect
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tljax.config.references import check_arguments, resolve_reference
from tljax.config.schema import TaskConfig
from tljax.data.dataset import Item, Label, Source, shown
from tljax.data.input_spec import INPUTS, ImageInput
from tljax.data.sources.folder import unusable
from tljax.errors import InputError
from tljax.io import checksums

PROTOCOL = "{'classes': names, 'splits': {name: examples}}"


def reference(config: TaskConfig) -> Source:
    """Reads the examples that the function `task.dataset` returns for `task.dataset_args`.

    Its arguments are keyword-only. It returns `{"classes": names, "splits": {name: examples}}`. `examples` is a
    sequence of dicts, with `image` (a path, a PIL image, or uint8 [height, width] or [height, width, channels]) or
    `text` (and `text_pair`), `label`, and if it likes `id`, which is unique in its split; by default its number. The
    label of a class is its name or its number among `classes`; of several classes a list of them; of a regression,
    whose `classes` are names of values, a number or a list. All examples are read whenever a run starts: if one has
    changed, the data set is prepared again.

    Raises:
        InputError: there is no such function, it does not take these arguments, or it returns something else; or with
            `on_error=stop` an example cannot be used.
    """
    name = config.dataset
    function = resolve_reference(name, "task.dataset")
    if any(item.kind is item.POSITIONAL_OR_KEYWORD for item in inspect.signature(function).parameters.values()):
        raise InputError(f"task.dataset={name}: arguments of such a function are by keyword: write *, before the first")
    arguments = check_arguments(function, dict(config.dataset_args), "task.dataset_args")
    data = function(**arguments)
    if not (isinstance(data, Mapping) and {"classes", "splits"} <= set(data) and isinstance(data["splits"], Mapping)):
        raise InputError(f"{name} returned {data!r:.60}: a data set is {PROTOCOL}")
    classes = tuple(map(str, data["classes"]))
    first = next((example for examples in data["splits"].values() for example in examples), None)
    if not isinstance(first, Mapping) or ("image" in first) == ("text" in first):
        raise InputError(f"{name}: its first example is {first!r:.60}: one is a dict with image or text, and label")
    kind, pairs = ("image" if "image" in first else "text"), "text_pair" in first
    digest = hashlib.sha256(repr((name, arguments, classes)).encode())
    splits = {}
    for split, examples in data["splits"].items():
        read = functools.partial(_item, name, split, examples, INPUTS[kind].fields(pairs), classes, digest)
        splits[split] = [read(row, config.on_error) for row in range(len(examples))]
    return Source(digest.hexdigest(), kind, config.problem, classes, splits, pairs)


def _item(
    name: str,
    split: str,
    examples: Sequence[Mapping[str, Any]],
    fields: tuple[str, ...],
    classes: tuple[str, ...],
    digest: Any,
    row: int,
    on_error: str,
) -> Item:
    """Returns one example as an item, and adds all of it to the digest."""
    where = f"{name}, {split}[{row}]"
    try:
        example = examples[row]
        if not isinstance(example, Mapping):
            raise InputError(f"is {example!r:.60}, and no dict")
        for field in (*fields, "label"):
            if field not in example:
                raise InputError(f"has no {field!r}")
        id, label = str(example.get("id", f"{row:08d}")), _label(example["label"], classes)
        digest.update(json.dumps([split, id, label]).encode())
        for field in fields:
            digest.update(_identity(example[field], field))
    except InputError as error:
        return unusable(where, f"{where}: {error}; mend or remove it", on_error)
    is_file = fields == ImageInput.fields() and isinstance(example[fields[0]], str | Path)
    return Item(id, label, Path(example[fields[0]]) if is_file else functools.partial(_read, examples, row, fields))


def _label(value: Any, classes: tuple[str, ...]) -> Label:
    """Returns a label with numbers for the names of classes."""
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(_label(item, classes) for item in value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        if value not in classes:
            raise InputError(f"label {value!r:.80} is none of its classes ({shown(classes)})")
        return classes.index(value)
    if not isinstance(value, int | float):
        raise InputError(f"label {value!r:.80} is neither a class nor a number")
    return value


def _identity(value: Any, field: str) -> bytes:
    """Returns what changes when the content of an example does: of a file its stamp."""
    if field not in ImageInput.fields():
        if not isinstance(value, str):
            raise InputError(f"{field} is {value!r:.40}, which is no text")
        if not value.strip():
            raise InputError("the text is empty")
        return json.dumps(value).encode()
    if isinstance(value, str | Path):
        try:
            return repr((str(value), *checksums.stamp(Path(value)))).encode()
        except OSError as error:
            raise InputError(f"{value}: cannot be read ({error.strerror})") from error
    if isinstance(value, Image.Image):
        return repr((value.mode, value.size)).encode() + value.tobytes()
    check_picture(value)
    pixels = np.asarray(value)
    return repr(pixels.shape).encode() + pixels.tobytes()


def check_picture(value: Any) -> None:
    """Raises InputError where a value that is no path and no PIL image is no array of a picture either."""
    pixels = np.asarray(value)
    has_channels = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4))
    if not isinstance(value, np.ndarray) or pixels.dtype != np.uint8 or not has_channels:
        shape = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"image is {shape}: give a path, a PIL image, or uint8 [height, width, channels]")


def _read(examples: Sequence[Mapping[str, Any]], row: int, fields: tuple[str, ...]) -> Any:
    contents = tuple(encoded(examples[row][field], field) for field in fields)
    return contents if len(contents) > 1 else contents[0]


def encoded(value: Any, field: str) -> bytes | str:
    """Returns a field of an example as it is kept: an image as a file's bytes (a PNG of what is in memory), or a text.

    Args:
        value: a path, a PIL image, or uint8 [height, width] or [height, width, channels]; or a text.
        field: the input's name.

    Raises:
        InputError: an image is none of these.
    """
    if field not in ImageInput.fields():
        return value
    if isinstance(value, np.ndarray):
        value = Image.fromarray(value[..., 0] if value.ndim == 3 and value.shape[-1] == 1 else value)
    data = io.BytesIO()
    value.save(data, "PNG")
    return data.getvalue()
