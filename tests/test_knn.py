"""k nearest neighbours, held against the plain form in NumPy."""

import numpy as np
import pytest

from tljax.errors import InputError
from tljax.evals import knn
from tljax.evals.probe import Examples

pytestmark = pytest.mark.optimized


def _plain(train: Examples, queries: np.ndarray, classes: int, k: int) -> np.ndarray:
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (queries, train.features)]
    similar = unit[0] @ unit[1].T
    found = np.zeros((len(queries), classes))
    for row, similarities in enumerate(similar):
        for place in np.argsort(-similarities)[:k]:
            found[row, train.labels[place]] += np.exp(similarities[place] / 0.07)
    return found


@pytest.mark.parametrize("bytes_at_once", [1 << 27, 4 * 50 * 3])
def test_it_is_the_plain_form(bytes_at_once):
    """In one chunk, or in seven of three queries and one of two."""
    rng = np.random.default_rng(0)
    train = Examples(rng.standard_normal((50, 8), np.float32), rng.integers(0, 4, 50).astype(np.int32))
    queries = rng.standard_normal((23, 8), np.float32)
    found = knn.votes(train, queries, 4, (1, 5, 50), bytes_at_once=bytes_at_once)
    assert list(found) == [1, 5, 50]
    for k, votes in found.items():
        np.testing.assert_allclose(votes, _plain(train, queries, 4, k), rtol=1e-4)


def test_a_query_among_the_training_examples_is_its_own_neighbour():
    rng = np.random.default_rng(0)
    train = Examples(rng.standard_normal((20, 8), np.float32), np.arange(20, dtype=np.int32))
    votes = knn.votes(train, 5 * train.features, 20, [1])[1]
    np.testing.assert_allclose(votes, np.eye(20) * np.exp(1 / 0.07), rtol=1e-4)


def test_too_many_neighbours():
    train = Examples(np.ones((20, 8), np.float32), np.zeros(20, np.int32))
    for k, says in ((21, "k=21 is more than the 20 training examples"), (0, "at least 1, not 0")):
        with pytest.raises(InputError, match=says):
            knn.votes(train, train.features, 1, [10, k])
