"""k nearest neighbors on features, as DINO evaluates them (2104.14294): no training, and nothing to choose but k.

votes = knn.votes(train, test.features, classes)
accuracy = {k: np.mean(counts.argmax(axis=-1) == test.labels) for k, counts in votes.items()}
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tljax.distributed.mesh import make_mesh, place, replicated, split
from tljax.errors import InputError
from tljax.evals.probe import Examples

NEIGHBORS = (10, 20, 100, 200)  # DINO's
_BYTES = 1 << 27  # of similarities at once, on each device


def votes(
    train: Examples,
    queries: Float[np.ndarray, "n features"],
    classes: int,
    neighbors: Sequence[int] = NEIGHBORS,
    *,
    temperature: float = 0.07,
    bytes_at_once: int = _BYTES,
) -> dict[int, Float[np.ndarray, "n classes"]]:
    """Returns for each k, by class, the sum over a query's k nearest training examples of exp(cosine / temperature).

    Args:
        train: with a class for each example.
        queries: features of other examples.
        classes: how many there are.
        neighbors: each k.
        temperature: by which cosine similarities are divided.
        bytes_at_once: of similarities, of which one product serves every k; it changes nothing but time and memory.

    Raises:
        InputError: k is below 1, or there are not as many training examples.
    """
    most = max(neighbors)
    if min(neighbors) < 1:
        raise InputError(f"k must be at least 1, not {min(neighbors)}")
    if most > len(train.features):
        raise InputError(f"k={most} is more than the {len(train.features)} training examples: leave it out")
    mesh = make_mesh()
    train_features = place((_unit(train.features), np.asarray(train.labels)), replicated(mesh))
    size = max(1, min(bytes_at_once // (4 * len(train.features)), -(-len(queries) // mesh.size))) * mesh.size
    count = jax.jit(
        partial(_votes, classes=classes, neighbors=tuple(neighbors), temperature=temperature),
        out_shardings=replicated(mesh),
    )
    chunks: list[np.ndarray] = []
    for first in range(0, len(queries), size):
        chunk = _unit(queries[first : first + size])
        filled = np.concatenate([chunk, np.zeros((size - len(chunk), chunk.shape[-1]), np.float32)])
        chunks.append(np.asarray(count(place(filled, split(mesh)), *train_features))[:, : len(chunk)])
    return dict(zip(neighbors, np.concatenate(chunks, axis=1), strict=True))


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def _votes(queries, features, labels, *, classes, neighbors, temperature):
    """Returns the votes [neighbors, queries, classes], from the similarities of the nearest, which come in order."""
    nearest, places = jax.lax.top_k(jnp.einsum("qd,nd->qn", queries, features), max(neighbors))
    weights, own = jnp.exp(nearest / temperature), labels[places]
    rows = jnp.arange(len(queries))[:, None]

    def votes_of(k):
        return jnp.zeros((len(queries), classes)).at[rows, own[:, :k]].add(weights[:, :k])

    return jnp.stack([votes_of(k) for k in neighbors])
