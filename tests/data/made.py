"""Tasks made by hand: an index that says what a test needs it to, and inputs in memory."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from tljax.data.dataset import Base, Task


class Listed(list):
    """Records in memory."""

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [self[row] for row in rows]


def base(labels: Sequence[Any], contents: Sequence[str] | None = None, prefix: str = "", **columns: Any) -> Base:
    """A split with these labels. Examples are called 0, 1, … after `prefix`; their contents differ unless given."""
    count = len(labels)
    ids = [f"{prefix}{i}" for i in range(count)]
    contents = contents or [f"content of {prefix}{i}" for i in range(count)]
    index = {
        "id": ids,
        "label": list(labels),
        "height": [0] * count,
        "width": [0] * count,
        "bytes": [len(content.encode()) for content in contents],
        "sha256": [hashlib.sha256(content.encode()).hexdigest() for content in contents],
    }
    return Base(Listed({"text": content} for content in contents), pa.table(index | columns))


def task(bases: Mapping[str, Base], classes: Sequence[str], problem: str = "single_label", **values: Any) -> Task:
    return Task(
        **{"name": "made", "kind": "text", "fingerprint": "made by hand"} | values,
        problem=problem,
        classes=tuple(classes),
        bases=bases,
    )
