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
    """Which trials are trained, and which are tested.

    Attributes:
        tuned: sections of a config in which the settings of a method differ (`selection`).
        seeds: `all` of every setting before one is chosen; or `chosen`: the first of each, then the others of those
            that were chosen by it.
        peek: whether every trial is tested.
    """

    tuned: tuple[str, ...] = selection.TUNED
    seeds: str = "all"
    peek: bool = False

    def due(self, trials: Sequence[Trial]) -> tuple[list[Trial], bool]:
        """Returns what is to be done next as the workdirs stand; and whether it is tested, too, or trained alone.

        What has failed is not due, and is never chosen before what has not.
        """
        if self.peek:
            return [trial for trial in trials if trial.left(test=True)], True
        first = trials
        if self.seeds == "chosen":
            first = [members[0] for members in selection.by_setting(trials).values()]
        if training := [trial for trial in first if trial.left(test=False)]:
            return training, False
        settings = self.chosen(first)
        return [
            trial for trial in trials if selection.setting_of(trial.experiment) in settings and trial.left(test=True)
        ], True

    def chosen(self, trials: Sequence[Trial]) -> set[Experiment]:
        """Returns the setting of each method that is tested: the best, or the only one."""
        best = selection.select_trials(trials, self.tuned)
        chosen = {selection.setting_of(members[0].experiment) for members in best.values()}
        for method, settings in selection.methods(trials, self.tuned).items():
            if method not in best and len(settings) == 1:
                chosen |= settings.keys()
        return chosen


RunTrials = Callable[[Sequence[Trial], bool], None]


def sweep(trials: Sequence[Trial], protocol: Protocol, run_trials: RunTrials) -> list[Trial]:
    """Runs what is due until nothing is, each trial at most once; returns those that are due all the same.

    Args:
        trials: of the whole sweep.
        protocol: says which are due.
        run_trials: trains trials or, if told so, trains and tests them as far as they are not; leaves them failed or
            unfinished, if it must.

    Raises:
        Stopped: told to; the same call goes on.
    """
    tried: set[tuple[Trial, bool]] = set()
    while True:
        due, test = protocol.due(trials)
        new = [trial for trial in due if (trial, test) not in tried]
        if not new:
            return due
        tried |= {(trial, test) for trial in new}
        run_trials(new, test)


def show(trials: Sequence[Trial], chosen: Collection[Experiment]) -> None:
    """Prints a row per setting, with the mean over its seeds, and a star at those that were chosen."""
    metric, rows = problem_of(trials[0].experiment.task.problem).headline.name, []
    for setting, members in selection.by_setting(trials).items():
        finished = [trial for trial in members if trial.result]
        cells = [_mean(finished, name, metric) for name in ("validation", "test")]
        seconds = f"{sum(trial.result['wall_seconds'] for trial in finished):.0f}"
        star = " *" if finished and setting in chosen else ""
        rows.append((members[0].setting + star, f"{len(finished)} of {len(members)}", *cells, seconds))
    title = "sweep (* the best of its method on validation)"
    console.table(title, ("setting", "runs", f"validation {metric}", f"test {metric}", "s"), rows)
    for trial in trials:
        if trial.error:
            place = console.shown_path(trial.folder)
            message = f"failed: {trial.setting}, seed {trial.experiment.seed} ({place}): {trial.error['error']}"
            console.console.print(message)


def _mean(finished: Sequence[Trial], split: str, metric: str) -> str:
    values = [trial.result["splits"][split][metric] for trial in finished if split in trial.result["splits"]]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}" if values else ""
