"""How far the points of a sweep are, as their workdirs tell: nothing is computed, and nobody is disturbed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tljax import console
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
    """A table with a row per point, and how many there are of each state."""
    standings = [standing(point) for point in found]
    rows = [_row(point, one) for point, one in zip(found, standings, strict=True)]
    metric = JUDGED[found[0].experiment.task.problem].best
    console.table("sweep", ("point", "setting", "seed", "state", "step", f"validation {metric}", "s"), rows)
    for point, one in zip(found, standings, strict=True):
        if one.note:
            console.console.print(f"{point.name} {one.state}: {one.note}", markup=False)
    counts = Counter(one.state for one in standings)
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    console.console.print(f"{len(found)} points: {told}")


def _row(point: Point, one: Standing) -> tuple[Any, ...]:
    step = f"{one.step} of {one.steps or '?'}" if one.step else ""
    value = "" if one.validation is None else f"{one.validation:.4f}"
    seconds = f"{one.seconds:.0f}" if one.seconds else ""
    return point.name, point.setting, point.experiment.seed, one.state, step, value, seconds
