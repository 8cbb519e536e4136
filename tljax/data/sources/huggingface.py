"""Data sets of Hugging Face's `datasets`, read as it stores them: no image is decoded, and no code of theirs runs."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tljax import console
from tljax.config.schema import TaskConfig
from tljax.data.dataset import Source
from tljax.data.labels import is_missing
from tljax.data.sources.columns import Columns, Table, choose, inner, to_source, with_columns_by_type
from tljax.data.sources.table_files import values_of
from tljax.errors import InputError, message_of


def hf(path: str, config: TaskConfig) -> Source:
    """Reads `hf:PATH` of a folder that `save_to_disk` or another program wrote, or `hf:NAME` or `hf:ORG/NAME[/CONFIG]`.

    A name may end in `@REVISION`. Splits keep their names. A split whose labels were withheld is left out, and said.

    Raises:
        InputError: `datasets` is not installed, it cannot load this, or an example cannot be used.
    """
    name = f"hf:{path}"
    loaded = _load(path, name)
    import datasets

    features = next(iter(loaded.values())).features
    for split, data in loaded.items():
        if data.features != features:
            raise InputError(f"{name}: {split} has other columns than the split before it; make them alike")
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [column for column, feature in features.items() if isinstance(inner(feature), datasets.ClassLabel)]
    config = with_columns_by_type(config, name, features, images, labels)
    columns = choose(list(features), dataclasses.replace(config, split=""), name)
    columns = dataclasses.replace(columns, split="")
    classes = _classes(features, columns)
    folder = Path(path).expanduser()
    folder = folder if folder.is_dir() else Path("/")  # a name on the hub is no place that paths start from
    tables, withheld = [], []
    for split, data in loaded.items():
        values = {column: values_of(data.data.column(column)) for column in columns.all}
        if data.num_rows and is_missing([value for column in columns.labels for value in values[column]]):
            withheld.append(split)
            continue
        where = [f"{name}, {split}, row {row}" for row in range(data.num_rows)]
        tables.append(Table(name, values, where, folder, split, classes=classes))
    if withheld:
        console.console.print(f"{name}: {', '.join(withheld)} has no labels, and is left out")
    if not tables:
        raise InputError(f"{name}: no split has labels in {', '.join(columns.labels)}; set task.label")
    return to_source(tables, columns, config, repr({split: data._fingerprint for split, data in loaded.items()}))


def _load(path: str, name: str) -> Mapping[str, Any]:
    """Returns the `datasets.Dataset` of each split."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{name}: needs Hugging Face's datasets: pip install 'tljax[hf]'") from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    repository, _, revision = path.partition("@")
    local = Path(repository).expanduser()
    parts = repository.split("/")
    try:
        if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
            loaded = datasets.load_from_disk(str(local))
        elif local.is_dir():
            loaded = datasets.load_dataset(str(local))
        elif repository.startswith(("/", ".", "~")):
            raise InputError(f"{name}: no such folder")
        else:
            variant = "/".join(parts[2:]) or None
            with console.waiting(f"loading {name}"):
                loaded = datasets.load_dataset("/".join(parts[:2]), variant, revision=revision or None)
    except InputError:
        raise
    except Exception as error:  # whatever its readers and an HTTP client raise
        raise InputError(f"{name}: cannot be loaded ({type(error).__name__}: {message_of(error)})") from error
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)


def _classes(features: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    """Returns the names of one label's classes; several label columns are flags, or values."""
    if len(columns.labels) > 1:
        return ()
    return tuple(getattr(inner(features[columns.labels[0]]), "names", None) or ())
