"""Many runs of a config that differ in some keys; what they have in common is computed once.

Every setting is trained with the test split held back. When all are in, the setting of each method with the best mean
over seeds on validation is chosen, and its runs alone are tested.
"""

import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tljax import console
from tljax.config.schema import Experiment
from tljax.problems.registry import problem_of
from tljax.sweeps import selection
from tljax.sweeps.trial import Trial


@dataclass(frozen=True)
class Protocol:
    """Which points are trained, and which are tested.

    Attributes:
        tuned: sections of a config in which the settings of a method differ (`selection`).
        seeds: `all` of every setting before one is chosen; or `chosen`: the first of each, then the others of those
            that were chosen by it.
        peek: whether every point is tested.
    """

    tuned: tuple[str, ...] = selection.TUNED
    seeds: str = "all"
    peek: bool = False

    def due(self, found: Sequence[Trial]) -> tuple[list[Trial], bool]:
        """What is to be done next as the workdirs stand; and whether it is tested, too, or trained alone.

        What has failed is not due, and is never chosen before what has not.
        """
        if self.peek:
            return [point for point in found if point.left(test=True)], True
        first = found
        if self.seeds == "chosen":
            first = [members[0] for members in selection.by_setting(found).values()]
        if training := [point for point in first if point.left(test=False)]:
            return training, False
        picked = self.chosen(first)
        return [
            point for point in found if selection.setting_of(point.experiment) in picked and point.left(test=True)
        ], True

    def chosen(self, found: Sequence[Trial]) -> set[Experiment]:
        """The setting of each method that is tested: the best, or the only one."""
        chosen = selection.chosen(found, self.tuned)
        picked = {selection.setting_of(members[0].experiment) for members in chosen.values()}
        for method, settings in selection.methods(found, self.tuned).items():
            if method not in chosen and len(settings) == 1:
                picked |= settings.keys()
        return picked


CarryOut = Callable[[Sequence[Trial], bool], None]


def sweep(found: Sequence[Trial], protocol: Protocol, carry_out: CarryOut) -> list[Trial]:
    """Has carried out what is due until nothing is, each point at most once; returns those that are due all the same.

    Args:
        carry_out: trains points or, if told so, trains and tests them as far as they are not; leaves them failed or
            unfinished, if it must.

    Raises:
        Stopped: told to; the same call goes on.
    """
    tried: set[tuple[Trial, bool]] = set()
    while True:
        due, test = protocol.due(found)
        new = [point for point in due if (point, test) not in tried]
        if not new:
            return due
        tried |= {(point, test) for point in new}
        carry_out(new, test)


def show(found: Sequence[Trial], picked: Collection[Experiment]) -> None:
    """A table: a row per setting, with the mean over its seeds, and a star at those that were chosen."""
    metric, rows = problem_of(found[0].experiment.task.problem).headline.name, []
    for setting, members in selection.by_setting(found).items():
        done = [point for point in members if point.result]
        cells = [_mean(done, name, metric) for name in ("validation", "test")]
        seconds = f"{sum(point.result['wall_seconds'] for point in done):.0f}"
        star = " *" if done and setting in picked else ""
        rows.append((members[0].setting + star, f"{len(done)} of {len(members)}", *cells, seconds))
    title = "sweep (* the best of its method on validation)"
    console.table(title, ("setting", "runs", f"validation {metric}", f"test {metric}", "s"), rows)
    for point in found:
        if point.error:
            told = f"failed: {point.setting}, seed {point.experiment.seed} ({point.folder}): {point.error['error']}"
            console.console.print(told)


def _mean(done: Sequence[Trial], split: str, metric: str) -> str:
    values = [point.result["splits"][split][metric] for point in done if split in point.result["splits"]]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}" if values else ""
