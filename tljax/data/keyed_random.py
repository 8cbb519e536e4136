"""Random numbers keyed by what they are for, so that neither workers nor batches nor a restart change them."""

from collections.abc import Sequence

import numpy as np


def philox(seed: int, epoch: int, place: int) -> np.random.Philox:
    """Returns the random words of one place in an epoch.

    Args:
        seed: of the run.
        epoch: which pass over the data.
        place: 0 for the epoch's order, i + 1 for its example i.
    """
    return np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, 0, place], np.uint64))


def generators(seed: int, rows: Sequence[tuple[int, int]]) -> list[np.random.Generator]:
    """Returns what augments each (epoch, example): its place in a batch, and the batch's size, change nothing."""
    return [np.random.Generator(philox(seed, epoch, index + 1)) for epoch, index in rows]
