"""How far the points of a sweep are, as their workdirs tell: nothing is computed, and nobody is disturbed."""

import datetime
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tljax import console
from tljax.checkpoints.workdir import Workdir
from tljax.errors import InputError
from tljax.problems.registry import problem_of
from tljax.sweeps import selection
from tljax.sweeps.launchers import slurm
from tljax.sweeps.trial import Trial, logs_folder

STATES = ("tested", "trained", "running", "failed", "to do")


@dataclass(frozen=True)
class Standing:
    """How far a point is.

    Attributes:
        state: a name in `STATES`; what was begun and is not running is to do.
        step, steps: the last that was logged, and those of the whole run; 0 where they are not known.
        seconds: of training, so far.
        validation: the problem's headline; None before the end.
        note: why it failed, or who is at it.
        last: the latest metric that was logged, in words.
        left: seconds that the steps to come take, if they take what those before took; None where it is not known.
    """

    state: str
    step: int
    steps: int
    seconds: float
    validation: float | None
    note: str
    last: str = ""
    left: float | None = None

    def __str__(self) -> str:
        step = f"step {self.step} of {self.steps or '?'}" if self.step or self.state == "running" else ""
        left = f"{datetime.timedelta(seconds=round(self.left))} left" if self.left is not None else ""
        return ", ".join(filter(None, (step, self.last, left, self.note)))


def standing(point: Trial) -> Standing:
    """A point's, by a look at its files."""
    try:
        return _standing(point)
    except InputError as error:  # a file that is damaged
        return Standing("failed", 0, 0, 0.0, None, str(error))


def _standing(point: Trial) -> Standing:
    folder, metric = Workdir(point.folder), problem_of(point.experiment.task.problem).headline.name
    result, error = folder.result, folder.error
    if result:
        validation = result["splits"].get("validation", {}).get(metric)
        state = "failed" if error else "trained" if "held" in result else "tested"
        note = error["error"] if error else ""
        return Standing(state, result["steps"], result["steps"], result["wall_seconds"], validation, note)
    rows, writer = folder.metrics, folder.writer
    step, seconds = (rows[-1]["step"], rows[-1]["seconds"]) if rows else (0, 0.0)
    steps, last = _steps(folder), _last(rows, metric)
    if error:
        return Standing("failed", step, steps, seconds, None, error["error"], last)
    if not writer:
        return Standing("to do", step, steps, seconds, None, "", last)
    left = seconds / step * (steps - step) if step and steps else None
    return Standing("running", step, steps, seconds, None, f"process {writer['pid']} on {writer['host']}", last, left)


def _steps(folder: Workdir) -> int:
    try:
        return folder.plan["steps"]
    except InputError:  # not that far yet
        return 0


def _last(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Returns the latest validation's metric, or before it the latest training loss."""
    for row in reversed(rows):
        if row.get("split") == "validation" and isinstance(row.get(metric), float):
            return f"validation {metric} {row[metric]:.4f} at step {row['step']}"
    loss = rows[-1].get("loss") if rows else None
    return f"train loss {loss:.4f}" if isinstance(loss, float) else ""


def show(found: Sequence[Trial]) -> None:
    """Prints a row per setting, a line for each point that was begun, failed or queues, and how many do what."""
    standings = {point: standing(point) for point in found}
    queued = slurm.waiting([point.name for point in found], logs_folder(found[0].folder.parent))
    metric = problem_of(found[0].experiment.task.problem).headline.name
    settings = selection.by_setting(found).values()
    rows = [_row(of[0].setting, [(point.experiment.seed, standings[point]) for point in of]) for of in settings]
    console.table("sweep", ("setting", "seeds", f"validation {metric}", "s"), rows)
    for point, one in standings.items():
        message = ", ".join(filter(None, (str(one), queued.get(point.name))))
        if message and (one.state not in ("tested", "trained") or one.note):
            console.console.print(f"{point.name} {one.state}: {message}")
    counts = Counter(one.state for one in standings.values())
    message = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    console.console.print(f"{len(found)} points: {message}")


def _row(setting: str, members: Sequence[tuple[Any, Standing]]) -> tuple[str, str, str, str]:
    by_state = {state: [str(seed) for seed, one in members if one.state == state] for state in STATES}
    seeds = "; ".join(f"{state} {' '.join(of)}" for state, of in by_state.items() if of)
    values = [one.validation for _, one in members if one.validation is not None]
    value = f"{statistics.mean(values):.4f}" if values else ""
    seconds = sum(one.seconds for _, one in members)
    return setting, seeds, value, f"{seconds:.0f}" if seconds else ""
