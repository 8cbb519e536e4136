"""Rotary position embeddings (2104.09864): attention sees how far apart tokens are, as queries and keys are turned."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_BASE = 100.0  # of the periods, DINOv3's


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


def rotated(
    x: Float[Array, "batch heads tokens depth"], angles: Float[np.ndarray, "patches depth"]
) -> Float[Array, "batch heads tokens depth"]:
    """Returns queries or keys turned by `angles`, of the last tokens; those before them have no place and stay.

    A channel is paired with that half the depth further on. Computed in float32.
    """
    prefix, patches = x[:, :, : -len(angles)], x[:, :, -len(angles) :].astype(jnp.float32)
    first, second = jnp.split(patches, 2, axis=-1)
    turned = patches * np.cos(angles) + jnp.concatenate([-second, first], axis=-1) * np.sin(angles)
    return jnp.concatenate([prefix, turned.astype(x.dtype)], axis=2)
