"""`inspect`: what a config would train, freeze and cost, or what its data are like; trains nothing."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tljax.data import health
from tljax.errors import InputError
from tljax.flags import parse_experiment
from tljax.plan import plan, show
from tljax.run import Run, prepare

_SHEET = (12, 8)  # classes, pictures of each


def examine(run: Run, sheet: Path | None = None) -> dict[str, Any]:
    """The state of a run's data (`health.examine`); with `sheet`, draws training images there as the network sees them.

    Raises:
        InputError: the data cannot be used at all, or a sheet is asked of texts.
    """
    found = health.examine(run.inputs.task, run.inputs.splits, run.resolved.preprocessing.size)
    if sheet is not None:
        if run.network.reads == "text":
            raise InputError(f"--sheet draws images, and {run.experiment.task.dataset} holds texts")
        health.contact_sheet(pictures(run), sheet, f"{run.experiment.task.dataset}, as the network sees it in training")
        found["contact_sheet"] = str(sheet)
    return found


def pictures(run: Run) -> dict[str, list[np.ndarray]]:
    """Class name -> training images of it, cut and augmented as in the first epoch; of values, all are together."""
    labels, stream, classes = run.inputs.splits["train"].labels, run.train_input(), run.resolved.classes
    most, each = _SHEET
    if run.experiment.task.problem == "regression":
        places = {", ".join(classes): np.arange(min(len(labels), most * each))}
    else:
        has = labels > 0 if labels.ndim == 2 else labels[:, None] == np.arange(len(classes))
        places = {name: np.flatnonzero(has[:, number])[:each] for number, name in enumerate(classes)}
    return {
        name: list(stream.read(found.tolist(), stream.generators([(0, place) for place in found.tolist()])))
        for name, found in list(places.items())[:most]
        if len(found)
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m tljax inspect", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every leaf that trains")
    parser.add_argument("--lr-find", type=Path, metavar="PNG", help="test learning rates on a copy, and draw the curve")
    parser.add_argument("--data", action="store_true", help="look at the data alone: counts, sizes, duplicates, labels")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw training images as the network sees them")
    experiment, options = parse_experiment(parser, arguments)
    run = prepare(experiment)
    if options.data or options.sheet:
        found = examine(run, options.sheet)
        print(json.dumps(found)) if options.json else health.show(found)
        return
    found = plan(run)
    if options.lr_find:
        from tljax.lr_find import lr_find

        found["lr_find"] = lr_find(run, options.lr_find)
    if options.json:
        print(json.dumps(found))
        return
    show(found)
    if options.lr_find:
        print(f"the loss falls fastest at a learning rate of {found['lr_find']['suggestion']:.2g}: {options.lr_find}")
