"""The plan of a run, before it trains: which groups move, how fast, with what state, and at what cost."""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from tljax import console
from tljax.config.serialization import to_dict
from tljax.core.run import Run
from tljax.profiling.cost import cost
from tljax.tuning.phases import Phase
from tljax.weights.pretrained import provenance


def plan(run: Run) -> dict[str, Any]:
    """Returns what `inspect` prints and `plan.json` holds; the compiled programs are made for it, and kept by the run.

    Returns:
        `backbone`, `weights`, `licence`, `preprocessing`, `classes`, `steps`, `weights_become`
            (`backbone.provenance`) and `cost` (`cost.cost`);
        `input`: how an input is prepared and features are pooled: of each part its `value`, and where it is `from`;
        `cached`: whether the frozen prefix is computed once (`features.choice`);
        `strategy`: its `name` and arguments;
        `phases`: a dict per phase: `strategy` and its `arguments`, `start` and `stop`, and `groups`: a dict per
            group: `group`, the `multipliers` in it, `params`, `trainable_params`, `state_bytes` (of the optimizer),
            `leaves`, `trainable_leaves`.
        `groups`: those of the last phase.
    """
    phases = [
        {
            "strategy": phase.strategy,
            "arguments": dict(phase.arguments),
            "start": phase.start,
            "stop": phase.stop,
            "groups": _groups(run, phase),
        }
        for phase in run.phases
    ]
    tuning = run.experiment.tuning
    return {
        "backbone": run.resolved.pretrained.backbone,
        "weights": run.experiment.backbone.weights,
        "licence": run.resolved.pretrained.licence,
        "preprocessing": to_dict(run.resolved.preprocessing),
        "input": expected(run),
        "classes": list(run.resolved.classes),
        "steps": run.resolved.steps,
        "strategy": {"name": tuning.strategy, **tuning.arguments},
        "phases": phases,
        "cached": run.cached,
        "groups": phases[-1]["groups"],
        "weights_become": provenance(
            run.experiment, run.resolved.pretrained, run.network.backbone, run.network.new, run.network.shapes
        ),
        "cost": run.programs.get_or_compile(("cost", run.cached), lambda: cost(run)),
    }


def expected(run: Run) -> dict[str, dict[str, str]]:
    """Returns how evaluation prepares inputs and pools features: part -> its `value`, and where that is `from`."""
    origins, module = dict(run.resolved.pretrained.origins), run.network.backbone
    task, own = run.experiment.task, run.resolved.pretrained.preprocessing
    values = run.network.input_spec.expected(task, own, run.inputs.tokenizer, origins)
    normalized = ", then divided by its norm" if getattr(module, "normalize", False) else ""
    dense = f", then a dense layer of {width}" if (width := getattr(module, "dense_width", 0)) else ""
    values["pool"] = f"{getattr(module, 'pool', 'as the network does')}{dense}{normalized}"
    return {part: {"value": value, "from": origins.get(part, "")} for part, value in values.items()}


def assumptions(run: Run) -> str:
    """Returns a line of what is assumed of inputs as the weights' own files are silent; empty where nothing is."""
    rows = expected(run).items() if run.experiment.backbone.weights else ()
    return "; ".join(f"{part} {row['value']} ({row['from']})" for part, row in rows if "assumed" in row["from"])


def _groups(run: Run, phase: Phase) -> list[dict[str, Any]]:
    state = run.programs.abstract_state(phase)
    multipliers = flatten_dict(phase.multipliers, sep="/")
    sizes = flatten_dict(jax.tree.map(lambda leaf: leaf.size, state.params), sep="/")
    state_bytes = _state_bytes(state.opt_state)
    rows = []
    for group in run.layout.groups:
        paths = [path for path, name in run.layout.group_of.items() if name == group]
        trainable = [path for path in paths if multipliers[path]]
        rows.append(
            {
                "group": group,
                "multipliers": sorted({multipliers[path] for path in paths}),
                "params": sum(sizes[path] for path in paths),
                "trainable_params": sum(sizes[path] for path in trainable),
                "state_bytes": sum(state_bytes.get(path, 0) for path in paths),
                "leaves": len(paths),
                "trainable_leaves": trainable,
            }
        )
    return rows


def _state_bytes(opt_state: Any) -> dict[str, int]:
    """Returns by parameter path the bytes of the moments that an optimizer keeps for it."""
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        start = next((i for i, key in enumerate(keys) if key in ("backbone", "head")), None)
        if start is not None and jnp.issubdtype(leaf.dtype, jnp.floating):
            name = "/".join(keys[start:])
            sizes[name] = sizes.get(name, 0) + leaf.size * leaf.dtype.itemsize
    return sizes


def show(plan: dict[str, Any]) -> None:
    """Prints a plan as tables."""
    title = f"{plan['backbone']}, {plan['strategy']['name']}"
    if len(plan["phases"]) == 1:
        columns = ("group", "rate ×", "parameters", "trained", "state, MB", "leaves that train")
        console.table(title, columns, [_row(row) for row in plan["groups"]])
    else:
        _show_phases(title, plan["phases"])
    rows = [(part, row["value"], row["from"]) for part, row in plan["input"].items()]
    console.table("input, as evaluation prepares it", ("", "value", "from"), rows)
    console.weights(plan["weights_become"])
    block = {name: value for name, value in plan["cost"].items() if name != "phases"}
    rows = [(name, f"{value:,.0f}" if value > 1 else f"{value:.3f}") for name, value in block.items()]
    console.table("cost of a step", ("", "value"), rows)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    state = f"{row['state_bytes'] / 1e6:.2f}" if row["state_bytes"] else "0"
    return row["group"], _rates(row), f"{row['params']:,}", f"{row['trainable_params']:,}", state, _leaves(row)


def _show_phases(title: str, phases: list[dict[str, Any]]) -> None:
    """Groups down, phases across: what each multiplies the learning rate by."""
    names = [f"{phase['start']} … {phase['stop'] - 1}" for phase in phases]
    rows = [
        (group["group"], *(_rates(phase["groups"][i]) for phase in phases))
        for i, group in enumerate(phases[0]["groups"])
    ]
    console.table(f"{title}: multipliers in steps", ("group", *names), rows)
    rows = [
        (
            name,
            ", ".join([phase["strategy"], *(f"{key}={value}" for key, value in phase["arguments"].items())]),
            f"{sum(group['trainable_params'] for group in phase['groups']):,}",
            f"{sum(group['state_bytes'] for group in phase['groups']) / 1e6:.2f}",
        )
        for name, phase in zip(names, phases, strict=True)
    ]
    console.table("phases", ("steps", "strategy", "trained", "optimizer state, MB"), rows)


def _rates(row: dict[str, Any]) -> str:
    return ", ".join(f"{value:.4g}" for value in row["multipliers"])


def _leaves(row: dict[str, Any]) -> str:
    """Returns how many of a group's leaves train; where not all do, the first names."""
    names = [path.split(f"{row['group']}/", 1)[1] for path in row["trainable_leaves"]]
    count = f"{len(names)} of {row['leaves']}"
    first = ", ".join(names[:2]) + (" …" if len(names) > 2 else "")
    return f"{count}: {first}" if 0 < len(names) < row["leaves"] else count
