"""Rotary position embeddings (2104.09864): attention sees how far apart tokens are, as queries and keys are turned."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_BASE = 100.0  # of the periods, DINOv3's
_REFERENCE = 16  # patches along a side where EVA-02 learned its positions; other grids are scaled to that


@functools.cache
def axial_angles(grid: tuple[int, int], depth: int, base: float = _BASE) -> Float[np.ndarray, "patches depth"]:
    """Returns the angle by which each patch turns each pair of a head's channels, as DINOv3 (2508.10104) has them.

    The patches' centers lie in [-1, 1] along either axis whatever their number, so that nothing is resampled for
    another size. Channels are, twice over, a quarter for the place down and a quarter for that across.

    Args:
        grid: patches (down, across).
        depth: channels of a head, a multiple of 4.
        base: the periods run from 1 towards it, geometrically.

    Raises:
        ValueError: the depth cannot be cut into quarters.
    """
    if depth % 4:
        raise ValueError(f"a head of {depth} channels has no axial rotary positions: give a multiple of 4")
    down, across = (((np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1) for n in grid)
    centers = np.stack(np.meshgrid(down, across, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    periods = np.float32(base) ** (np.arange(depth // 4, dtype=np.float32) / np.float32(depth // 4))
    angles = np.float32(2 * np.pi) * centers / periods
    return np.tile(angles.reshape(len(angles), -1), 2)


@functools.cache
def scaled_angles(grid: tuple[int, int], depth: int) -> Float[np.ndarray, "patches pairs"]:
    """Returns the angle by which each patch turns each pair of a head's channels, as EVA-02 (2303.11331) has them.

    The first half of the pairs is of the place down, the second of that across; periods run from 2 pi towards 10,000
    times that, geometrically.

    Args:
        grid: patches (down, across).
        depth: channels of a head, a multiple of 4.
    """
    speeds = 1e4 ** -(np.arange(depth // 4) / (depth // 4))
    places = np.stack(np.meshgrid(*(np.arange(side) / side * _REFERENCE for side in grid), indexing="ij"), -1)
    return (places.reshape(-1, 2, 1) * speeds).reshape(-1, depth // 2).astype(np.float32)


@functools.cache
def sequence_angles(length: int, depth: int, period: float) -> Float[np.ndarray, "length depth"]:
    """Returns the angle of each pair of a head's channels at each place of a text: place / period^(2 i / depth).

    Args:
        length: places, from 0 on.
        depth: channels of a head.
        period: the base of the geometric series of periods.
    """
    inverse = 1.0 / np.float32(period) ** (np.arange(0, depth, 2, dtype=np.float32) / np.float32(depth))
    return np.tile(np.arange(length, dtype=np.float32)[:, None] * inverse, 2)


def rotated(
    x: Float[Array, "batch heads tokens depth"], angles: Float[np.ndarray, "places depth"]
) -> Float[Array, "batch heads tokens depth"]:
    """Returns queries or keys turned by `angles`, of the last tokens; those before them have no place and stay.

    A channel is paired with that half the depth further on. Computed in float32.
    """
    prefix, rest = x[:, :, : -len(angles)], x[:, :, -len(angles) :].astype(jnp.float32)
    first, second = jnp.split(rest, 2, axis=-1)
    turned = rest * np.cos(angles) + jnp.concatenate([-second, first], axis=-1) * np.sin(angles)
    return jnp.concatenate([prefix, turned.astype(x.dtype)], axis=2)


def rotated_neighbors(
    x: Float[Array, "batch heads tokens depth"], angles: Float[np.ndarray, "places pairs"]
) -> Float[Array, "batch heads tokens depth"]:
    """Returns what `rotated` does, where a channel is paired with its neighbor."""
    prefix, rest = x[:, :, : -len(angles)], x[:, :, -len(angles) :].astype(jnp.float32)
    even, odd, cosine, sine = rest[..., ::2], rest[..., 1::2], np.cos(angles), np.sin(angles)
    pairs = jnp.stack([even * cosine - odd * sine, odd * cosine + even * sine], axis=-1)
    return jnp.concatenate([prefix, pairs.reshape(rest.shape).astype(x.dtype)], axis=2)
