"""What happens between the steps of a run: metrics are logged, the state is validated and saved."""

import time
from collections.abc import Iterator
from typing import Any

import jax

from tljax import console
from tljax.checkpoints.checkpointer import Checkpoints
from tljax.checkpoints.workdir import Workdir
from tljax.core.run import Run
from tljax.core.state import TrainState
from tljax.data.loader import TrainInput
from tljax.data.readers import Reader
from tljax.distributed import processes
from tljax.distributed.preemption import PreemptionSignal
from tljax.errors import InputError
from tljax.evals.predictions import Predictions, predictions_of
from tljax.training import feature_cache
from tljax.training.trackers import Trackers
from tljax.tuning.phases import Phase


class Clock:
    """The wall time of a run, and how much of it no batch was ready, earlier processes included.

    Attributes:
        input_seconds: so long, at most, a device has idled.
    """

    def __init__(self, seconds: float, input_seconds: float):
        self._start, self.input_seconds = time.monotonic() - seconds, input_seconds

    @property
    def seconds(self) -> float:
        """Returns the wall time of the run."""
        return round(time.monotonic() - self._start, 3)

    def times(self, prefix: str = "") -> dict[str, float]:
        """Returns both times as the log has them, or as `result.json` has them with the prefix `wall_`."""
        return {f"{prefix}seconds": self.seconds, "input_seconds": round(self.input_seconds, 3)}

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yields batches, and counts the time that each takes to come."""
        while True:
            before = time.monotonic()
            batch = next(batches, None)
            self.input_seconds += time.monotonic() - before
            if batch is None:
                return
            yield batch


class SplitPredictor:
    """Predicts the examples of a run's splits, each read by one reader that keeps what it has decoded."""

    def __init__(self, run: Run, preemption: PreemptionSignal):
        self._run, self._preemption = run, preemption
        self._readers: dict[tuple[str, Phase | None], Reader] = {}

    def predict(self, name: str, state: TrainState) -> Predictions:
        """Returns the predictions of a split, from where the frozen prefix ends if that is cached."""
        run, phase = self._run, self._run.phase_of(int(state.step))
        split, start = run.inputs.splits[name], run.evaluation_prefix_length(phase)
        key = name, phase if start else None
        if key not in self._readers:
            every = run.experiment.eval_every
            passes = run.resolved.steps / every if every and name == "validation" else 1.0
            features = None
            if start:
                halt = self._preemption.raise_if_set
                features = feature_cache.computed(run, state, split, (start,), halt=halt)[start]
            self._readers[key] = features or run.inputs.reader(split, passes)
        return predictions_of(run, state, split, name, read=self._readers[key], start=start)


class MetricsWriter:
    """Writes metrics to `metrics.jsonl` and to trackers; one process does."""

    def __init__(self, folder: Workdir, trackers: Trackers, clock: Clock):
        self._folder, self._trackers, self._clock = folder, trackers, clock

    def write(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        """Writes metrics.

        Args:
            step: the number of steps taken.
            split: of which the metrics are.
            metrics: by name.
        """
        if not processes.is_lead():
            return
        self._folder.append({"step": step, "split": split, **self._clock.times(), **metrics})
        self._trackers.log(step, split, metrics)


class Logger:
    """Logs training metrics every `log_every` steps, and ends a run of which a step was not finite."""

    def __init__(self, run: Run, checkpoints: Checkpoints, writer: MetricsWriter, clock: Clock):
        self._run, self._checkpoints, self._writer, self._clock = run, checkpoints, writer, clock
        self._unread: list[tuple[int, dict[str, jax.Array]]] = []
        self._stream: TrainInput | None = None

    def after_step(self, step: int, metrics: dict[str, jax.Array], stream: TrainInput) -> str:
        """Notes the metrics of a step that may still be computed; returns those to be shown, in a line.

        Args:
            step: the number of steps taken.
            metrics: of the last one.
            stream: where its batch came from.

        Raises:
            InputError: as of `read`.
        """
        self._unread.append((step, metrics))
        self._stream = stream
        if step % self._run.experiment.log_every and step != self._run.resolved.steps:
            return ""
        values = self.read()
        self._writer.write(step, "train", values)
        trained = self._run.problem.train_metric
        shown = ("loss", trained, "grad_norm", *(("skipped_steps",) if values["skipped_steps"] else ()))
        return console.plain({name: values[name] for name in shown} | {"input_seconds": self._clock.input_seconds})

    def read(self) -> dict[str, Any]:
        """Returns the last step's metrics, after a look at those of all steps since the last look.

        Only here, as reading waits for the device; the steps after one that is not finite have moved nothing yet
        that was saved.

        Raises:
            InputError: a step was not finite, and the config does not say to skip it.
        """
        values: dict[str, float] = {}
        for step, metrics in self._unread:
            values = {name: float(value) for name, value in metrics.items()}
            if values["skipped_steps"] and self._run.experiment.optim.on_nonfinite == "stop":
                raise InputError(self._not_finite(step, values))
        self._unread = []
        return values

    def _not_finite(self, step: int, values: dict[str, float]) -> str:
        rows = ", ".join(str(index) for _, index in self._stream.indices(step - 1))
        steps = self._checkpoints.steps
        return (
            f"the loss is {values['loss']} and the gradient's norm {values['grad_norm']} at step {step}, on examples"
            f" {rows} of {self._run.experiment.task.train}: lower optim.learning_rate, set optim.clip_norm, or"
            f" optim.on_nonfinite=skip (last checkpoint: {f'step {steps[-1]}' if steps else 'none'})"
        )


class Validator:
    """Evaluates the validation split every `eval_every` steps, and after the last.

    Attributes:
        predictions: of the latest validation, at the end that of the last step; None if no step was left.
    """

    def __init__(self, run: Run, predictor: SplitPredictor, writer: MetricsWriter):
        self._run, self._predictor, self._writer = run, predictor, writer
        self._latest: tuple[int, dict[str, Any]] = 0, {}
        self.predictions: Predictions | None = None

    def after_step(self, step: int, state: TrainState) -> None:
        """Validates where it is due."""
        every, last = self._run.experiment.eval_every, step == self._run.resolved.steps
        if not (last or (every and step % every == 0)) or "validation" not in self._run.inputs.splits:
            return
        self.predictions = self._predictor.predict("validation", state)
        metrics = self.predictions.metrics(full=False)
        self._latest = step, metrics
        self._writer.write(step, "validation", metrics)

    def metrics_at(self, step: int) -> dict[str, Any] | None:
        """Returns the metrics of the validation after `step`, if there was one."""
        latest, metrics = self._latest
        return metrics if latest == step else None


class Saver:
    """Saves the state every `checkpoint.every` steps, after the last, and where a run is told to stop."""

    def __init__(self, run: Run, folder: Workdir, checkpoints: Checkpoints, logger: Logger, validator: Validator):
        self._run, self._folder, self._checkpoints = run, folder, checkpoints
        self._logger, self._validator = logger, validator

    def is_due(self, step: int) -> bool:
        """Returns whether the config says to save after `step`."""
        every = self._run.experiment.checkpoint.every or self._run.experiment.eval_every
        return bool(every) and step % every == 0

    def after_step(self, step: int, state: TrainState, stops: bool = False) -> None:
        """Saves where it is due.

        Args:
            step: the number of steps taken.
            state: after them.
            stops: whether the run ends here.
        """
        if stops or step == self._run.resolved.steps or self.is_due(step):
            self.save(step, state)

    def save(self, step: int, state: TrainState) -> None:
        """Saves the train state after `step`, and the metrics up to there.

        Raises:
            InputError: a step was not finite: it must not be saved; or the disk takes no more.
        """
        self._logger.read()
        if processes.is_lead():
            self._folder.flush()
        self._checkpoints.save(state, self._run.masks.frozen_names(step), self._validator.metrics_at(step))
