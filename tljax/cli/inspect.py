"""`inspect`: what a config would train, freeze and cost, or what its data are like; trains nothing."""

import argparse
import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from tljax import console, streams
from tljax.cli.flags import parse_experiment
from tljax.config import flag_types
from tljax.config.schema import Experiment, TaskConfig
from tljax.core.inputs import Inputs
from tljax.core.resolve import resolve
from tljax.core.run import prepare
from tljax.data import diagnostics, registry, splits
from tljax.data.dataset import Task
from tljax.errors import InputError
from tljax.io import strict_json
from tljax.problems.registry import problem_of
from tljax.profiling import memory
from tljax.profiling.summary import plan, show
from tljax.training import feature_cache

_SHEET = (12, 8)  # classes, pictures of each


def examine(experiment: Experiment, sheet: Path | None = None) -> dict[str, Any]:
    """Examines an experiment's data (`diagnostics.examine`), whatever is to be trained on them.

    Args:
        experiment: whose data.
        sheet: a PNG to draw training images in, as the network sees them.

    Raises:
        InputError: the data cannot be used at all, or a sheet is asked of texts.
    """
    task = _every_example(experiment.task)
    if sheet is None:
        return diagnostics.examine(task, splits.make_splits(task, experiment.task), experiment.task.image_size)
    if task.kind == "text":
        raise InputError(f"--sheet draws images, and {experiment.task.dataset} holds texts")
    inputs = Inputs(experiment, *resolve(experiment, task))
    report = diagnostics.examine(task, inputs.splits, inputs.resolved.preprocessing.size)
    diagnostics.contact_sheet(pictures(inputs), sheet, f"{task.name}, as the network sees it in training")
    return report | {"contact_sheet": str(sheet)}


def _every_example(config: TaskConfig) -> Task:
    """Returns the task, with all examples that cannot be used in `skipped`, though a run would stop at the first."""
    try:
        return registry.load(config)
    except InputError:  # of one example, or of all of the data, and then it comes again
        if config.on_error != "stop":
            raise
        task = registry.load(dataclasses.replace(config, on_error="skip"))
    with console.on_stderr():
        console.console.print(f"{task.name}: a run refuses it with task.on_error=stop; what cannot be used follows")
    return task


def pictures(inputs: Inputs) -> dict[str, list[np.ndarray]]:
    """Returns training images by class name, cut and augmented as in the first epoch; of values, all together."""
    train, classes = inputs.splits["train"], inputs.resolved.classes
    labels, read = train.labels, inputs.reader(train, training=True)
    most, per_class = _SHEET
    if not problem_of(inputs.experiment.task.problem).has_classes:
        places = {", ".join(classes): np.arange(min(len(labels), per_class))}
    else:
        has = labels > 0 if labels.ndim == 2 else labels[:, None] == np.arange(len(classes))
        places = {name: np.flatnonzero(has[:, number])[:per_class] for number, name in enumerate(classes)}
    return {name: list(read(rows.tolist(), [0] * len(rows))) for name, rows in list(places.items())[:most] if len(rows)}


def main(arguments: list[str]) -> None:
    """Runs `tljax inspect` with its arguments."""
    parser = flag_types.Parser("inspect", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every leaf that trains")
    parser.add_argument(
        "--lr-find", type=flag_types.local_path, metavar="PNG", help="test learning rates on a copy, and draw the curve"
    )
    parser.add_argument("--data", action="store_true", help="look at the data alone: counts, sizes, duplicates, labels")
    parser.add_argument(
        "--sheet", type=flag_types.local_path, metavar="PNG", help="draw training images as the network sees them"
    )
    experiment, options = parse_experiment(parser, arguments)
    person = console.on_stderr() if options.json else nullcontext()  # what is said of the data is no JSON
    with streams.results(), person:
        _inspect(experiment, options)
        if not options.json:
            configs = [argument for argument in arguments if argument.startswith("--config")]
            console.next_step("train", *configs, "--workdir=runs/NAME")


def _inspect(experiment: Experiment, options: argparse.Namespace) -> None:
    if options.data or options.sheet:
        report = examine(experiment, options.sheet)
        print(strict_json.dumps(report)) if options.json else diagnostics.show(report)
        return
    run = prepare(experiment)
    run.cached, reason = feature_cache.choice(run)
    report = plan(run) | {"memory": memory.predict(run)}
    if options.lr_find:
        from tljax.training.lr_finder import lr_find

        report["lr_find"] = lr_find(run, options.lr_find)
    if options.json:
        print(strict_json.dumps(report))
        return
    show(report)
    if reason:
        console.console.print(reason)
    memory.show(report["memory"])
    if options.lr_find:
        rate = f"{report['lr_find']['suggestion']:.2g}"
        console.console.print(f"the loss falls fastest at a learning rate of {rate}: {options.lr_find}")
