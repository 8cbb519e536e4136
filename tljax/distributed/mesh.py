"""The mesh of a run's devices, and how batches, parameters and optimizer state lie on it."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from tljax.errors import InputError

DATA, FSDP = "data", "fsdp"

# Elements of an array below which its shares are not worth the messages that bring them together.
_LEAST = 4096


def make_mesh(devices: Sequence[jax.Device] = (), fsdp: int = 1) -> Mesh:
    """Returns a mesh of devices along `data` × `fsdp`; by default of those of all processes.

    Those of a process stand side by side, as its rows of a batch do, and so do as many as share parameters (`spread`).

    Raises:
        InputError: the devices cannot be shared out so; the numbers that they can are named.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        can = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise InputError(f"mesh.fsdp={fsdp} does not divide the {count} devices: use {can}")
    return Mesh(np.array(devices).reshape(-1, fsdp), (DATA, FSDP), axis_types=(AxisType.Auto,) * 2)


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding in which every device has the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Returns the sharding in which each device has its share of the first axis."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def spread(mesh: Mesh | AbstractMesh, shape: Sequence[int]) -> NamedSharding:
    """Returns the sharding of an array of parameters, or of an optimizer's state.

    The longest axis that `fsdp` divides is shared out. Small arrays, and those without such an axis, are whole on
    every device. As it goes by the shape alone, moments and averages lie as their parameters do.
    """
    count = mesh.shape[FSDP]
    axes = [axis for axis, length in enumerate(shape) if length % count == 0]
    if count == 1 or math.prod(shape) < _LEAST or not axes:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, FSDP))


def whole(tree: Any, mesh: Mesh) -> Any:
    """Replicates the arrays of a tree within a program: every device needs them to compute its rows of a batch.

    Their gradients are summed over all devices before they are shared out again.
    """
    if mesh.shape[FSDP] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def place(tree: Any, shardings: Sharding | Any) -> Any:
    """Lays arrays out that every process has whole, or that already lie on the devices of all.

    Args:
        tree: of arrays.
        shardings: one sharding, or a tree of them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(leaf, sharding):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    if isinstance(shardings, Sharding):
        return jax.tree.map(lambda leaf: put(leaf, shardings), tree)
    return jax.tree.map(put, tree, shardings)


def gathered(tree: Any) -> Any:
    """Brings the arrays together of which other processes have a part, so that each process can read them.

    With several processes, all have to call it.
    """

    def gather(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(gather, tree)


def shares(tree: Any) -> int:
    """Returns the bytes of a tree's arrays on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def check_batch(size: int, mesh: Mesh, key: str, parts: int = 1) -> int:
    """Returns `size`, if the devices can share it evenly.

    Args:
        size: rows of a batch.
        mesh: of the devices.
        key: of the config, for the message.
        parts: in how many the batch is computed, one after another.

    Raises:
        InputError: it cannot; the nearest sizes that can are named.
    """
    unit = mesh.size * parts
    if size < 1 or size % unit:
        lower, upper = max(size // unit, 1) * unit, (max(size, 0) // unit + 1) * unit
        near = f"{lower} or {upper}" if lower != upper else str(upper)
        by = f"{mesh.size} devices" + (f" in {parts} parts (optim.accumulate)" if parts > 1 else "")
        raise InputError(f"{key}={size} cannot be shared by {by}: use {near}")
    return size


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Lays this process's share of a batch on the mesh, beside the others'."""
    if jax.process_count() == 1:
        return jax.device_put(batch, split(mesh))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(split(mesh), leaf), batch)


def put_ahead(batches: Iterable[Any], mesh: Mesh) -> Iterator[Any]:
    """Yields host batches, each laid on the mesh while the batch before it is computed with."""
    waiting = None
    for batch in batches:
        laid = put_batch(batch, mesh)
        if waiting is not None:
            yield waiting
        waiting = laid
    if waiting is not None:
        yield waiting


def layouts(tree: Any) -> Any:
    """Returns the sharding of each array of a tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of an array that is to have this sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
