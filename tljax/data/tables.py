"""Tables with a row for each example: files of comma or tab separated values, and parquet."""

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tljax.config import TaskConfig
from tljax.data.examples import Source
from tljax.data.rows import Table, choose, to_source
from tljax.errors import InputError
from tljax.weights.sources import sha256_of

_LARGEST_CELL = 2**31 - 1


def csv_file(path: str, config: TaskConfig) -> Source:
    """A `.csv`, or a `.tsv` with tabs, in UTF-8, with the columns' names in its first line.

    Raises:
        InputError: the file, or with `on_error=stop` one of its rows, cannot be used; the line is named as an editor
            counts it.
    """
    file, name = Path(path).expanduser(), f"csv:{path}"
    with _opened(file, name):
        data = file.read_bytes()
    header, rows, lines, faults = _parse(data, name, "\t" if file.suffix.lower() in (".tsv", ".tab") else ",")
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    table = Table(name, columns, [f"{name}, line {line}" for line in lines], file.parent, faults=faults)
    return to_source([table], choose(header, config, name), config, hashlib.sha256(data).hexdigest())


def parquet_file(path: str, config: TaskConfig) -> Source:
    """A parquet file. Images in it are paths, bytes, or, as Hugging Face stores them, structs {bytes, path}.

    The columns that are used are held in memory; `hf:` maps files into it.

    Raises:
        InputError: the file, or with `on_error=stop` one of its rows, cannot be used; rows are counted from 0.
    """
    file, name = Path(path).expanduser(), f"parquet:{path}"
    with _opened(file, name):
        sha256 = sha256_of(file)
        try:
            columns = choose(pq.read_schema(file).names, config, name)
            found = pq.read_table(file, columns=list(columns.all), partitioning=None)
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{name}: not a whole parquet file ({reason}); write it again") from error
    if not found.num_rows:
        raise InputError(f"{name}: has no rows")
    values = {one: values_of(found.column(one)) for one in columns.all}
    where = [f"{name}, row {row}" for row in range(found.num_rows)]
    return to_source([Table(name, values, where, file.parent)], columns, config, sha256)


@contextmanager
def _opened(file: Path, name: str) -> Iterator[None]:
    if not file.is_file():
        raise InputError(f"{name}: no such file")
    try:
        yield
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({' '.join(str(error).split())})") from error


def values_of(column: pa.ChunkedArray) -> Sequence[Any]:
    embedded = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary)
    return Lazy(column) if any(test(column.type) for test in embedded) else column.to_pylist()


def _parse(data: bytes, name: str, delimiter: str) -> tuple[list[str], list[list[str]], list[int], Mapping[int, str]]:
    """The header, the rows, the line that each starts at, and row -> what is wrong with it."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{name}: is UTF-16; save it as UTF-8")
    csv.field_size_limit(_LARGEST_CELL)
    # What is no UTF-8 becomes characters that no UTF-8 has, so that only its row is lost.
    text = io.StringIO(data.decode("utf-8-sig", errors="surrogateescape"), newline="")
    records = _records(csv.reader(text, delimiter=delimiter, strict=True), name)
    _, header = next(records, (1, []))
    header = [cell.strip() for cell in header]
    if not header or len(set(header)) < len(header):
        raise InputError(f"{name}, line 1: must name the columns, each once; it is {header}")
    rows, lines, faults = [], [], {}
    for line, cells in records:
        if len(cells) != len(header):
            faults[len(rows)] = f"has {len(cells)} cells, and the header {len(header)}"
            cells = (cells + [""] * len(header))[: len(header)]
        elif any("\udc80" <= letter <= "\udcff" for cell in cells if not cell.isascii() for letter in cell):
            faults[len(rows)] = "is not valid UTF-8"
        rows.append(cells)
        lines.append(line)
    if not rows:
        raise InputError(f"{name}: has no rows under its header")
    return header, rows, lines, faults


def _records(reader: Any, name: str) -> Iterator[tuple[int, list[str]]]:
    """The line that each row starts at, and its cells; empty lines are none."""
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{name}, line {line}: {error}; a quote within a quoted cell is written twice") from error


class Lazy(Sequence[Any]):
    """A column of which a value is made when it is asked for."""

    def __init__(self, column: pa.ChunkedArray):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: int) -> Any:
        return self._column[row].as_py()
