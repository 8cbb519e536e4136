"""The mesh of devices, and how batches and state lie on it."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tljax.errors import InputError

DATA = "data"


def make_mesh() -> Mesh:
    """All local devices along one `data` axis."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), (DATA,), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Each device holds its share of the first axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def check_batch(size: int, mesh: Mesh, key: str, parts: int = 1) -> int:
    """`size`, if it can be shared out evenly, in `parts` one after another.

    Raises:
        InputError: it cannot; the nearest sizes that can are named.
    """
    unit = mesh.size * parts
    if size < 1 or size % unit:
        lower, upper = max(size // unit, 1) * unit, (max(size, 0) // unit + 1) * unit
        near = f"{lower} or {upper}" if lower != upper else str(upper)
        by = f"{mesh.size} devices" + (f" in {parts} parts" if parts > 1 else "")
        raise InputError(f"{key}={size} cannot be shared by {by}: use {near}")
    return size


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """A host batch, laid on the mesh."""
    return jax.device_put(batch, split(mesh))


def put_ahead(batches: Iterable[Any], mesh: Mesh) -> Iterator[Any]:
    """Host batches, each laid on the mesh while the one before it is computed with."""
    waiting = None
    for batch in batches:
        laid = put_batch(batch, mesh)
        if waiting is not None:
            yield waiting
        waiting = laid
    if waiting is not None:
        yield waiting
