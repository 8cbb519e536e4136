"""Tables with a row for each example as sources."""

import functools
from collections.abc import Collection, Sequence
from pathlib import Path

from tljax.config.schema import TaskConfig
from tljax.data.dataset import Source
from tljax.data.sources.columns import Columns, Table, choose, to_source
from tljax.data.sources.table_files import KINDS, TableFile, read_table
from tljax.io.download.fetch import local_copy


def table(kind: str, path: str, config: TaskConfig) -> Source:
    """Reads `csv:PATH`, `jsonl:PATH` or `parquet:PATH`.

    Images are paths, from the table's folder on; in parquet also bytes or, as Hugging Face stores them, structs
    {bytes, path}.

    Args:
        kind: `csv`, `jsonl` or `parquet`.
        path: of the file.
        config: which columns hold what.

    Raises:
        InputError: the file, or with `on_error=stop` one of its rows, cannot be used; its line is named.
    """
    name = f"{kind}:{path}"

    def used(header: Sequence[str]) -> Collection[str]:
        return choose(header, config, name).all

    file = read_table(path, kind, separator=config.separator, quote=config.quote, select=used)
    columns = choose(file.header, config, name)
    rows = Table(name, file.columns, file.where, images_folder(path, file, columns), faults=file.faults)
    return to_source([rows], columns, config, file.sha256)


def images_folder(path: str, file: TableFile, columns: Columns) -> Path:
    """Returns the folder that paths of images start from; of a table in a bucket, a copy of those that it names.

    Args:
        path: of the table.
        file: what it holds.
        columns: which of them are images.
    """
    if "://" not in path:
        return Path(path).expanduser().parent
    if columns.kind != "image":
        return Path()
    names = [name for name in file.columns[columns.inputs[0]] if isinstance(name, str)]
    return local_copy(path.rpartition("/")[0], names)


READERS = {kind: functools.partial(table, kind) for kind in KINDS}
