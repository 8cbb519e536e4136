"""Whether a run fits into the memory of its devices, asked before its first step; and what would fit if it does not."""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tljax import console
from tljax.config.schema import Experiment
from tljax.core.run import Run
from tljax.distributed.mesh import shares
from tljax.errors import InputError
from tljax.profiling.cost import evaluation_rows, peak_bytes
from tljax.profiling.device_memory import device_bytes
from tljax.tuning.masks import partition
from tljax.tuning.multipliers import Tree
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
        """The most bytes at a time."""
        return self.fixed + self.growing

    def shared(self, parts: int) -> int:
        """Returns the peak with one in so many of the rows."""
        return self.fixed + -(-self.growing // parts)


def predict(run: Run) -> dict[str, Any]:
    """Returns the memory block of `inspect`, in bytes per device.

    Returns:
        `peak`: of the training or the evaluation step, from the compiled programs, whichever is the higher; `of` says
            which.
        `has`, `free`: what the device has, and what nobody uses of it.
        `ways_out`: where the step does not fit, setting -> peak with it, from the program that it makes, which is
            compiled for it; a linear probe's from evaluation's.
    """
    phase, training = max(((phase, _training(run, phase)) for phase in run.phases), key=lambda pair: pair[1].peak)
    evaluation = _evaluation(run)
    worst = max(training, evaluation, key=lambda need: need.peak)
    has, free = device_bytes()
    report = {"peak": worst.peak, "of": "a training step" if worst is training else "evaluation"}
    alternatives = {}
    if worst.peak > has:
        search = _beside_evaluation if worst is evaluation else _beside_training
        alternatives = search(run, phase, worst, int(_SAFE * has))
    return report | {"has": has, "free": free, "ways_out": alternatives}


def check(report: dict[str, Any]) -> None:
    """Warns when the peak of a `predict` report leaves less than 10% of the free memory.

    Raises:
        InputError: a step needs more than a device has; the ways out are named.
    """
    if report["peak"] > report["has"]:
        raise InputError(_sentence(report))
    if report["peak"] > _SAFE * report["free"]:
        show(report)


def show(report: dict[str, Any]) -> None:
    """Prints a report of `predict`, in a line."""
    little = report["has"] >= report["peak"] > _SAFE * report["free"]
    console.console.print(f"memory: {_sentence(report)}{', which may be too little' if little else ''}")


def _sentence(report: dict[str, Any]) -> str:
    need = f"{report['of']} needs {_gb(report['peak'])} on each device, which has {_gb(report['has'])}"
    if report["peak"] <= report["has"]:
        return f"{need}, {_gb(report['free'])} of it free"
    ways = ", ".join(f"{setting} ({_gb(peak)})" for setting, peak in report["ways_out"].items())
    return f"{need}: use one of {ways}; estimated" if ways else f"{need}, and no single setting makes it fit"


def _training(run: Run, phase: Phase) -> Need:
    fixed = shares(run.programs.abstract_state(phase)) + shares(_trained(run, phase))
    return Need(
        fixed, max(peak_bytes(run.programs.train_step(phase, start=run.prefix_length(phase)).program) - fixed, 0)
    )


def _evaluation(run: Run) -> Need:
    """Returns the need with the whole train state beside it, of the phase in which that is the largest."""
    largest = max(shares(run.programs.abstract_state(phase)) for phase in run.phases)
    state = run.abstract_state()
    variables = shares((state.params, state.batch_stats))
    program = run.programs.eval_step(evaluation_rows(run), start=run.evaluation_prefix_length(run.phases[-1]))
    return Need(largest, max(peak_bytes(program) - variables, 0))


def _beside_training(run: Run, phase: Phase, need: Need, room: int) -> dict[str, int]:
    experiment, rows, parts = run.experiment, run.batch_size, run.experiment.optim.accumulate
    # Gradients of a batch in parts are added up beside those of a part.
    sums = shares(_trained(run, phase)) if parts == 1 else 0

    def in_parts(n: int) -> tuple[str, int]:
        optim = dataclasses.replace(experiment.optim, accumulate=parts * n)
        return f"optim.accumulate={parts * n}", _peak_with(run, phase, optim=optim)

    def smaller(n: int) -> tuple[str, int]:
        task = dataclasses.replace(experiment.task, batch_size=rows // n)
        return f"task.batch_size={rows // n}", _peak_with(run, phase, task=task)

    rows_each = rows // (run.mesh.size * parts)
    peaks = _first(rows_each, in_parts, need, sums, room) | _first(rows_each, smaller, need, 0, room)
    if run.mesh.size > experiment.mesh.fsdp:
        mesh = dataclasses.replace(experiment.mesh, fsdp=run.mesh.size)
        peaks[f"mesh.fsdp={mesh.fsdp}"] = _peak_with(run, phase, mesh=mesh)
    if not experiment.remat:
        peaks["remat=True"] = _peak_with(run, phase, remat=True)
    if experiment.compute_dtype == "float32":
        peaks["compute_dtype=bfloat16"] = _peak_with(run, phase, compute_dtype="bfloat16")
    if experiment.tuning.strategy != "linear_probe":
        # Nothing is kept for a backward pass: what evaluation needs, for as many rows.
        state, row_bytes = run.programs.abstract_state(phase), _evaluation(run).growing / evaluation_rows(run)
        variables = shares((state.params, state.batch_stats))
        peaks["tuning.strategy=linear_probe"] = variables + round(row_bytes * rows)
    return {setting: peak for setting, peak in peaks.items() if peak <= room}


def _first(shares: int, make: Callable[[int], tuple[str, int]], need: Need, beside: int, room: int) -> dict[str, int]:
    """Returns the setting and peak of the fewest parts that fit; what an estimate says will not is not compiled."""
    likely = (n for n in range(2, shares + 1) if shares % n == 0 and need.shared(n) + beside <= room)
    return dict(itertools.islice((way for way in map(make, likely) if way[1] <= room), 1))


def _beside_evaluation(run: Run, phase: Phase, need: Need, room: int) -> dict[str, int]:
    rows_each = evaluation_rows(run) // run.mesh.size
    fewer = next((n for n in range(2, rows_each + 1) if need.shared(n) <= room), 0)
    return {f"task.eval_batch_size={rows_each // fewer * run.mesh.size}": need.shared(fewer)} if fewer else {}


def _peak_with(run: Run, phase: Phase, **changes: Any) -> int:
    """Returns the peak of the training step with other settings, compiled: what they save depends on the network.

    The program is then there for a run that takes the way out.
    """
    experiment: Experiment = dataclasses.replace(run.experiment, **changes)
    other = Run(experiment, run.resolved, run.inputs.splits)
    other.cached = run.cached
    same_phase = other.phase_at(phase.start)
    return peak_bytes(other.programs.train_step(same_phase, start=other.prefix_length(same_phase)).program)


def _trained(run: Run, phase: Phase) -> Tree:
    return partition(run.programs.abstract_state(phase).params, phase.multipliers)[0]


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
