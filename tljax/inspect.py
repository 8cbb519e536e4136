"""`inspect`: what a config would train, freeze and cost; trains nothing."""

import argparse
import json
from pathlib import Path

from tljax.flags import parse_experiment
from tljax.plan import plan, show
from tljax.run import Run, resolve


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m tljax inspect", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every leaf that trains")
    parser.add_argument("--lr-find", type=Path, metavar="PNG", help="test learning rates on a copy, and draw the curve")
    experiment, options = parse_experiment(parser, arguments)
    run = Run(experiment, resolve(experiment))
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
