"""Whether a run fits into the memory of its devices, asked before its first step; and what would fit if it does not."""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tljax import console
from tljax.config.schema import Experiment
from tljax.core.run import Run
from tljax.distributed import mesh as distributed_mesh
from tljax.errors import InputError
from tljax.profiling.cost import evaluation_rows, peak_bytes
from tljax.profiling.device_memory import device_bytes
from tljax.tuning import multipliers
from tljax.tuning.phases import Phase

# Of what a device has or has free: beyond it a run is warned, and an estimate, which may be 10% off, is no way out.
_SAFE = 0.9


@dataclass(frozen=True)
class Need:
    """What a step needs on each device, in bytes.

    Attributes:
        fixed: parameters, optimizer state and gradients.
        growing: the batch, and what is kept of it for the backward pass: in proportion to its rows.
    """

    fixed: int
    growing: int

    @property
    def peak(self) -> int:
        return self.fixed + self.growing

    def shared(self, parts: int) -> int:
        """The peak with one in so many of the rows."""
        return self.fixed + -(-self.growing // parts)


def predict(run: Run) -> dict[str, Any]:
    """The memory block of `inspect`, in bytes per device.

    Returns:
        `peak`: of the training or the evaluation step, from the compiled programs, whichever is the higher; `of` says
            which.
        `has`, `free`: what the device has, and what nobody uses of it.
        `ways_out`: where the step does not fit, setting -> peak with it, from the program that it makes, which is
            compiled for it; a linear probe's from evaluation's.
    """
    phase, training = max(((phase, _training(run, phase)) for phase in run.phases), key=lambda found: found[1].peak)
    evaluation = _evaluation(run)
    worst = max(training, evaluation, key=lambda need: need.peak)
    has, free = device_bytes()
    found = {"peak": worst.peak, "of": "a training step" if worst is training else "evaluation"}
    ways = {}
    if worst.peak > has:
        find = _beside_evaluation if worst is evaluation else _beside_training
        ways = find(run, phase, worst, int(_SAFE * has))
    return found | {"has": has, "free": free, "ways_out": ways}


def check(found: dict[str, Any]) -> None:
    """Of what `predict` found: a warning where little would be left.

    Raises:
        InputError: a step needs more than a device has; the ways out are named.
    """
    if found["peak"] > found["has"]:
        raise InputError(_sentence(found))
    if found["peak"] > _SAFE * found["free"]:
        show(found)


def show(found: dict[str, Any]) -> None:
    """Prints what `predict` found, in a line."""
    little = found["has"] >= found["peak"] > _SAFE * found["free"]
    console.console.print(f"memory: {_sentence(found)}{', which may be too little' if little else ''}")


def _sentence(found: dict[str, Any]) -> str:
    told = f"{found['of']} needs {_gb(found['peak'])} on each device, which has {_gb(found['has'])}"
    if found["peak"] <= found["has"]:
        return f"{told}, {_gb(found['free'])} of it free"
    ways = ", ".join(f"{setting} ({_gb(peak)})" for setting, peak in found["ways_out"].items())
    return f"{told}: use one of {ways}; estimated" if ways else f"{told}, and no single setting makes it fit"


def _training(run: Run, phase: Phase) -> Need:
    fixed = distributed_mesh.shares(run.abstract(phase)) + distributed_mesh.shares(_trained(run, phase))
    return Need(fixed, max(peak_bytes(run.train_step(phase).program) - fixed, 0))


def _evaluation(run: Run) -> Need:
    """With the whole State beside it, of the phase in which that is the largest."""
    state, largest = run.abstract_state(), max(distributed_mesh.shares(run.abstract(phase)) for phase in run.phases)
    variables = distributed_mesh.shares((state.params, state.batch_stats))
    program = run.eval_step(evaluation_rows(run), start=run.evaluation_start(run.phases[-1]))
    return Need(largest, max(peak_bytes(program) - variables, 0))


def _beside_training(run: Run, phase: Phase, need: Need, room: int) -> dict[str, int]:
    experiment, rows, parts = run.experiment, run.batch_size, run.experiment.optim.accumulate
    # Gradients of a batch in parts are added up beside those of a part.
    sums = distributed_mesh.shares(_trained(run, phase)) if parts == 1 else 0

    def in_parts(n: int) -> tuple[str, int]:
        optim = dataclasses.replace(experiment.optim, accumulate=parts * n)
        return f"optim.accumulate={parts * n}", _peak_with(run, phase, optim=optim)

    def smaller(n: int) -> tuple[str, int]:
        task = dataclasses.replace(experiment.task, batch_size=rows // n)
        return f"task.batch_size={rows // n}", _peak_with(run, phase, task=task)

    shares = rows // (run.mesh.size * parts)
    found = _first(shares, in_parts, need, sums, room) | _first(shares, smaller, need, 0, room)
    if run.mesh.size > experiment.mesh.fsdp:
        mesh = dataclasses.replace(experiment.mesh, fsdp=run.mesh.size)
        found[f"mesh.fsdp={mesh.fsdp}"] = _peak_with(run, phase, mesh=mesh)
    if not experiment.remat:
        found["remat=True"] = _peak_with(run, phase, remat=True)
    if experiment.compute_dtype == "float32":
        found["compute_dtype=bfloat16"] = _peak_with(run, phase, compute_dtype="bfloat16")
    if experiment.tuning.strategy != "linear_probe":
        # Nothing is kept for a backward pass: what evaluation needs, for as many rows.
        state, one = run.abstract(phase), _evaluation(run).growing / evaluation_rows(run)
        found["tuning.strategy=linear_probe"] = distributed_mesh.shares((state.params, state.batch_stats)) + round(
            one * rows
        )
    return {setting: peak for setting, peak in found.items() if peak <= room}


def _first(shares: int, make: Callable[[int], tuple[str, int]], need: Need, beside: int, room: int) -> dict[str, int]:
    """Setting -> peak of the fewest parts that fit; what an estimate says will not is not compiled."""
    likely = (n for n in range(2, shares + 1) if shares % n == 0 and need.shared(n) + beside <= room)
    return dict(itertools.islice((way for way in map(make, likely) if way[1] <= room), 1))


def _beside_evaluation(run: Run, phase: Phase, need: Need, room: int) -> dict[str, int]:
    shares = evaluation_rows(run) // run.mesh.size
    fewer = next((n for n in range(2, shares + 1) if need.shared(n) <= room), 0)
    return {f"task.eval_batch_size={shares // fewer * run.mesh.size}": need.shared(fewer)} if fewer else {}


def _peak_with(run: Run, phase: Phase, **changes: Any) -> int:
    """Of the training step with other settings: compiled, for what they save depends on network and device.

    The program is then there for a run that takes the way out.
    """
    experiment: Experiment = dataclasses.replace(run.experiment, **changes)
    other = Run(experiment, run.resolved, run.inputs.splits)
    other.cached = run.cached
    return peak_bytes(other.train_step(other.phase_at(phase.start)).program)


def _trained(run: Run, phase: Phase) -> multipliers.Tree:
    return multipliers.partition(run.abstract(phase).params, phase.multipliers)[0]


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
