"""How far the points of a sweep are, as their workdirs tell: nothing is computed, and nobody is disturbed."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tljax import console, selection
from tljax.errors import InputError
from tljax.metrics import JUDGED
from tljax.points import Point
from tljax.workdir import Workdir

STATES = ("tested", "trained", "running", "failed", "to do")


@dataclass(frozen=True)
class Standing:
    """How far a point is.

    Attributes:
        state: a name in `STATES`; what was begun and is not running is to do.
        step, steps: the last that was logged, and those of the whole run; 0 where they are not known.
        seconds: of training, so far.
        validation: the metric that the problem is judged by; None before the end.
        note: why it failed, or who is at it.
    """

    state: str
    step: int
    steps: int
    seconds: float
    validation: float | None
    note: str


def standing(point: Point) -> Standing:
    """A point's, by a look at its files."""
    folder = Workdir(point.folder)
    result, error = folder.result, folder.error
    if result:
        metric = JUDGED[point.experiment.task.problem].best
        validation = result["splits"].get("validation", {}).get(metric)
        state = "failed" if error else "trained" if "held" in result else "tested"
        note = error["error"] if error else ""
        return Standing(state, result["steps"], result["steps"], result["wall_seconds"], validation, note)
    lines, writer = folder.metrics, folder.writer
    step, seconds = (lines[-1]["step"], lines[-1]["seconds"]) if lines else (0, 0.0)
    if error:
        return Standing("failed", step, _steps(folder), seconds, None, error["error"])
    if writer:
        return Standing("running", step, _steps(folder), seconds, None, f"process {writer['pid']} on {writer['host']}")
    return Standing("to do", step, _steps(folder), seconds, None, "")


def _steps(folder: Workdir) -> int:
    try:
        return folder.plan["steps"]
    except InputError:  # not that far yet
        return 0


def show(found: Sequence[Point]) -> None:
    """A table with a row per setting, a line for each point that runs or failed, and the number in each state."""
    standings = {point: standing(point) for point in found}
    metric = JUDGED[found[0].experiment.task.problem].best
    settings = selection.by_setting(found).values()
    rows = [_row(of[0].setting, [(point.experiment.seed, standings[point]) for point in of]) for of in settings]
    console.table("sweep", ("setting", "seeds", f"validation {metric}", "s"), rows)
    for point, one in standings.items():
        if one.note:
            step = f"step {one.step} of {one.steps or '?'}, " if one.state == "running" else ""
            console.console.print(f"{point.name} {one.state}: {step}{one.note}")
    counts = Counter(one.state for one in standings.values())
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    console.console.print(f"{len(found)} points: {told}")


def _row(setting: str, members: Sequence[tuple[Any, Standing]]) -> tuple[str, str, str, str]:
    by_state = {state: [str(seed) for seed, one in members if one.state == state] for state in STATES}
    seeds = "; ".join(f"{state} {' '.join(of)}" for state, of in by_state.items() if of)
    values = [one.validation for _, one in members if one.validation is not None]
    value = f"{statistics.mean(values):.4f}" if values else ""
    seconds = sum(one.seconds for _, one in members)
    return setting, seeds, value, f"{seconds:.0f}" if seconds else ""
