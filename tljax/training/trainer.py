"""A run from start to end: fine-tunes, validates, saves and resumes; ends with result.json."""

import contextlib
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from tljax import console
from tljax.checkpoints.checkpointer import Checkpoints, named
from tljax.checkpoints.workdir import Workdir, versions
from tljax.config.ranges import no_such
from tljax.config.schema import Experiment
from tljax.config.serialization import to_dict
from tljax.core.run import Run, prepare
from tljax.core.train_step import State
from tljax.data import diagnostics
from tljax.data.dataset import Split
from tljax.distributed import mesh, processes
from tljax.distributed.preemption import PreemptionSignal, Stopped
from tljax.errors import InputError
from tljax.evals.evaluator import metadata, name_of
from tljax.evals.predictions import Predictions
from tljax.io import storage
from tljax.profiling import memory
from tljax.profiling.summary import assumptions, plan, show
from tljax.training import feature_cache
from tljax.training.train_loop import Loop
from tljax.tuning import multipliers


def train(
    experiment: Experiment,
    path: str | os.PathLike,
    preemption: PreemptionSignal | None = None,
    runs: int = 1,
    prepared: Run | None = None,
) -> dict[str, Any]:
    """Runs an experiment in a workdir to its end, from where it stands; returns `result.json`.

    Args:
        preemption: says when to stop before the end.
        runs: how many are going to read the same features; with more of them, keeping these pays sooner.
        prepared: the experiment's, by default made here.

    Raises:
        InputError: anything about the config, data, weights or workdir that keeps it from running, before a step
            is taken; or a loss that is no longer finite, or a disk that takes nothing any more.
        Stopped: it was told to, and has saved.
    """
    folder = Workdir(path)
    # Of `input`, each machine may have its own.
    config = {key: value for key, value in to_dict(experiment).items() if key != "input"}
    processes.agree({"config": config, "versions": versions() | {"tljax's source": processes.code()}})
    run = prepared or prepare(experiment, folder.tokenizer)
    processes.agree({"resolved": to_dict(run.resolved)})
    run.batch_size  # noqa: B018 (which the devices here may not be able to share)
    _check_best(run)
    with contextlib.ExitStack() as stack:
        if not processes.on_first(lambda: bool(folder.result)):
            processes.on_first(lambda: stack.enter_context(folder.locked()))
        tokenizer = run.inputs.tokenizer if run.network.reads == "text" else None
        processes.on_first(lambda: folder.start(experiment, run.resolved, tokenizer))
        result = processes.on_first(lambda: folder.result)
        if result:
            processes.on_first(folder.clear)
            held = f" ({', '.join(result['held'])} is held back by its sweep)" if "held" in result else ""
            console.console.print(f"{folder.path} is finished: nothing to do{held}")
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
    """`train`, in a workdir that is this process's own and has been started.

    Args:
        hold: splits that are not evaluated, which the result names in `held`; `conclude` evaluates them.
        peeked: the result says so: the test split is looked at before it is known whether the run is chosen.
    """
    held = [name for name in hold if name in run.inputs.splits]
    _check_best(run)
    with folder.checkpoints(run.experiment, writer=processes.is_first()) as checkpoints:
        _print_header(run)
        state, seconds, waited = _begin(run, folder, checkpoints, runs)
        loop = Loop(run, folder, checkpoints, preemption, time.monotonic() - seconds, waited)
        with preemption.deferred():
            state = loop.to_the_end(state)
            checkpoints.wait()
            told = processes.anyone(bool(preemption.reason()))
    if told:
        raise Stopped(
            f"stopped at step {state.step} of {run.resolved.steps} by {preemption.reason() or 'another process'}"
        )
    planned, digest = folder.plan, digest_of(run, state)
    if digest != planned["frozen_digest"]:
        raise RuntimeError(f"{folder.path}: frozen leaves changed in training, which tljax must never let happen")
    names = [name for name in run.inputs.splits if name != "train" and name not in held]
    splits = {name: _evaluated(run, folder, checkpoints, loop, state, name) for name in names}
    task = run.inputs.task
    result = {
        "splits": splits,
        "steps": int(state.step),
        "skipped_steps": int(state.skipped),
        "wall_seconds": loop.seconds,
        "input_seconds": round(loop.waited, 3),
        "skipped_examples": len(task.skipped),
        "cost": planned["cost"],
        "frozen_digest_before": planned["frozen_digest"],
        "frozen_digest_after": digest,
    }
    result |= ({"held": held} if held else {}) | ({"peeked": True} if peeked else {})
    processes.on_first(lambda: folder.finish(result))
    _print_result(run, result, folder)
    return result


def conclude(run: Run, folder: Workdir, preemption: PreemptionSignal) -> dict[str, Any]:
    """Evaluates the splits that a finished run has held back, in a workdir that is this process's own.

    `result.json` then says what it would if nothing had been held back.
    """
    before, began = folder.result, time.monotonic()
    run.cached = folder.plan["cached"]
    with folder.checkpoints(run.experiment) as checkpoints:
        state = checkpoints.restore(before["steps"], run.abstract_state(before["steps"]))
        loop = Loop(run, folder, checkpoints, preemption, began - before["wall_seconds"], before["input_seconds"])
        found = {name: _evaluated(run, folder, checkpoints, loop, state, name) for name in before["held"]}
    splits = before["splits"] | found
    result = before | {"splits": {name: splits[name] for name in run.inputs.splits if name in splits}}
    result |= {"wall_seconds": loop.seconds, "input_seconds": round(loop.waited, 3)}
    del result["held"]
    folder.finish(result)
    _print_result(run, result, folder)
    return result


def _evaluated(
    run: Run, folder: Workdir, checkpoints: Checkpoints, loop: Loop, state: State, name: str
) -> dict[str, Any]:
    """The metrics of a split by the last step's State; its predictions are kept."""
    # A run whose last step was taken by another process has validated nothing here.
    found = (loop.validated if name == "validation" else None) or loop.predictions(name, state)
    if processes.is_first():
        _keep(found, folder, checkpoints, int(state.step), name, run.inputs.splits[name])
    return found.metrics()


def _begin(run: Run, folder: Workdir, checkpoints: Checkpoints, runs: int) -> tuple[State, float, float]:
    """The State to go on from, the seconds already spent, and those of them that were spent waiting for input."""
    step, whole, seconds, waited = processes.on_first(lambda: _find(folder, checkpoints))
    if not whole:
        console.console.print(f"{folder.path}: what does not train is damaged there, and comes from the weights anew")
        _keep_base(run, run.init_state(), checkpoints)
    if step:
        console.console.print(f"resuming {folder.path} at step {step} of {run.resolved.steps}")
        run.cached = processes.on_first(lambda: folder.plan["cached"])
        return checkpoints.restore(step, run.abstract_state(step)), seconds, waited
    with ThreadPoolExecutor() as pool:
        # Only here: a run that goes on needs its pretrained weights no more, and may no longer have them.
        pool.submit(run.network.make_ready)  # beside what is traced and compiled for the plan
        run.cached, told = processes.on_first(lambda: feature_cache.choice(run, runs))
        if told:
            console.console.print(told)
        found = plan(run)
    show(found)
    needed = memory.predict(run)
    memory.check(needed)
    state = run.init_state()
    if processes.part()[1] > 1:
        processes.agree({"weights": _digests(state)})
    frozen = digest_of(run, state)
    if processes.is_first():
        folder.save_plan(found | {"peak_bytes": needed["peak"], "frozen_digest": frozen})
    _keep_base(run, state, checkpoints)
    return state, seconds, waited


def _digests(state: State) -> dict[str, str]:
    """Returns the beginning of the SHA-256 of each parameter and stored statistic in this process, by name."""
    leaves = {name: leaf for name, leaf in named(state).items() if name.startswith(("params/", "batch_stats/"))}
    return {name: multipliers.digest({name: leaf})[:12] for name, leaf in mesh.gathered(leaves).items()}


def _find(folder: Workdir, checkpoints: Checkpoints) -> tuple[int, bool, float, float]:
    """The step to go on from, 0 for none; whether its base is whole; and `Workdir.rewind` to it."""
    step = checkpoints.newest()
    return step, not step or checkpoints.base_is_whole(), *folder.rewind(step)


def _keep_base(run: Run, state: State, checkpoints: Checkpoints) -> None:
    """Of a State at its beginning; by the first process, but all have parts of it."""
    leaves = mesh.gathered(base_of(run, state))
    if processes.is_first():
        # Copied, what the step beside which it is stored is given: averages, for they may move in a later phase.
        given = {name: np.array(leaf) for name, leaf in leaves.items() if name.startswith("average/")}
        checkpoints.keep_base(leaves | given)


def base_of(run: Run, state: State) -> dict[str, jax.Array]:
    """The leaves that a run's checkpoints need not hold again."""
    names = run.unmoved()
    return {name: leaf for name, leaf in named(state).items() if name in names}


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


def _keep(found: Predictions, folder: Workdir, checkpoints: Checkpoints, step: int, name: str, split: Split) -> None:
    """Stores predictions of the last step as `evaluate` would, which then need not compute them."""
    file = f"{name_of(step, name)}.parquet"
    facts = metadata(folder.load(), checkpoints, step, name, split)
    storage.persistently(lambda: found.save(folder.evaluations / file, facts), f"{folder.path}/evaluations/{file}")


def digest_of(run: Run, state: State) -> str:
    """SHA-256 of all that is frozen."""
    return multipliers.digest(mesh.gathered(run.frozen_leaves(state)))


def _print_header(run: Run) -> None:
    config, resolved = run.experiment, run.resolved
    weights = config.backbone.weights or "random weights"
    strategy = ", ".join([config.tuning.strategy, *(f"{k}={v}" for k, v in config.tuning.arguments.items())])
    console.console.print(
        f"{resolved.pretrained.backbone} ({weights}) on {config.task.dataset}: {strategy};"
        f" {resolved.steps} steps of {config.task.batch_size} {_unit(run)}"
        f", on {run.mesh.size} {jax.default_backend()} device(s)"
    )
    assumed = assumptions(run)
    if assumed:
        console.console.print(f"nothing beside the weights says all that they expect: {assumed}")
    diagnostics.warn(diagnostics.examine(run.inputs.task, run.inputs.splits))
    cut, lost = resolved.truncated
    if cut:
        message = f"{cut} of {resolved.train_examples} training texts are longer than {_longest(run)}"
        console.console.print(f"{message} and lose {lost} tokens together")


def _longest(run: Run) -> str:
    """Returns the most tokens that a text may have, after what says so."""
    words, most = run.inputs.tokenizer, run.experiment.task.max_tokens
    return f"task.max_tokens={most}" if words.cut(most) == most else f"{words.settings.limited_by}={words.cut(most)}"


def _unit(run: Run) -> str:
    if run.network.reads == "text":
        return f"texts of up to {run.resolved.length} tokens"
    return f"images at {run.resolved.preprocessing.size} px"


def _print_result(run: Run, result: dict[str, Any], folder: Workdir) -> None:
    block, best = result["cost"], run.problem.headline.name
    rows = []
    for split, found in result["splits"].items():
        rows.append((f"{split} {best.replace('_', ' ')}", f"{found[best]:.4f}", _beside(found, best)))
    if "validation" not in result["splits"]:
        rows += _of_training(run, folder)
    share = block["trainable_params"] / (block["trainable_params"] + block["frozen_params"])
    rows += [
        ("trainable parameters", f"{block['trainable_params']:,}", f"{share:.1%} of all"),
        ("step, GFLOP", f"{block['step_flops'] / 1e9:.2f}", f"{block['step_share_of_full']:.2f} × full fine-tuning"),
        (
            "time, s",
            f"{result['wall_seconds']:.0f}",
            f"{result['steps']} steps, {result['input_seconds'] / result['wall_seconds']:.1%} waiting for input",
        ),
    ]
    console.table(
        f"{run.experiment.tuning.strategy} on {run.experiment.task.dataset}: {folder.path}", ("", "value", ""), rows
    )


def _of_training(run: Run, folder: Workdir) -> list[tuple[str, str, str]]:
    """Returns a row with the training metric of the last step that was logged; none if it is not a number."""
    trained = run.problem.train_metric
    line = next((line for line in reversed(folder.metrics) if line.get(trained) is not None), None)
    if line is None:
        return []
    unit = "in standard deviations, " if run.resolved.targets else ""
    return [(f"train {trained.replace('_', ' ')}", f"{line[trained]:.4f}", f"{unit}the batch of step {line['step']}")]


def _beside(found: dict[str, Any], metric: str) -> str:
    interval = console.interval(found, metric)
    return (f"95% {interval}, " if interval else "") + f"{found['count']} examples"
