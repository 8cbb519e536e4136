"""Files with a row for each example: comma or tab separated values, JSON lines and parquet, compressed or not."""

import csv
import hashlib
import io
import json
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from tljax.errors import InputError, message_of
from tljax.io.strict_json import without_duplicates

KINDS = {
    "csv": (".csv", ".tsv", ".tab"),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet", ".pq"),
}
_TABS = (".tsv", ".tab")
_SEPARATORS = (",", ";", "\t", "|")
_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # by the first bytes of a file
_COMPRESSED = (".gz", ".zst")
_LARGEST_CELL = 2**31 - 1

Rows = tuple[list[str], Mapping[str, Sequence[Any]], Sequence[int], Mapping[int, str]]


@dataclass(frozen=True)
class TableFile:
    """The rows of a file.

    Attributes:
        name: in errors: `csv:PATH`.
        header: the names of all columns, in the file's order.
        columns: name -> a value for each row: text in CSV, and what JSON and parquet hold. Missing values are None.
        lines: where each row starts, as an editor counts lines; of parquet, its number from 0.
        faults: row -> why it cannot be used. It has a value in each column all the same.
        sha256: of the file's bytes as they lie on disk.
    """

    name: str
    header: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int]
    faults: Mapping[int, str]
    sha256: str

    @property
    def where(self) -> list[str]:
        """Returns what errors call each row."""
        unit = "row" if self.name.startswith("parquet:") else "line"
        return [f"{self.name}, {unit} {line}" for line in self.lines]


def kind_of(path: str) -> str:
    """Returns `csv`, `jsonl` or `parquet` by a file's suffix, before `.gz` or `.zst`; empty for any other."""
    suffix = _suffix(path)
    return next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), "")


def read_table(
    path: str,
    kind: str = "",
    *,
    separator: str = "",
    quote: str | None = None,
    select: Callable[[Sequence[str]], Collection[str]] | None = None,
) -> TableFile:
    """Reads a table; `.gz` and `.zst` are decompressed, known by their first bytes.

    Text is UTF-8; a byte order mark is dropped. In CSV the first line names the columns, and empty lines are none. JSON
    lines are an object each; a key that a row lacks is None in it, and so is NaN.

    Args:
        path: a file, or a URL that `epath` opens.
        kind: `csv`, `jsonl` or `parquet`; by default what the suffix says.
        separator: of the cells of a CSV: one character, or `tab`. By default a tab in `.tsv` and `.tab`, else a comma.
        quote: what cells of a CSV may be quoted with; empty for nothing. By default nothing in `.tsv` and `.tab`, where
            a quote is text, else `"`.
        select: takes the header and returns the columns that are kept; all by default. It may raise InputError.

    Returns:
        The table. Rows that cannot be used (too many fields, no UTF-8, no JSON) are in its `faults`.

    Raises:
        InputError: the file cannot be read as such a table at all, has no rows, or by its header has another separator;
            the line is named.
    """
    kind = kind or kind_of(path)
    if kind not in KINDS:
        suffixes = ", ".join(suffix for known in KINDS.values() for suffix in known)
        raise InputError(f"{path}: is no table by its suffix ({suffixes}); say which: {':PATH, '.join(KINDS)}:PATH")
    name = f"{kind}:{path}"
    if kind_of(path) not in ("", kind):
        raise InputError(f"{name}: is {kind_of(path)} by its suffix; give {kind_of(path)}:{path}, or rename it")
    if kind != "csv" and (separator or quote):
        raise InputError(f"{name}: only a CSV has a separator and quotes; leave task.separator and task.quote empty")
    tabs = _suffix(path) in _TABS
    delimiter = _separator(separator) or ("\t" if tabs else ",")
    mark = ("" if tabs else '"') if quote is None else quote
    if len(mark) > 1 or mark in ("\r", "\n", delimiter):
        raise InputError(f"task.quote={mark!r}: one character that does not separate cells, or none")
    with _opened(path, name) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        content = _decompressed(file, name)
        if kind == "parquet":
            rows = _parquet(content, name, select)
        elif kind == "jsonl":
            rows = _json_lines(_decoded(content.read(), name), name)
        else:
            rows = _csv(_decoded(content.read(), name), name, delimiter, mark, guess=not separator)
    header, columns, lines, faults = rows
    if not lines:
        raise InputError(f"{name}: has no rows{' under its header' if kind == 'csv' else ''}")
    if select:
        columns = {column: columns[column] for column in select(header)}
    return TableFile(name, header, columns, lines, faults, sha256)


def values_of(column: pa.ChunkedArray) -> Sequence[Any]:
    """Returns a column's values: a list, or of images one that makes each when it is asked for."""
    embedded = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary)
    return Lazy(column) if any(test(column.type) for test in embedded) else column.to_pylist()


class Lazy(Sequence[Any]):
    """A column of which a value is made when it is asked for."""

    def __init__(self, column: pa.ChunkedArray):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: int) -> Any:
        return self._column[row].as_py()


def _suffix(path: str) -> str:
    """Returns a path's suffix in lower case, before that of a compression."""
    name = path.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return epath.Path(name).suffix


def _separator(text: str) -> str:
    separator = "\t" if text in ("tab", "\\t") else text
    if len(separator) > 1 or separator in ('"', "\r", "\n"):
        raise InputError(f"task.separator={text!r}: one character, or tab")
    return separator


@contextmanager
def _opened(path: str, name: str) -> Iterator[io.IOBase]:
    """Opens a table's file, which nothing else does."""
    try:
        # `epath` calls a pipe a file, and to open one waits for ever.
        file = epath.Path(path) if "://" in path else Path(path).expanduser()
        if not file.is_file():
            raise InputError(f"{name}: no such file")
        with file.open("rb") as opened:
            yield opened
    except OSError as error:  # a decompression's too
        raise InputError(f"{name}: cannot be read ({message_of(error)})") from error


def _decompressed(file: io.IOBase, name: str) -> Any:
    """Returns the file, or what it holds where it is compressed."""
    start = file.read(4)
    file.seek(0)
    codec = next((codec for magic, codec in _CODECS.items() if start.startswith(magic)), "")
    if not codec:
        return file
    try:
        with pa.CompressedInputStream(file, codec) as stream:
            return pa.BufferReader(stream.read_buffer())
    except OSError as error:
        raise InputError(f"{name}: not a whole {codec} file ({error}); compress it again") from error


def _decoded(data: bytes, name: str) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{name}: is UTF-16; save it as UTF-8")
    # What is no UTF-8 becomes characters that no UTF-8 has, so that only its row is lost.
    return data.decode("utf-8-sig", errors="surrogateescape")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv(text: str, name: str, delimiter: str, quote: str, guess: bool) -> Rows:
    csv.field_size_limit(_LARGEST_CELL)
    style = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    records = _records(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, **style), name)
    _, header = next(records, (1, []))
    header = [unicodedata.normalize("NFC", cell.strip()) for cell in header]
    if not header or len(set(header)) < len(header):
        raise InputError(f"{name}, line 1: must name the columns, each once; it is {header}")
    if other := next((mark for mark in _SEPARATORS if mark in header[0]), "") if guess and len(header) == 1 else "":
        other = "tab" if other == "\t" else other
        raise InputError(f"{name}, line 1: the only column is {header[0]!r}; set task.separator={other!r}")
    hint = "" if quote else """; quotes are text here: if they are not, set task.quote='"'"""
    rows, lines, faults = [], [], {}
    for line, cells in records:
        if len(cells) != len(header):
            quoted = hint if any('"' in cell for cell in cells) else ""
            faults[len(rows)] = f"has {len(cells)} cells, and the header {len(header)}{quoted}"
            cells = (cells + [""] * len(header))[: len(header)]
        elif not all(map(_is_utf8, cells)):
            faults[len(rows)] = "is not valid UTF-8"
        rows.append(cells)
        lines.append(line)
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
    return header, columns, lines, faults


def _records(reader: Any, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the line that each row starts at, and its cells; empty lines are no rows."""
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{name}, line {line}: {error}; a quote within a quoted cell is written twice") from error


def _json_lines(text: str, name: str) -> Rows:
    if text.lstrip().startswith("["):
        raise InputError(f"{name}: is a JSON array; write one object a line, as `jq -c '.[]'` does")
    header: dict[str, None] = {}
    objects, lines, faults = [], [], {}
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        row: dict[str, Any] = {}
        try:
            row = _json_object(content)
            header |= dict.fromkeys(row)
        except (ValueError, RecursionError) as error:  # JSON's own are the former
            faults[len(lines)] = message_of(error)
        objects.append(row)
        lines.append(line)
    if lines and not header:
        raise InputError(f"{name}, line {lines[0]}: {faults.get(0, 'the object is empty')}")
    return list(header), {key: [row.get(key) for row in objects] for key in header}, lines, faults


def _json_object(line: str) -> dict[str, Any]:
    """Returns the object in a line.

    Raises:
        ValueError: there is none, or it has a key twice.
    """
    if not _is_utf8(line):
        raise ValueError("is not valid UTF-8")
    try:
        row = json.loads(line, object_pairs_hook=without_duplicates, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error.msg} at character {error.pos + 1})") from error
    if not isinstance(row, dict):
        raise ValueError(f"is a JSON {type(row).__name__}, and no object")
    return row


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def _parquet(file: Any, name: str, select: Callable[[Sequence[str]], Collection[str]] | None) -> Rows:
    try:
        parquet = pq.ParquetFile(file)
        header = parquet.schema_arrow.names
        if len(set(header)) < len(header):
            raise InputError(f"{name}: must name the columns, each once; they are {header}")
        kept = list(select(header)) if select else header
        table = parquet.read(columns=kept)
        columns = {column: values_of(table.column(column)) for column in kept}
    except pa.ArrowException as error:
        raise InputError(f"{name}: not a whole parquet file ({message_of(error)}); write it again") from error
    return header, columns, range(table.num_rows), {}
