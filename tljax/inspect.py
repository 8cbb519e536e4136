"""`inspect`: what a config would train, freeze and cost; trains nothing."""

import argparse
import json
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from tljax import console
from tljax.backbone import provenance
from tljax.config import to_dict
from tljax.cost import cost
from tljax.flags import parse_experiment
from tljax.run import Run, resolve


def plan(run: Run) -> dict[str, Any]:
    """Groups with their multipliers and parameter counts, the leaves that train, preprocessing, and the cost block."""
    multipliers = flatten_dict(run.multipliers, sep="/")
    sizes = flatten_dict(jax.tree.map(lambda leaf: leaf.size, run.abstract_state.params), sep="/")
    groups = []
    for group in run.layout.groups:
        paths = [path for path, found in run.layout.group_of.items() if found == group]
        groups.append(
            {
                "group": group,
                "multipliers": sorted({multipliers[path] for path in paths}),
                "params": sum(sizes[path] for path in paths),
                "trainable_params": sum(sizes[path] for path in paths if multipliers[path]),
                "leaves": len(paths),
                "trainable_leaves": [path for path in paths if multipliers[path]],
            }
        )
    return {
        "backbone": run.resolved.pretrained.backbone,
        "weights": run.experiment.backbone.weights,
        "licence": run.resolved.pretrained.licence,
        "preprocessing": to_dict(run.resolved.preprocessing),
        "classes": list(run.resolved.classes),
        "steps": run.resolved.steps,
        "strategy": {"name": run.experiment.tuning.strategy, **run.experiment.tuning.arguments},
        "groups": groups,
        "weights_become": provenance(run.experiment, run.resolved.pretrained, run.backbone),
        "cost": cost(run),
    }


def _print(found: dict[str, Any]) -> None:
    rows = [
        (
            row["group"],
            ", ".join(f"{value:.4g}" for value in row["multipliers"]),
            f"{row['params']:,}",
            f"{row['trainable_params']:,}",
            _leaves(row),
        )
        for row in found["groups"]
    ]
    title = f"{found['backbone']}, {found['strategy']['name']}"
    console.table(title, ("group", "multipliers", "parameters", "trained", "leaves that train"), rows)
    console.weights(found["weights_become"])
    console.table(
        "cost of a step",
        ("", "value"),
        [(name, f"{value:,.0f}" if value > 1 else f"{value:.3f}") for name, value in found["cost"].items()],
    )


def _leaves(row: dict[str, Any]) -> str:
    """How many of a group's leaves train; their names where it is only some."""
    names = [path.split(f"{row['group']}/", 1)[1] for path in row["trainable_leaves"]]
    count = f"{len(names)} of {row['leaves']}"
    return f"{count}: {', '.join(names)}" if 0 < len(names) < row["leaves"] else count


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m tljax inspect", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every leaf that trains")
    experiment, options = parse_experiment(parser, arguments)
    found = plan(Run(experiment, resolve(experiment)))
    if options.json:
        print(json.dumps(found))
    else:
        _print(found)
