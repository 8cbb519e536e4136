"""How far the trials of a sweep are, as their workdirs tell: nothing is computed, and nobody is disturbed."""

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
class TrialStatus:
    """How far a trial is.

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
        time_left = f"{datetime.timedelta(seconds=round(self.left))} left" if self.left is not None else ""
        return ", ".join(filter(None, (step, self.last, time_left, self.note)))


def read_status(trial: Trial) -> TrialStatus:
    """Returns how far a trial is, by a look at its files."""
    try:
        return _read_status(trial)
    except InputError as error:  # a file that is damaged
        return TrialStatus("failed", 0, 0, 0.0, None, str(error))


def _read_status(trial: Trial) -> TrialStatus:
    folder, metric = Workdir(trial.folder), problem_of(trial.experiment.task.problem).headline.name
    result, error = folder.result, folder.error
    if result:
        validation = result["splits"].get("validation", {}).get(metric)
        state = "failed" if error else "trained" if "held" in result else "tested"
        note = error["error"] if error else ""
        return TrialStatus(state, result["steps"], result["steps"], result["wall_seconds"], validation, note)
    rows, writer = folder.metrics, folder.writer
    step, seconds = (rows[-1]["step"], rows[-1]["seconds"]) if rows else (0, 0.0)
    steps, last = _steps(folder), _last(rows, metric)
    if error:
        return TrialStatus("failed", step, steps, seconds, None, error["error"], last)
    if not writer:
        return TrialStatus("to do", step, steps, seconds, None, "", last)
    seconds_left = seconds / step * (steps - step) if step and steps else None
    return TrialStatus(
        "running", step, steps, seconds, None, f"process {writer['pid']} on {writer['host']}", last, seconds_left
    )


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


def show(trials: Sequence[Trial]) -> None:
    """Prints a row per setting, a line for each trial that was begun, failed or queues, and how many do what."""
    statuses = {trial: read_status(trial) for trial in trials}
    queued = slurm.waiting([trial.name for trial in trials], logs_folder(trials[0].folder.parent))
    metric = problem_of(trials[0].experiment.task.problem).headline.name
    settings = selection.by_setting(trials).values()
    rows = [
        _row(members[0].setting, [(trial.experiment.seed, statuses[trial]) for trial in members])
        for members in settings
    ]
    console.table("sweep", ("setting", "seeds", f"validation {metric}", "s"), rows)
    for trial, status in statuses.items():
        message = ", ".join(filter(None, (str(status), queued.get(trial.name))))
        if message and (status.state not in ("tested", "trained") or status.note):
            console.console.print(f"{trial.name} {status.state}: {message}")
    counts = Counter(status.state for status in statuses.values())
    message = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    console.console.print(f"{len(trials)} trials: {message}")


def _row(setting: str, members: Sequence[tuple[Any, TrialStatus]]) -> tuple[str, str, str, str]:
    by_state = {state: [str(seed) for seed, status in members if status.state == state] for state in STATES}
    seeds = "; ".join(f"{state} {' '.join(numbers)}" for state, numbers in by_state.items() if numbers)
    values = [status.validation for _, status in members if status.validation is not None]
    value = f"{statistics.mean(values):.4f}" if values else ""
    seconds = sum(status.seconds for _, status in members)
    return setting, seeds, value, f"{seconds:.0f}" if seconds else ""
