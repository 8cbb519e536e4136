"""Images in files of their own, read where they lie: nothing of them is kept but an index."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tljax.data.dataset import Item, Source, Task
from tljax.data.records.record_index import open_task
from tljax.errors import InputError
from tljax.io import checksums


def open_in_place(name: str, folder: Path, source: Source) -> Task:
    """Returns the task of which `prepare` made the index alone.

    Args:
        name: of the data set.
        folder: with the index.
        source: whose files they are.

    Raises:
        InputError: the index is missing or damaged.
    """

    def records(split: str, index: pa.Table) -> FileReader:
        return FileReader(source.splits[split], index, folder / checksums.NAME)

    return open_task(name, folder, records, f"remove {folder}, and it is indexed again")


class FileReader:
    """The images of one split.

    Args:
        items: all of the split, in any order.
        index: `Base.index`; a file whose bytes are others by now is no example of it.
        seal: of the index, which is made again if that is gone.
    """

    def __init__(self, items: Sequence[Item], index: pa.Table, seal: Path):
        paths = {item.id: item.content for item in items}
        # One array of bytes: a million paths as objects take most of a gigabyte.
        encoded = [os.fsencode(paths[id].absolute()) for id in index.column("id").to_pylist()]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)  # `pa.array` would import pandas: .2 s of each start
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
        self._paths = pa.Array.from_buffers(pa.large_binary(), len(encoded), buffers)
        self._sha256, self._seal = index.column("sha256"), seal

    def __len__(self) -> int:
        return len(self._paths)

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Returns `{image: bytes}` of each row.

        Raises:
            InputError: a file is gone, or was changed since it was indexed.
        """
        return [{"image": self._read(row)} for row in rows]

    def _read(self, row: int) -> bytes:
        path = self._paths[row].as_py()
        name = path.decode(errors="backslashreplace")
        try:
            content = Path(os.fsdecode(path)).read_bytes()
        except OSError as error:
            raise InputError(
                f"{name}: cannot be read any more ({error.strerror or error}); put it back, or run it again without it"
            ) from error
        if hashlib.sha256(content).hexdigest() != self._sha256[row].as_py():
            self._seal.unlink(missing_ok=True)
            raise InputError(
                f"{name}: was changed since the data set was indexed; put it back, or run it again, to index it again"
            )
        return content
