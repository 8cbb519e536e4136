"""`train`: fine-tunes, validates, saves and resumes; ends with result.json."""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from tljax import console, sharding
from tljax.backbone import provenance
from tljax.checkpoint import Checkpoints
from tljax.config import Experiment
from tljax.cost import cost
from tljax.data import tasks
from tljax.data.pipeline import Examples, TrainInput
from tljax.errors import InputError
from tljax.evaluate import evaluate_split
from tljax.flags import parse_experiment
from tljax.run import Run, resolve
from tljax.step import State
from tljax.workdir import Workdir


def train(experiment: Experiment, path: Path) -> dict[str, Any]:
    """Runs an experiment in a workdir to its end, from where it stands; returns `result.json`.

    Raises:
        InputError: anything about the config, data, weights or workdir that keeps it from running, before a step
            is taken; or a loss that is no longer finite.
    """
    folder = Workdir(path)
    resolved = resolve(experiment)
    run = Run(experiment, resolved)
    task = tasks.load(experiment.task.dataset)
    stream = run.train_input(task)
    slicings = {split: getattr(experiment.task, split) for split in ("validation", "test")}
    held_out = {split: task.split(slicing) for split, slicing in slicings.items() if slicing}
    folder.start(experiment, resolved)
    if folder.result:
        console.console.print(f"{folder.path} is finished: nothing to do")
        return folder.result
    with folder.checkpoints(writer=True) as checkpoints:
        _print_plan(run)
        state, seconds = _begin(run, folder, checkpoints)
        loop = _Loop(run, folder, checkpoints, stream, held_out.get("validation"), time.monotonic() - seconds)
        state = loop.to_the_end(state)
    found = {"validation": loop.validated} if loop.validated else {}
    splits = {name: found.get(name) or evaluate_split(run, state, split, name) for name, split in held_out.items()}
    result = {"splits": splits, "steps": int(state.step), "wall_seconds": loop.seconds, "cost": cost(run)}
    folder.finish(result)
    _print_result(run, result, folder)
    return result


class _Loop:
    """The steps of one process, and what happens between them.

    Attributes:
        validated: the metrics of the latest validation, at the end those of the last step; None if no step was left.
    """

    def __init__(
        self,
        run: Run,
        folder: Workdir,
        checkpoints: Checkpoints,
        stream: TrainInput,
        validation: Examples | None,
        started: float,
    ):
        self._run, self._folder, self._checkpoints = run, folder, checkpoints
        self._stream, self._validation, self._started = stream, validation, started
        self.validated: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Wall time of the run, earlier processes included."""
        return round(time.monotonic() - self._started, 3)

    def to_the_end(self, state: State) -> State:
        run, config, last = self._run, self._run.experiment, self._run.resolved.steps
        start = int(state.step)
        batches = self._stream.batches(start, last)
        with (
            SummaryWriter(str(self._folder.path), purge_step=start) as board,
            console.progress("train", start, last) as report,
        ):
            for step, batch in enumerate(batches, start + 1):
                state, metrics = run.train_step(state, sharding.put_batch(batch, run.mesh))
                text = ""
                if step % config.log_every == 0 or step == last:
                    text = self._log(board, step, metrics)
                report(step, text)
                if step == last or (config.eval_every and step % config.eval_every == 0):
                    self._validate_and_save(board, step, state)
        return state

    def _log(self, board: SummaryWriter, step: int, metrics: dict[str, jax.Array]) -> str:
        values = {name: float(value) for name, value in metrics.items()}
        values["learning_rate"] = float(self._run.schedule(step - 1))
        if not np.isfinite(values["loss"]):
            kept = self._checkpoints.steps
            raise InputError(
                f"the loss is {values['loss']} at step {step}: lower optim.learning_rate or set optim.clip_norm"
                f" (last checkpoint: {f'step {kept[-1]}' if kept else 'none'})"
            )
        self._write(board, step, "train", values)
        return console.plain({name: values[name] for name in ("loss", "accuracy", "grad_norm")})

    def _validate_and_save(self, board: SummaryWriter, step: int, state: State) -> None:
        if self._validation is not None:
            self.validated = evaluate_split(self._run, state, self._validation, "validation")
            self._write(board, step, "validation", self.validated)
        self._checkpoints.save(state, self.validated)

    def _write(self, board: SummaryWriter, step: int, split: str, values: dict[str, Any]) -> None:
        self._folder.append({"step": step, "split": split, "seconds": self.seconds, **values})
        for name, value in values.items():
            if isinstance(value, float):
                board.add_scalar(f"{split}/{name}", value, step)


def _begin(run: Run, folder: Workdir, checkpoints: Checkpoints) -> tuple[State, float]:
    """The State to go on from, and the seconds already spent."""
    if not checkpoints.steps:
        # Only here: a run that goes on needs its pretrained weights no more, and may no longer have them.
        console.weights(provenance(run.experiment, run.resolved.pretrained, run.backbone))
        return run.init_state(), folder.rewind(0)
    step = checkpoints.resolve("latest")
    console.console.print(f"resuming {folder.path} at step {step} of {run.resolved.steps}")
    return checkpoints.restore(step, run.abstract_state), folder.rewind(step)


def _print_plan(run: Run) -> None:
    config, resolved = run.experiment, run.resolved
    weights = config.backbone.weights or "random weights"
    strategy = ", ".join([config.tuning.strategy, *(f"{k}={v}" for k, v in config.tuning.arguments.items())])
    moving = len(run.layout.groups) - len(run.frozen)
    console.console.print(
        f"{resolved.pretrained.backbone} ({weights}) on {config.task.dataset}: {strategy};"
        f" {moving} of {len(run.layout.groups)} groups train, {resolved.steps} steps of {config.task.batch_size}"
        f" at {run.size} px, on {run.mesh.size} {jax.default_backend()} device(s)"
    )


def _print_result(run: Run, result: dict[str, Any], folder: Workdir) -> None:
    block = result["cost"]
    rows = []
    for split, found in result["splits"].items():
        low, high = found["accuracy_95"]
        rows.append(
            (f"{split} accuracy", f"{found['accuracy']:.4f}", f"95% {low:.4f} … {high:.4f}, {found['count']} images")
        )
    share = block["trainable_params"] / (block["trainable_params"] + block["frozen_params"])
    rows += [
        ("trainable parameters", f"{block['trainable_params']:,}", f"{share:.1%} of all"),
        ("step, GFLOP", f"{block['step_flops'] / 1e9:.2f}", f"{block['step_share_of_full']:.2f} × full fine-tuning"),
        ("time, s", f"{result['wall_seconds']:.0f}", f"{result['steps']} steps"),
    ]
    console.table(
        f"{run.experiment.tuning.strategy} on {run.experiment.task.dataset}: {folder.path}", ("", "value", ""), rows
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m tljax train", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="required: a new folder, or one to resume")
    experiment, options = parse_experiment(parser, arguments)
    train(experiment, options.workdir)
