"""Numbers as a person reads them: metrics in per cent or as they are, p-values, large counts."""

import math
from dataclasses import dataclass

from tljax.problems.metric import Metric

NOTHING = "–"


@dataclass(frozen=True)
class Scale:
    """How the values of a metric are shown.

    Attributes:
        measure: the metric.
        count: examples that it is of, which decide how many digits mean anything.
    """

    measure: Metric
    count: int

    @property
    def metric(self) -> str:
        """The metric's name."""
        return self.measure.name

    @property
    def percent(self) -> bool:
        """Whether values are shown in per cent, as parts of a whole are; not losses, errors and R²."""
        return self.measure.is_share

    @property
    def less_is_better(self) -> bool:
        """Whether a lower value is better."""
        return self.measure.better == "lower"

    @property
    def title(self) -> str:
        """The metric's name in words, with its unit."""
        return self.metric.replace("_", " ") + (", %" if self.percent else "")

    def shown(self, value: float) -> float:
        """Returns a value in the unit that is shown."""
        return 100 * value if self.percent else value

    def text(self, value: float, sign: bool = False) -> str:
        """Returns a value as text: `95.7`, or with its sign `+1.2`; `–` where it is NaN."""
        if math.isnan(value):
            return NOTHING
        # One of 10,000 examples is 0.01%.
        digits = (2 if self.count >= 10_000 else 1) if self.percent else 4
        text = f"{self.shown(value):{'+' if sign else ''}.{digits}f}"
        return text.replace("-", "−")

    def interval(self, low: float, high: float, sign: bool = False) -> str:
        """Returns the interval from `low` to `high` as text, `95.1 … 96.2`, with `sign` as in `text`; `–` for NaN."""
        return NOTHING if math.isnan(low) else f"{self.text(low, sign)} … {self.text(high, sign)}"

    def spread(self, mean: float, sd: float) -> str:
        """Returns mean and deviation as text, `95.7 ± 0.2`; the mean alone where the deviation is NaN."""
        return self.text(mean) if math.isnan(sd) else f"{self.text(mean)} ± {self.text(sd)}"


def probability(p: float) -> str:
    """Returns a p-value as text: `0.013`, `< 0.001`, or `–` where it is NaN."""
    if math.isnan(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compact(value: float) -> str:
    """Returns a number in three digits, as on an axis: `770`, `10.2k`, `5.9M`, `1.2G`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def seconds(value: float) -> str:
    """Returns seconds as text, with a digit after the point below 10."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def counted(number: int, thing: str) -> str:
    """Returns a number of things as text: `1 run`, `3 runs`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
