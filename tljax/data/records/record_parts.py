"""A split's records and index, part by part: whoever was killed goes on at the first that is not finished."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tljax.errors import InputError
from tljax.io import checksums, storage
from tljax.problems.registry import problem_of

MAX_EXAMPLES = 1000
MAX_BYTES = 64 * 2**20
_WINDOW = 64  # examples that threads look at together
_THREADS = min(4, os.cpu_count() or 1)

Row = dict[str, Any]


class DiskFull(InputError):
    """A full disk: what is finished is of use to whoever tries again, which it is not after other errors."""


@dataclass(frozen=True)
class Examined:
    """One example that was examined.

    Attributes:
        row: of the index; None where the example is left out.
        record: what is stored of it; empty for nothing.
        skipped: `Task.skipped` of it, where it is left out.
        note: `Task.notes` of it, where there is one.
    """

    row: Row | None = None
    record: bytes = b""
    skipped: Mapping[str, str] | None = None
    note: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Part:
    """A finished part: the places [start, stop) of the split's order.

    Attributes:
        records: their file; there is none where nothing is stored.
        index: a row for each that was not skipped.
        skipped: the others.
        size: bytes of the records.
        notes: of some.
    """

    records: Path
    index: pa.Table
    start: int
    stop: int
    skipped: tuple[Mapping[str, str], ...]
    size: int
    notes: tuple[Mapping[str, str], ...] = ()


def index_schema(problem: str) -> pa.Schema:
    """Returns the schema of `Base.index`."""
    columns = {"id": pa.string(), "label": problem_of(problem).label_type, "height": pa.int32(), "width": pa.int32()}
    return pa.schema({**columns, "bytes": pa.int64(), "sha256": pa.string()})


def write_parts(
    folder: Path,
    split: str,
    total: int,
    schema: pa.Schema,
    examine: Callable[[int], Examined],
    done: Callable[[int], None],
) -> list[Part]:
    """Returns all parts of a split in `folder`, and makes those that are not there.

    Where a part ends depends only on what is in it, so parts have the same bytes whoever was killed in between.

    Args:
        folder: of the data set while it is made.
        split: its name.
        schema: of the index.
        total: examples of the split.
        examine: what becomes of the example at a place in the order; called from several threads.
        done: told how many places are finished.

    Raises:
        InputError: of `examine`.
        DiskFull: finished parts stay.
    """
    parts: list[Part] = []
    while (part := _finished(folder, split, len(parts))) is not None:
        parts.append(part)
    place = parts[-1].stop if parts else 0
    done(place)
    with ThreadPoolExecutor(_THREADS) as pool:
        pending, size = [], 0
        for example in _examined(pool, examine, place, total):
            pending.append(example)
            size += len(example.record)
            if len(pending) == MAX_EXAMPLES or size >= MAX_BYTES or place + len(pending) == total:
                needed = (sum(part.size for part in parts) + size) * total // (place + len(pending))
                parts.append(_write(folder, split, len(parts), place, pending, schema, needed))
                place, pending, size = parts[-1].stop, [], 0
                done(place)
    return parts


def clear(folder: Path) -> None:
    """Removes what is of use only until all parts are there: each one's index."""
    for path in (*folder.glob("part-*.parquet"), *folder.glob(f"part-*.{checksums.NAME}")):
        path.unlink()


def _examined(
    pool: ThreadPoolExecutor, examine: Callable[[int], Examined], start: int, total: int
) -> Iterator[Examined]:
    """Yields examples in order; a window at a time, so that only so many wait in memory."""
    for first in range(start, total, _WINDOW):
        yield from pool.map(examine, range(first, min(first + _WINDOW, total)))


def _finished(folder: Path, split: str, number: int) -> Part | None:
    records, index = _paths(folder, split, number)
    if checksums.wrong(_seal_of(index)):
        return None
    table = pq.read_table(index)
    facts = json.loads(table.schema.metadata[b"tljax"])
    if facts["size"] and not (records.exists() and records.stat().st_size == facts["file_size"]):
        return None
    skipped, notes = tuple(facts["skipped"]), tuple(facts["notes"])
    return Part(records, table, facts["start"], facts["stop"], skipped, facts["size"], notes)


def _seal_of(index: Path) -> Path:
    return index.with_suffix(f".{checksums.NAME}")


def _paths(folder: Path, split: str, number: int) -> tuple[Path, Path]:
    part = folder / f"part-{split}-{number:05d}"
    return part.with_suffix(".array_record"), part.with_suffix(".parquet")


def _write(
    folder: Path, split: str, number: int, start: int, examined: list[Examined], schema: pa.Schema, needed: int
) -> Part:
    """Writes a part, each file whole or not at all; the index, which says that the part is there, last."""
    records, index = _paths(folder, split, number)
    size = sum(len(example.record) for example in examined)
    free = shutil.disk_usage(folder).free
    if free < size * 1.1 + 2**20:
        raise _disk_full(folder, free, max(size, needed))
    try:
        if size:
            with storage.replacing(records) as file:
                _write_records(Path(file.name), [example.record for example in examined if example.row])
        facts = {
            "start": start,
            "stop": start + len(examined),
            "skipped": [example.skipped for example in examined if example.skipped],
            "notes": [example.note for example in examined if example.note],
            "size": size,
            "file_size": records.stat().st_size if size else 0,
        }
        table = pa.Table.from_pylist([example.row for example in examined if example.row], schema)
        with storage.replacing(index) as file:
            pq.write_table(table.replace_schema_metadata({"tljax": json.dumps(facts)}), file)
            file.flush()
            checksums.seal(_seal_of(index), {index.name: Path(file.name)})
    except (OSError, RuntimeError) as error:  # RuntimeError is what array_record raises
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise _disk_full(folder, free, max(size, needed)) from error
        raise
    skipped, notes = tuple(facts["skipped"]), tuple(facts["notes"])
    return Part(records, table, start, start + len(examined), skipped, size, notes)


def _write_records(path: Path, records: list[bytes]) -> None:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")  # as TFDS writes them
    for record in records:
        writer.write(record)
    writer.close()


def _disk_full(folder: Path, free: int, needed: int) -> DiskFull:
    return DiskFull(
        f"{folder}: the disk is full: {free / 1e6:,.0f} MB are free, and this split needs about {needed / 1e6:,.0f}; "
        "what is finished is kept: make room, or set TLJAX_CACHE to another disk, and run it again"
    )
