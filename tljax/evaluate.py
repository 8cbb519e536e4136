"""`evaluate`: a split's metrics from a checkpoint, every example counted once."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tljax import console, scores, sharding
from tljax.config import Experiment
from tljax.data.examples import Split
from tljax.data.pipeline import evaluation_batches, length_of
from tljax.data.readers import Reader
from tljax.data.splits import cut
from tljax.errors import InputError
from tljax.flags import parse_experiment
from tljax.run import Run, prepare
from tljax.step import State
from tljax.workdir import Workdir

SPLITS = ("train", "validation", "test")


def evaluate_split(
    run: Run, state: State, split: Split, label: str, batch_size: int = 0, read: Reader | None = None
) -> dict[str, Any]:
    """The metrics (`scores.summarise`) of a whole split; `train` and `evaluate` both come here.

    Args:
        label: its name, for the progress bar.
        batch_size: examples at a time; the config's by default. Rounded up to the devices, padded and masked.
        read: reads its examples; made here by default.
    """
    size = min(batch_size or run.experiment.task.eval_batch_size, len(split))
    size = -(-size // run.mesh.size) * run.mesh.size
    read = read or run.inputs.reader(split)
    params, batch_stats = run.evaluated(state)
    logits = []
    batches = evaluation_batches(split, read, size, run.experiment.input.workers, sharding.part())
    with console.progress(label, 0, -(-len(split) // size), "batches") as report:
        for i, batch in enumerate(batches):
            step = run.eval_step(size, length_of(batch))
            logits.append(step(params, batch_stats, sharding.put_batch(batch["input"], run.mesh)))
            if i > 1:  # two batches in flight keep the device busy; more would only fill its memory
                logits[i - 2] = np.asarray(logits[i - 2])
            report(i + 1)
    found = run.inputs.unscaled(np.concatenate([np.asarray(part) for part in logits])[: len(split)])
    return scores.summarise(run.experiment.task.problem, found, split.labels, full=False)


def split_of(run: Run, split: str) -> Split:
    """The config's `train`, `validation` or `test`, or what `split` itself says in TFDS notation.

    Raises:
        InputError: the config has none for that name.
    """
    if split not in SPLITS:
        return cut(run.inputs.task, split)
    if split not in run.inputs.splits:
        raise InputError(f"this run has no {split} split (config.task.{split} is empty)")
    return run.inputs.splits[split]


def evaluate(workdir: Path, step: str = "latest", split: str = "test", batch_size: int = 0) -> dict[str, Any]:
    """Restores a run's checkpoint and evaluates a split; writes `evaluations/STEP-SPLIT.json`.

    Returns:
        `split`, `step`, and the metrics.
    """
    folder = Workdir(workdir)
    experiment, resolved = folder.load()
    run = Run(experiment, resolved, tokenizer=folder.tokenizer)
    examples = split_of(run, split)
    with folder.checkpoints(experiment) as checkpoints:
        number = checkpoints.resolve(step)
        state = checkpoints.restore(number, run.abstract_state(number))
    found = {"split": split, "step": number, **evaluate_split(run, state, examples, split, batch_size)}
    folder.save_evaluation(f"{number}-{split.replace('/', '_')}", found)
    return found


def evaluate_untrained(experiment: Experiment, split: str = "test", batch_size: int = 0) -> dict[str, Any]:
    """Evaluates a config's model as it starts: pretrained weights with `head.init=pretrained`, trained elsewhere.

    Returns:
        `split`, `step` 0, and the metrics.
    """
    run = prepare(experiment)
    found = evaluate_split(run, run.init_state(), split_of(run, split), split, batch_size)
    return {"split": split, "step": 0, **found}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m tljax evaluate", description=__doc__)
    parser.add_argument("--workdir", type=Path, help="of the run; it knows everything else")
    parser.add_argument("--step", default="latest", help="latest, best (by validation) or a number")
    parser.add_argument("--split", default="test", help="train, validation, test, or a slice such as train[:100]")
    parser.add_argument("--batch-size", type=int, default=0, help="never changes a metric, only speed and memory")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    if any(argument.startswith("--config") for argument in arguments):
        experiment, options = parse_experiment(parser, arguments)
        if options.workdir:
            raise InputError("give --workdir to evaluate a run, or --config to evaluate weights without training")
        found = evaluate_untrained(experiment, options.split, options.batch_size)
    else:
        options = parser.parse_args(arguments)
        if not options.workdir:
            raise InputError("give --workdir=DIR (of a run), or --config=FILE (weights without training)")
        found = evaluate(options.workdir, options.step, options.split, options.batch_size)
    if options.json:
        print(json.dumps(found))
    else:
        title = f"{options.workdir}, step {found['step']}" if options.workdir else "not trained"
        rows = [("examples", found["count"], "")]
        for name, value in found.items():
            if isinstance(value, float):
                low, high = found.get(f"{name}_95", (None, None))
                rows.append((name, f"{value:.4f}", f"{low:.4f} … {high:.4f}" if low is not None else ""))
        console.table(title, (found["split"], "value", "95% interval"), rows)
