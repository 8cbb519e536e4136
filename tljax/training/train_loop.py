"""The loop over the steps of a run in one process."""

import functools
from dataclasses import replace

from tljax import console
from tljax.checkpoints.checkpointer import Checkpoints
from tljax.checkpoints.workdir import Workdir
from tljax.config.serialization import to_dict
from tljax.core.run import Run
from tljax.core.state import TrainState
from tljax.data.loader import TrainInput, length_of
from tljax.distributed import mesh, processes
from tljax.distributed.preemption import PreemptionSignal, Stopped
from tljax.evals.predictions import Predictions
from tljax.training import feature_cache
from tljax.training.callbacks import Clock, Logger, MetricsWriter, Saver, SplitPredictor, Validator
from tljax.training.trackers import Trackers
from tljax.tuning.phases import Phase

_SMALL = 1 << 20  # bytes of a batch that is taken from memory in less time than a thread needs to hand it over


def train_loop(
    run: Run,
    state: TrainState,
    folder: Workdir,
    checkpoints: Checkpoints,
    preemption: PreemptionSignal,
    clock: Clock,
    predictor: SplitPredictor,
    trackers: Trackers,
) -> tuple[TrainState, Predictions | None]:
    """Trains to the last step, or to the one after which the run is told to stop; the state is saved either way.

    Args:
        run: to train.
        state: to go on from.
        folder, checkpoints: of the run; this process has the folder to itself.
        preemption: says when to stop before the end.
        clock: counts the time that is spent, and waited for input.
        predictor: of the run's splits.
        trackers: get the metrics as they are logged.

    Returns:
        The state, and the predictions of the last validation, if there was one.
    """
    start, last = int(state.step), run.resolved.steps
    stops = processes.Agreement(run.mesh)
    trackers.start(to_dict(run.experiment), start)
    with console.progress("train", start, last) as report:
        writer = MetricsWriter(folder, trackers, clock)
        logger, validator = Logger(run, checkpoints, writer, clock), Validator(run, predictor, writer)
        saver = Saver(run, folder, checkpoints, logger, validator)
        for phase in run.phases:
            first = int(state.step)
            if first >= phase.stop:
                continue
            stream = _train_input(run, phase, state, checkpoints, saver, preemption)
            if first == phase.start > 0:
                state = run.enter_phase(state, phase)
                report(first, _phase_line(phase))
            program = functools.cache(functools.partial(run.programs.train_step, phase, start=run.prefix_length(phase)))
            batches = mesh.put_ahead(stream.batches(first, phase.stop), run.mesh)
            for step, batch in enumerate(clock.timed(batches), first + 1):
                state, metrics = program(length_of(batch))(state, batch)
                if step == start + 1:
                    checkpoints.wait()  # what is frozen is stored beside this step: did the disk take it?
                report(step, logger.after_step(step, metrics, stream))
                is_stopped = stops(bool(preemption.reason()))
                validator.after_step(step, state)
                saver.after_step(step, state, is_stopped)
                if is_stopped:
                    return state, validator.predictions
    return state, validator.predictions


def _train_input(
    run: Run, phase: Phase, state: TrainState, checkpoints: Checkpoints, saver: Saver, preemption: PreemptionSignal
) -> TrainInput:
    """Returns the training stream of a phase that is about to begin or to go on from `state`."""
    step, start, split = int(state.step), run.prefix_length(phase), run.inputs.splits["train"]
    if not start:
        return run.train_input()
    checkpoints.wait()  # computing features may take longer than a step
    stops, halt = feature_cache.stops(run, phase), preemption.raise_if_set
    try:
        features = feature_cache.computed(run, state, split, stops, training=True, halt=halt)[start]
    except Stopped:
        if step and not saver.is_due(step):
            saver.save(step, state)
        raise
    stream = run.train_input(features)
    return replace(stream, workers=0) if features.parts[0][0].nbytes * run.batch_size <= _SMALL else stream


def _phase_line(phase: Phase) -> str:
    arguments = "".join(f", {name}={value}" for name, value in phase.arguments.items())
    return f"{phase.strategy}{arguments} until step {phase.stop}"
