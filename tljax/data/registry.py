"""From `config.task` to a `Task`: the table of data sets, and where each kind of them comes from."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from tljax.config.choices import DATASET_KINDS, is_dataset_function
from tljax.config.schema import TaskConfig
from tljax.data.dataset import Source, Task
from tljax.data.records.array_records import open_packed, prepare
from tljax.data.records.file_reader import open_in_place
from tljax.data.sources import builtin, huggingface, memory, table, tfds
from tljax.data.sources.folder import folder
from tljax.data.sources.reference import reference
from tljax.errors import InputError
from tljax.io.download.fetch import cache_dir
from tljax.problems.registry import problem_of

TASKS: dict[str, Callable[[], Source]] = {
    "mnist_5k": builtin.mnist_5k,
    "elpv": builtin.elpv,
    "textures": builtin.textures,
    "movie_sentiment": builtin.movie_sentiment,
}
SOURCES: dict[str, Callable[[str, TaskConfig], Source]] = {
    "folder": folder,
    **table.READERS,
    "hf": huggingface.hf,
}
_COLUMNS = ("image", "text", "label", "split", "classes")
_CSV = ("separator", "quote")


def load(config: TaskConfig) -> Task:
    """Returns the task of `config.task`, prepared in the cache if it is not there yet.

    Images in files of their own stay where they are, unless `config.pack`; of them the cache has an index.

    Raises:
        InputError: no such data set, its files are damaged or incomplete (the file is named, or the row), or a key
            asks for what it has not.
    """
    _check(config)
    kind, _, rest = config.dataset.partition(":")
    if kind == "tfds":
        return tfds.load(rest, config)
    if kind == memory.PREFIX:
        return _in_memory(config)
    if kind in SOURCES:
        source = SOURCES[kind](rest, config)
    else:
        source = TASKS[config.dataset]() if config.dataset in TASKS else reference(config)
    problem = problem_of(config.problem)
    if not isinstance(problem, type(problem_of(source.problem))):
        raise InputError(f"{config.dataset} is {source.problem}; task.problem={config.problem} does not fit it")
    source = dataclasses.replace(source, problem=config.problem)
    keys = [getattr(config, name) for name in (*_COLUMNS, *_CSV, "on_error")]
    parts = [problem.layout_version, source.key, source.kind, source.problem, source.classes, *keys]
    in_place = source.in_files and not config.pack
    parts += ["in place"] if in_place else []
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    place = cache_dir() / "datasets" / f"{kind}-{key}"
    prepare(source, config.dataset, place, config.on_error, pack=not in_place)
    return open_in_place(config.dataset, place, source) if in_place else open_packed(config.dataset, place)


def _in_memory(config: TaskConfig) -> Task:
    """Returns the task that `tljax.from_arrays` kept."""
    place = memory.folder_of(config.dataset)
    if not place.is_dir():
        raise InputError(f"{config.dataset} is not in the cache (any more): call tljax.from_arrays with the same data")
    task = open_packed(config.dataset, place)
    if task.problem != config.problem:
        raise InputError(f"{config.dataset} is {task.problem}: set task.problem={task.problem}")
    return task


def _meant(dataset: str) -> str:
    """Returns what a path that is given without its kind may mean."""
    path = Path(dataset).expanduser()
    kind = next((kind for kind in table.READERS if f".{kind}" in path.suffixes), "") if path.is_file() else ""
    kind = "folder" if path.is_dir() else kind
    return f": did you mean {kind}:{dataset}?" if kind else ""


def _check(config: TaskConfig) -> None:
    kind, _, rest = config.dataset.partition(":")
    is_own = is_dataset_function(config.dataset)
    if config.dataset not in TASKS and not is_own and not (kind in DATASET_KINDS and rest):
        known = ", ".join((*TASKS, *(f"{name}:PATH" for name in SOURCES), "tfds:NAME", "MODULE:FUNCTION"))
        raise InputError(f"no task.dataset {config.dataset!r}{_meant(config.dataset)}; there are: {known}")
    keys_given = [f"task.{name}" for name in _COLUMNS if getattr(config, name)]
    if keys_given and (config.dataset in TASKS or is_own or kind in ("folder", memory.PREFIX)):
        raise InputError(f"{config.dataset} has no columns, so {keys_given[0]} names none; leave it empty")
    if config.dataset_args and not is_own:
        raise InputError(f"task.dataset_args are of a function, and {config.dataset} is none; leave them out")
    if kind not in table.READERS and (config.separator or config.quote):
        raise InputError(f"{config.dataset} is no CSV: leave task.separator and task.quote as they are")
    if config.pack and kind == "tfds":
        raise InputError(f"{config.dataset} is read where TFDS packed it; leave task.pack as it is")
    if config.image and config.text:
        raise InputError(f"task.image={config.image!r} and task.text={config.text!r}: an example is one or the other")
