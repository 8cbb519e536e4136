"""The steps of a run in one process, and what happens between them: logs, validations, saves, phases."""

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax

from tljax import console
from tljax.checkpoints.checkpointer import Checkpoints
from tljax.checkpoints.workdir import Workdir
from tljax.core.run import Run
from tljax.core.train_step import State
from tljax.data.loader import TrainInput, length_of
from tljax.data.readers import Reader
from tljax.distributed import mesh, processes
from tljax.distributed.preemption import PreemptionSignal, Stopped
from tljax.errors import InputError
from tljax.evals.predictions import Predictions, predictions_of
from tljax.io.tensorboard import Events
from tljax.training import feature_cache
from tljax.tuning.phases import Phase

_SMALL = 1 << 20  # bytes of a batch that is taken from memory in less time than a thread needs to hand it over


class Loop:
    """The steps of one process, and what happens between them.

    Attributes:
        waited: seconds in which no batch was ready, earlier processes included: at most so long has a device idled.
        validated: of the latest validation, at the end that of the last step; None if no step was left.
    """

    def __init__(
        self,
        run: Run,
        folder: Workdir,
        checkpoints: Checkpoints,
        preemption: PreemptionSignal,
        started: float,
        waited: float,
    ):
        self._run, self._folder, self._checkpoints, self._preemption = run, folder, checkpoints, preemption
        self._started, self.waited = started, waited
        self._readers: dict[tuple[str, Phase | None], Reader] = {}
        self._unread: list[tuple[int, dict[str, jax.Array]]] = []
        self._all = processes.Agreement(run.mesh)
        self._found: tuple[int, dict[str, Any]] = 0, {}
        self.validated: Predictions | None = None

    @property
    def seconds(self) -> float:
        """Wall time of the run, earlier processes included."""
        return round(time.monotonic() - self._started, 3)

    @property
    def _times(self) -> dict[str, float]:
        return {"seconds": self.seconds, "input_seconds": round(self.waited, 3)}

    def to_the_end(self, state: State) -> State:
        """The State after the last step, or after the one at which it was told to stop; saved either way."""
        run, start, last = self._run, int(state.step), self._run.resolved.steps
        with (
            Events(self._folder.path, start) if processes.is_first() else contextlib.nullcontext() as board,
            console.progress("train", start, last) as report,
        ):
            for phase in run.phases:
                begins = int(state.step)
                if begins >= phase.stop:
                    continue
                self._stream = self._input(phase, state)
                if begins == phase.start > 0:
                    state = run.enter(state, phase)
                    report(begins, _phase_line(phase))
                program = functools.cache(functools.partial(run.train_step, phase))
                batches = self._timed(mesh.put_ahead(self._stream.batches(begins, phase.stop), run.mesh))
                for step, batch in enumerate(batches, begins + 1):
                    state, metrics = program(length_of(batch))(state, batch)
                    self._unread.append((step, metrics))
                    if step == start + 1:
                        self._checkpoints.wait()  # what does not move is stored beside this step: did the disk take it?
                    report(step, self._log(board) if step % run.experiment.log_every == 0 or step == last else "")
                    stops = self._all(bool(self._preemption.reason()))
                    self._after(board, step, state, stops)
                    if stops:
                        return state
        return state

    def _after(self, board: Events | None, step: int, state: State, stops: bool) -> None:
        """What is due after a step: a validation, a save."""
        every, last = self._run.experiment.eval_every, step == self._run.resolved.steps
        if last or (every and step % every == 0):
            self._validate(board, step, state)
        if stops or last or self._saves_at(step):
            self._save(step, state)

    def predictions(self, name: str, state: State) -> Predictions:
        """What the network says of a split, from where the frozen prefix ends if that is cached."""
        run, phase = self._run, self._run.phase_of(int(state.step))
        split, start = run.inputs.splits[name], run.evaluation_start(phase)
        key = name, phase if start else None
        if key not in self._readers:
            every = run.experiment.eval_every
            passes = run.resolved.steps / every if every and name == "validation" else 1.0
            found = (
                feature_cache.computed(run, state, split, (start,), halt=self._preemption.raise_if_set)[start]
                if start
                else None
            )
            self._readers[key] = found or run.inputs.reader(split, passes)
        return predictions_of(run, state, split, name, read=self._readers[key], start=start)

    def _input(self, phase: Phase, state: State) -> TrainInput:
        """The training stream of a phase that is about to begin or to go on from `state`."""
        run, step, split = self._run, int(state.step), self._run.inputs.splits["train"]
        if not run.start(phase):
            return run.train_input()
        self._checkpoints.wait()  # computing features may take longer than a step
        try:
            found = feature_cache.computed(
                run, state, split, feature_cache.stops(run, phase), training=True, halt=self._preemption.raise_if_set
            )[run.start(phase)]
        except Stopped:
            if step and not self._saves_at(step):
                self._save(step, state)
            raise
        stream = run.train_input(found)
        return replace(stream, workers=0) if found.parts[0][0].nbytes * run.batch_size <= _SMALL else stream

    def _saves_at(self, step: int) -> bool:
        every = self._run.experiment.checkpoint.every or self._run.experiment.eval_every
        return bool(every) and step % every == 0

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            before = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - before
            if batch is None:
                return
            yield batch

    def _log(self, board: Events | None) -> str:
        step, values = self._read()
        self._write(board, step, "train", values)
        shown = (
            "loss",
            self._run.problem.train_metric,
            "grad_norm",
            *(("skipped_steps",) if values["skipped_steps"] else ()),
        )
        return console.plain({name: values[name] for name in shown} | {"input_seconds": self.waited})

    def _read(self) -> tuple[int, dict[str, Any]]:
        """The last step's number and metrics, after a look at those of all steps since the last look.

        Only here, as reading waits for the device; the steps after one that is not finite have moved nothing yet
        that was saved.

        Raises:
            InputError: a step was not finite, and the config does not say to skip it.
        """
        unread = [(step, {name: float(value) for name, value in found.items()}) for step, found in self._unread]
        self._unread = []
        for step, values in unread:
            if values["skipped_steps"] and self._run.experiment.optim.on_nonfinite == "stop":
                raise InputError(self._not_finite(step, values))
        return unread[-1]

    def _not_finite(self, step: int, values: dict[str, float]) -> str:
        rows = ", ".join(str(index) for _, index in self._stream.indices(step - 1))
        kept = self._checkpoints.steps
        return (
            f"the loss is {values['loss']} and the gradient's norm {values['grad_norm']} at step {step}, on examples"
            f" {rows} of {self._run.experiment.task.train}: lower optim.learning_rate, set optim.clip_norm, or"
            f" optim.on_nonfinite=skip (last checkpoint: {f'step {kept[-1]}' if kept else 'none'})"
        )

    def _validate(self, board: Events | None, step: int, state: State) -> None:
        if "validation" in self._run.inputs.splits:
            self.validated = self.predictions("validation", state)
            self._found = step, self.validated.metrics(full=False)
            self._write(board, step, "validation", self._found[1])

    def _save(self, step: int, state: State) -> None:
        if self._unread:  # a step that is not finite must not be saved
            self._read()
        if processes.is_first():
            self._folder.flush()
        at, metrics = self._found
        self._checkpoints.save(state, self._run.unmoved(step), metrics if at == step else None)

    def _write(self, board: Events | None, step: int, split: str, values: dict[str, Any]) -> None:
        if not processes.is_first():
            return
        self._folder.append({"step": step, "split": split, **self._times, **values})
        for name, value in values.items():
            if isinstance(value, float):
                board.scalar(f"{split}/{name}", value, step)
        board.flush()


def _phase_line(phase: Phase) -> str:
    arguments = "".join(f", {name}={value}" for name, value in phase.arguments.items())
    return f"{phase.strategy}{arguments} until step {phase.stop}"
