"""What a report says of a data set: of each method what was tried and chosen, how good it is, and against what."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tljax.problems.base import Problem
from tljax.reports.formatting import Scale
from tljax.reports.run_metrics import RunMetrics
from tljax.reports.runs import Run
from tljax.reports.statistics import Comparison
from tljax.sweeps import selection

TESTS = ("bootstrap", "t", "mcnemar")


@dataclass(frozen=True)
class Options:
    """How a report compares.

    Attributes:
        split: that the methods are compared on.
        metric: by default the problem's headline.
        tuned: sections of a config in which the settings of a method differ.
        baseline: the name of the method that the others are compared with; by default the first.
        test: a name in `TESTS`.
        draws: resamples of a bootstrap.
    """

    split: str = "test"
    metric: str = ""
    tuned: tuple[str, ...] = selection.TUNED
    baseline: str = ""
    test: str = "bootstrap"
    draws: int = 10_000


@dataclass(frozen=True, eq=False)
class Setting:
    """A setting that was tried of a method.

    Attributes:
        words: the values that tell it from the others.
        runs: by seed.
        validation: the metric of each on the validation split; empty without one.
        chosen: whether it is the one that is compared.
    """

    words: str
    runs: Sequence[Run]
    validation: Sequence[float]
    chosen: bool


@dataclass(frozen=True, eq=False)
class Method:
    """A row of the table.

    Attributes:
        name: what tells it from the others.
        settings: all that were tried.
        setting: the chosen one.
        run_metrics: of its runs on the split, in their order.
        resampled: the metric of each in each resample of the examples.
        mean, deviation: over seeds.
        low, high: the 95% interval over examples and seeds.
        against: its comparison with the baseline; None of the baseline.
        best: whether no other has a better mean; of equal ones the first.
        tied: whether it is not significantly worse than the best: the test finds no difference after Holm's correction,
            or the digits shown are the same.
    """

    name: str
    settings: Sequence[Setting]
    setting: Setting
    run_metrics: Sequence[RunMetrics]
    resampled: Float[np.ndarray, "seeds draws"]
    mean: float
    deviation: float
    low: float
    high: float
    against: Comparison | None = None
    best: bool = False
    tied: bool = False

    @property
    def runs(self) -> Sequence[Run]:
        """The runs of the chosen setting."""
        return self.setting.runs

    @property
    def values(self) -> Float[np.ndarray, " seeds"]:
        """The metric of each run."""
        return np.array([run_metrics.value for run_metrics in self.run_metrics])

    def cost(self, key: str) -> float:
        """Returns a number of the cost block, averaged over seeds."""
        return float(np.mean([run.result["cost"][key] for run in self.runs]))

    @property
    def seconds(self) -> float:
        """Wall time of a run, averaged over seeds."""
        return float(np.mean([run.result["wall_seconds"] for run in self.runs]))


@dataclass(frozen=True, eq=False)
class LeftOut:
    """A method that is not in the table, and why."""

    name: str
    settings: Sequence[Setting]
    reason: str


@dataclass(frozen=True, eq=False)
class Section:
    """All that a report says of a data set.

    Attributes:
        title: its name.
        options: as they were asked for, with the metric that was taken.
        problem: whose headline chooses settings, on the validation split.
        count: examples of the split.
        methods: by parameters that train, then by name.
        baseline: one of them; None where there is but one.
        left_out: what could not be compared.
        peeked: runs that were not chosen and whose test metrics exist all the same.
    """

    title: str
    options: Options
    problem: Problem
    count: int
    methods: Sequence[Method]
    baseline: Method | None
    left_out: Sequence[LeftOut]
    peeked: Sequence[Run]

    @property
    def selected_by(self) -> str:
        """The metric of the validation split that chooses settings."""
        return self.problem.headline.name

    @property
    def scale(self) -> Scale:
        """How the metric is shown."""
        return Scale(self.problem.metric(self.options.metric), self.count)

    @property
    def selected_scale(self) -> Scale:
        """How the metric that chooses settings is shown."""
        return Scale(self.problem.headline, self.count)

    @property
    def best(self) -> Method:
        """The method with the best mean."""
        return next(method for method in self.methods if method.best)

    @property
    def everything(self) -> list[Method | LeftOut]:
        """All methods, those that were left out at the end."""
        return [*self.methods, *self.left_out]

    @property
    def runs(self) -> list[Run]:
        """All runs of all methods."""
        return [run for method in self.everything for setting in method.settings for run in setting.runs]

    @property
    def tried(self) -> int:
        """The number of settings of all methods."""
        return sum(len(method.settings) for method in self.everything)
