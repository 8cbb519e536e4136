"""Stand-in until `metrics.summarise` has moved here."""

from typing import Any

import numpy as np

from tljax import metrics


def summarise(problem: str, logits: np.ndarray, labels: np.ndarray, *, full: bool = True) -> dict[str, Any]:
    """`metrics.summarise`."""
    del full
    return metrics.summarise(problem, logits, labels)
