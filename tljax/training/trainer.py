"""A run from start to end: it begins or goes on, trains, is evaluated, and ends with result.json."""

import contextlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from tljax import console
from tljax.checkpoints.checkpointer import Checkpoints, flatten_state
from tljax.checkpoints.code import versions
from tljax.checkpoints.workdir import Workdir
from tljax.config.ranges import no_such
from tljax.config.schema import Experiment
from tljax.config.serialization import to_dict
from tljax.core.run import Run, prepare
from tljax.core.state import TrainState
from tljax.data.dataset import Split
from tljax.distributed import mesh, processes
from tljax.distributed.preemption import PreemptionSignal, Stopped
from tljax.errors import InputError
from tljax.evals.evaluator import metadata, name_of
from tljax.evals.predictions import Predictions
from tljax.io import storage
from tljax.profiling import memory
from tljax.profiling.summary import plan, show
from tljax.training import feature_cache
from tljax.training.callbacks import Clock, SplitPredictor
from tljax.training.console_output import print_header, print_result
from tljax.training.trackers import Trackers
from tljax.training.train_loop import train_loop
from tljax.tuning import multipliers


def train(
    experiment: Experiment,
    path: str | os.PathLike,
    preemption: PreemptionSignal | None = None,
    runs: int = 1,
    prepared: Run | None = None,
) -> dict[str, Any]:
    """Trains an experiment in a workdir to its end, from where it stands; returns `result.json`.

    Args:
        experiment: the config.
        path: of the workdir.
        preemption: says when to stop before the end.
        runs: how many are going to read the same features; with more of them, keeping these pays sooner.
        prepared: the experiment's run, by default assembled here.

    Raises:
        InputError: anything about the config, data, weights or workdir that keeps it from running, before a step
            is taken; or a loss that is no longer finite, or a disk that takes nothing any more.
        Stopped: it was told to, and has saved.
    """
    folder = Workdir(path)
    experiment = folder.with_own_splits(experiment)
    # Of `input`, each machine may have its own.
    config = {key: value for key, value in to_dict(experiment).items() if key != "input"}
    processes.agree({"config": config, "versions": versions() | {"tljax's source": processes.source_digest()}})
    run = prepared or prepare(experiment, folder.tokenizer)
    processes.agree({"resolved": to_dict(run.resolved)})
    run.batch_size  # noqa: B018 (which the devices here may not be able to share)
    _check_best(run)
    with contextlib.ExitStack() as stack:
        if not processes.on_lead(lambda: bool(folder.result)):
            processes.on_lead(lambda: stack.enter_context(folder.locked()))
        tokenizer = run.inputs.tokenizer
        processes.on_lead(lambda: folder.start(run.experiment, run.resolved, tokenizer))
        result = processes.on_lead(lambda: folder.result)
        if result:
            processes.on_lead(folder.clear)
            note = f" ({', '.join(result['held'])} is held back by its sweep)" if "held" in result else ""
            console.console.print(f"{console.shown_path(folder.path)} is finished: nothing to do{note}")
            return result
        return train_run(run, folder, preemption or PreemptionSignal(), runs)


def train_run(
    run: Run,
    folder: Workdir,
    preemption: PreemptionSignal,
    runs: int = 1,
    hold: Sequence[str] = (),
    peeked: bool = False,
) -> dict[str, Any]:
    """Trains a run as `train` does, in a workdir that is this process's own and has been started.

    Args:
        run, folder: the run and its workdir.
        preemption, runs: as of `train`.
        hold: splits that are not evaluated, which the result names in `held`; `conclude` evaluates them.
        peeked: the result says so: the test split is looked at before it is known whether the run is chosen.
    """
    held_back = [name for name in hold if name in run.inputs.splits]
    _check_best(run)
    trackers = Trackers(run.experiment.log.trackers, folder.path, active=processes.is_lead())
    with folder.checkpoints(run.experiment, writer=processes.is_lead()) as checkpoints:
        print_header(run)
        state, *times = _begin(run, folder, checkpoints, runs)
        clock, predictor = Clock(*times), SplitPredictor(run, preemption)
        with preemption.deferred():
            state, validation = train_loop(run, state, folder, checkpoints, preemption, clock, predictor, trackers)
            checkpoints.wait()
            is_stopped = processes.any_process(bool(preemption.reason()))
    if is_stopped:
        trackers.finish(None)
        raise Stopped(
            f"stopped at step {state.step} of {run.resolved.steps} by {preemption.reason() or 'another process'}"
        )
    planned, digest = folder.plan, digest_of(run, state)
    if digest != planned["frozen_digest"]:
        raise RuntimeError(f"{folder.path}: frozen leaves changed in training, which tljax must never let happen")
    splits = {}
    for name in (name for name in run.inputs.splits if name != "train" and name not in held_back):
        # A run whose last step was taken by another process has validated nothing here.
        predictions = (validation if name == "validation" else None) or predictor.predict(name, state)
        splits[name] = _evaluate(run, folder, checkpoints, predictions, int(state.step), name)
    result = {
        "splits": splits,
        "steps": int(state.step),
        "skipped_steps": int(state.skipped),
        **clock.times("wall_"),
        "skipped_examples": len(run.inputs.task.skipped),
        "cost": planned["cost"],
        "frozen_digest_before": planned["frozen_digest"],
        "frozen_digest_after": digest,
    }
    result |= ({"held": held_back} if held_back else {}) | ({"peeked": True} if peeked else {})
    processes.on_lead(lambda: folder.finish(result))
    trackers.finish(result)
    print_result(run, result, folder)
    return result


def conclude(run: Run, folder: Workdir, preemption: PreemptionSignal) -> dict[str, Any]:
    """Evaluates the splits that a finished run has held back, in a workdir that is this process's own.

    `result.json` then says what it would if nothing had been held back.

    Args:
        run, folder: the run and its workdir.
        preemption: says when to stop.
    """
    before = folder.result
    clock, predictor = Clock(before["wall_seconds"], before["input_seconds"]), SplitPredictor(run, preemption)
    run.cached = folder.plan["cached"]
    splits, step = dict(before["splits"]), before["steps"]
    with folder.checkpoints(run.experiment) as checkpoints:
        state = checkpoints.restore(step, run.abstract_state(step))
        for name in before["held"]:
            splits[name] = _evaluate(run, folder, checkpoints, predictor.predict(name, state), step, name)
    result = before | {"splits": {name: splits[name] for name in run.inputs.splits if name in splits}}
    result |= clock.times("wall_")
    del result["held"]
    folder.finish(result)
    print_result(run, result, folder)
    return result


def _evaluate(
    run: Run, folder: Workdir, checkpoints: Checkpoints, predictions: Predictions, step: int, name: str
) -> dict[str, Any]:
    """Returns the metrics of a split after the last step; its predictions are kept."""
    if processes.is_lead():
        _keep(predictions, folder, checkpoints, step, name, run.inputs.splits[name])
    return predictions.metrics()


def _begin(run: Run, folder: Workdir, checkpoints: Checkpoints, runs: int) -> tuple[TrainState, float, float]:
    """Returns the state to go on from, the seconds already spent, and those of them spent waiting for input."""
    step, base_is_whole, seconds, input_seconds = processes.on_lead(lambda: _resume_point(folder, checkpoints))
    if not base_is_whole:
        place = console.shown_path(folder.path)
        console.console.print(f"{place}: what does not train is damaged there, and comes from the weights anew")
        _keep_base(run, run.init_state(), checkpoints)
    if step:
        console.console.print(f"resuming {console.shown_path(folder.path)} at step {step} of {run.resolved.steps}")
        run.cached = processes.on_lead(lambda: folder.plan["cached"])
        return checkpoints.restore(step, run.abstract_state(step)), seconds, input_seconds
    with ThreadPoolExecutor() as pool:
        # Only here: a run that goes on needs its pretrained weights no more, and may no longer have them.
        pool.submit(run.network.make_ready)  # beside what is traced and compiled for the plan
        run.cached, reason = processes.on_lead(lambda: feature_cache.choice(run, runs))
        if reason:
            console.console.print(reason)
        planned = plan(run)
    show(planned)
    needed = memory.predict(run)
    memory.check(needed)
    state = run.init_state()
    if processes.process_info()[1] > 1:
        processes.agree({"weights": _digests(state)})
    frozen = digest_of(run, state)
    if processes.is_lead():
        folder.save_training_contents(run.inputs.splits["train"].contents)
        folder.save_plan(planned | {"peak_bytes": needed["peak"], "frozen_digest": frozen})
    _keep_base(run, state, checkpoints)
    return state, seconds, input_seconds


def _digests(state: TrainState) -> dict[str, str]:
    """Returns the beginning of the SHA-256 of each parameter and stored statistic in this process, by name."""
    leaves = {name: leaf for name, leaf in flatten_state(state).items() if name.startswith(("params/", "batch_stats/"))}
    return {name: multipliers.digest({name: leaf})[:12] for name, leaf in mesh.gathered(leaves).items()}


def _resume_point(folder: Workdir, checkpoints: Checkpoints) -> tuple[int, bool, float, float]:
    """Returns the step to go on from, 0 for none; whether its base is whole; and `Workdir.rewind` to it."""
    step = checkpoints.newest()
    return step, not step or checkpoints.base_is_whole(), *folder.rewind(step)


def _keep_base(run: Run, state: TrainState, checkpoints: Checkpoints) -> None:
    """Stores what is frozen of a state at its beginning; the lead writes, but all have parts of it."""
    leaves = mesh.gathered(base_of(run, state))
    if processes.is_lead():
        # Copied, what the step beside which it is stored is given: averages, for they may move in a later phase.
        averages = {name: np.array(leaf) for name, leaf in leaves.items() if name.startswith("average/")}
        checkpoints.keep_base(leaves | averages)


def base_of(run: Run, state: TrainState) -> dict[str, jax.Array]:
    """Returns the leaves that a run's checkpoints need not hold again."""
    names = run.masks.frozen_names()
    return {name: leaf for name, leaf in flatten_state(state).items() if name in names}


def _check_best(run: Run) -> None:
    """Raises InputError where no metric has the name by which a checkpoint is to be the best, or it is not a number."""
    best = run.experiment.checkpoint.best
    if best:
        problem, splits = run.problem, run.inputs.splits
        split = splits.get("validation", splits["train"])
        labels = split.labels[: 1000 if problem.has_classes else None]  # of values, one may be constant
        metrics = problem.summarize(np.zeros((len(labels), run.network.outputs)), labels, full=False)
        known = [name for name, value in metrics.items() if isinstance(value, float)]
        if best not in known:
            raise InputError(no_such("checkpoint.best", best, known))
        if not math.isfinite(metrics[best]):
            raise InputError(
                f"checkpoint.best={best} is not a number on {split.name}, where a target is constant:"
                f" take more examples, or another of {', '.join(known)}"
            )


def _keep(
    predictions: Predictions, folder: Workdir, checkpoints: Checkpoints, step: int, name: str, split: Split
) -> None:
    """Stores predictions of the last step as `evaluate` would, which then need not compute them."""
    file = f"{name_of(step, name)}.parquet"
    facts = metadata(folder.load(), checkpoints, step, name, split)
    storage.persistently(
        lambda: predictions.save(folder.evaluations / file, facts), f"{folder.path}/evaluations/{file}"
    )


def digest_of(run: Run, state: TrainState) -> str:
    """Returns the SHA-256 of all that is frozen."""
    return multipliers.digest(mesh.gathered(run.frozen_leaves(state)))
