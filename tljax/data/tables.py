"""Tables with a row for each example as sources."""

import functools
from collections.abc import Collection, Sequence
from pathlib import Path

from tljax.config import TaskConfig
from tljax.data.examples import Source
from tljax.data.rows import Table, choose, to_source
from tljax.data.table_files import KINDS, read_table


def table(kind: str, path: str, config: TaskConfig) -> Source:
    """Reads `csv:PATH`, `jsonl:PATH` or `parquet:PATH`.

    Images are paths, from the table's folder on; in parquet also bytes or, as Hugging Face stores them, structs
    {bytes, path}.

    Raises:
        InputError: the file, or with `on_error=stop` one of its rows, cannot be used; its line is named.
    """
    name = f"{kind}:{path}"

    def used(header: Sequence[str]) -> Collection[str]:
        return choose(header, config, name).all

    file = read_table(path, kind, separator=config.separator, quote=config.quote, select=used)
    rows = Table(name, file.columns, file.where, Path(path).expanduser().parent, faults=file.faults)
    return to_source([rows], choose(file.header, config, name), config, file.sha256)


READERS = {kind: functools.partial(table, kind) for kind in KINDS}
