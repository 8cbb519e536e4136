"""What `predict` reads: images, folders of them, tables with a row for each example, and texts, one a line."""

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tljax.config.schema import TaskConfig
from tljax.core.resolve import Resolved
from tljax.data.sources.columns import USUAL, Columns, Table, read_input
from tljax.data.sources.folder import images_below
from tljax.data.sources.table import images_folder
from tljax.data.sources.table_files import KINDS, kind_of, read_table
from tljax.errors import InputError
from tljax.io.download.fetch import local_copy

STDIN = "-"
COLUMN_KEYS = ("task.image", "task.text", "task.separator", "task.quote")  # of a config, that say how a table is read

Read = Callable[[], Any]  # gives what the network takes of one image or text, or raises InputError


@dataclass(frozen=True)
class Item:
    """An example that is predicted.

    Attributes:
        id: a path, the line itself, or of a table's row its `id`, else its number as `train` gives it.
        place: of a row, its `file` and its `row`, counted from 0.
    """

    id: str | int
    place: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """The examples of one argument.

    Attributes:
        items: gives each with what reads it.
        count: how many there are; None where that is known at their end.
        tabular: whether they are rows of a table.
    """

    items: Callable[[], Iterator[tuple[Item, Read]]]
    count: int | None = None
    tabular: bool = False


def sources(files: Sequence[str | os.PathLike], config: TaskConfig, resolved: Resolved) -> list[Source]:
    """Finds out what each argument of `predict` is, and reads tables.

    Args:
        files: images, folders of them (`folder:PATH` too), tables (`csv:PATH`, `jsonl:PATH`, `parquet:PATH`, or by
            their suffix), `.txt` files with a text a line; `-` is stdin, with a path or a text a line.
        config: says which columns of tables are read, and how cells are separated and quoted.
        resolved: the run's.

    Raises:
        InputError: a table cannot be read, or lacks a column; a folder has no image; or a file is none of these.
    """
    return [_source(os.fspath(file), config, resolved) for file in files]


def kind_and_path(file: str) -> tuple[str, str]:
    """Returns the two parts of a `KIND:PATH`; no kind, and the whole, where that is a file's own name or has none."""
    kind, _, path = file.partition(":")
    has_kind = path and kind in (*KINDS, "folder") and not Path(file).exists()
    return (kind, path) if has_kind else ("", file)


def _source(file: str, config: TaskConfig, resolved: Resolved) -> Source:
    reads_text = resolved.input_spec.kind == "text"
    kind, file = kind_and_path(file)
    if kind in KINDS:
        return _table(kind, file, config, resolved)
    if kind == "folder" and not local_copy(file).is_dir():
        raise InputError(f"folder:{file}: no such folder")
    if file != STDIN and (kind := kind_of(file)):
        return _table(kind, file, config, resolved)
    path = local_copy(file)
    if path.is_dir():
        if reads_text:
            raise InputError(f"{file}: a folder, and this run reads texts: name files with a text per line, or a table")
        below = images_below(path)
        if not below:
            raise InputError(f"{file}: no image in it; leave it out, or name the folder that has them")
        remote = "://" in file
        return _pictures({f"{file}/{x.relative_to(path)}" if remote else _name(x): x for x in below}, resolved)
    if not reads_text:
        name = file if "://" in file else _name(path)
        return Source(functools.partial(_listed, resolved)) if file == STDIN else _pictures({name: path}, resolved)
    if path.is_file() and path.suffix.lower() != ".txt":
        raise InputError(f"{_name(path)}: is no table by its suffix, and lines are read of .txt and of stdin (-) alone")
    return Source(functools.partial(_lines, file if file == STDIN else str(path), resolved.pairs))


def _pictures(paths: Mapping[str, Path], resolved: Resolved) -> Source:
    """Returns images as a source, by what they are called."""

    def items() -> Iterator[tuple[Item, Read]]:
        for name, path in paths.items():
            yield Item(name), functools.partial(_view, path, resolved)

    return Source(items, len(paths))


def _listed(resolved: Resolved) -> Iterator[tuple[Item, Read]]:
    """Yields the images whose paths stdin has, one a line."""
    for _, line in _split(sys.stdin.buffer):
        if line:
            path = Path(os.fsdecode(line))
            yield Item(_name(path)), functools.partial(_view, path, resolved)


def _view(path: Path, resolved: Resolved) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unread(path, error) from error
    return resolved.input_spec.prepare(data, _name(path))


def _table(kind: str, path: str, config: TaskConfig, resolved: Resolved) -> Source:
    style = {"separator": config.separator, "quote": config.quote} if kind == "csv" else {}
    file = read_table(path, kind, **style)
    inputs = _inputs(file.header, config, resolved, file.name)
    columns = Columns(resolved.input_spec.kind, inputs, (), id="id" if "id" in file.header else "")
    table = Table(file.name, file.columns, file.where, images_folder(path, file, columns), faults=file.faults)

    def items() -> Iterator[tuple[Item, Read]]:
        for row in range(len(table.where)):
            read = functools.partial(_of_row, table, columns, row, resolved)
            yield Item(_id(table, columns, row), {"file": path, "row": row}), read

    return Source(items, len(table.where), tabular=True)


def _inputs(header: Sequence[str], config: TaskConfig, resolved: Resolved, name: str) -> tuple[str, ...]:
    """Returns the columns of a table that the network reads: those that the config names, or with usual names."""
    spec, count = resolved.input_spec, 1 + resolved.pairs
    chosen = spec.named_columns(config)
    usual = [names for names in USUAL[spec.noun(resolved.pairs)] if set(names) <= set(header)]
    if not chosen and len(usual) == 1:
        return usual[0]
    lacking = [column for column in chosen if column not in header]
    if len(chosen) == count and not lacking:
        return tuple(chosen)
    problem = f"no column {lacking[0]!r}" if lacking else f"this run reads {count} column(s) of {spec.noun()}"
    raise InputError(f"{name}: {problem}; it has {', '.join(header)}: give --config.task.{spec.kind}=…")


def _id(table: Table, columns: Columns, row: int) -> str | int:
    """Returns the row's id; where it has none its number, of an image's file followed by its path."""
    id = table.columns[columns.id][row] if columns.id else None
    if isinstance(id, int) and not isinstance(id, bool):
        return id
    if id is not None and str(id).strip():
        return str(id).strip()
    values = table.columns[columns.inputs[0]]
    has_path = columns.kind == "image" and isinstance(values, list) and isinstance(values[row], str)
    return f"{row:08d}/{values[row]}" if has_path else f"{row:08d}"


def _of_row(table: Table, columns: Columns, row: int, resolved: Resolved) -> Any:
    where = table.where[row]
    if row in table.faults:
        raise InputError(f"{where}: {table.faults[row]}")
    try:
        content = read_input(table, columns, row)
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror or error})") from error
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    return resolved.input_spec.prepare(content, where)


def _lines(file: str, pairs: bool) -> Iterator[tuple[Item, Read]]:
    """Yields the texts of a file or of stdin, one a line."""
    path = Path(file)
    name = "stdin" if file == STDIN else _name(path)
    try:
        with nullcontext(sys.stdin.buffer) if file == STDIN else path.open("rb") as content:
            for number, line in _split(content):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # a byte order mark
                read = functools.partial(_text, line, f"{name}, line {number}", pairs)
                yield Item(line.decode(errors="backslashreplace")), read
    except OSError as error:
        yield Item(name), functools.partial(_refuse, _unread(path, error))


def _split(content: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yields each line's number, from 1, and the line without its end."""
    for number, line in enumerate(content, 1):
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _text(line: bytes, where: str, pairs: bool) -> str | tuple[str, ...]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
    parts = tuple(text.split("\t"))
    if pairs != (len(parts) == 2):
        raise InputError(f"{where}: needs {'two texts with a tab between' if pairs else 'one text without a tab'}")
    return parts if pairs else text


def _refuse(error: InputError) -> None:
    raise error


def _unread(path: Path, error: OSError) -> InputError:
    reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    if " " in path.name and not path.suffix and isinstance(error, FileNotFoundError):
        reason += "; texts are given by line, in a .txt file or on stdin (-)"
    return InputError(f"{_name(path)}: {reason}")


def _name(path: Path) -> str:
    """Returns the path as text; what of it is no UTF-8 is written with escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")
