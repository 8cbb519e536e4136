"""What a metric is called, and which way it is better."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tljax.errors import InputError


@dataclass(frozen=True)
class Metric:
    """A metric by its name.

    Attributes:
        name: in what `Problem.summarize` gives.
        better: `higher` or `lower`.
        is_share: whether it is a part of a whole, which a report shows in per cent.
    """

    name: str
    better: str = "higher"
    is_share: bool = False

    def __post_init__(self):
        if self.better not in ("higher", "lower"):
            raise InputError(f"metric {self.name}: better={self.better!r} must be 'higher' or 'lower'")

    def quality(self, metrics: Mapping[str, Any]) -> float:
        """Returns how good metrics are by this one: more is better.

        Raises:
            InputError: the metric is not there, or is not a number; JSON has null for it.
        """
        value = metrics.get(self.name)
        if value is None or not math.isfinite(value):
            problem = "is not a number" if self.name in metrics else "is not among the metrics"
            raise InputError(f"{self.name} {problem}, so that nothing is best by it")
        return -value if self.better == "lower" else value
