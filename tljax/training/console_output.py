"""What a person sees of a run: what it is about to do, and what came of it."""

from typing import Any

import jax

from tljax import console
from tljax.checkpoints.workdir import Workdir
from tljax.config import defaults
from tljax.core.run import Run
from tljax.data import diagnostics
from tljax.profiling.summary import assumptions
from tljax.training import convergence


def print_header(run: Run) -> None:
    """Prints what is about to be trained, and what is remarkable about its data."""
    config, resolved = run.experiment, run.resolved
    weights = config.backbone.weights or "random weights"
    strategy = ", ".join([config.tuning.strategy, *(f"{k}={v}" for k, v in config.tuning.arguments.items())])
    console.console.print(
        f"{resolved.pretrained.backbone} ({weights}) on {config.task.dataset}: {strategy};"
        f" {resolved.steps} steps of {config.task.batch_size} {run.network.input_spec.describe()}"
        f", on {run.mesh.size} {jax.default_backend()} device(s)"
    )
    for line in split_lines(run):
        console.console.print(line)
    if config.filled_from:
        console.console.print(
            f"not given, and so as {config.filled_from} has it by default: {defaults.described(config)}"
        )
    assumed = assumptions(run)
    if assumed:
        console.console.print(f"nothing beside the weights says all that they expect: {assumed}")
    diagnostics.warn(diagnostics.examine(run.inputs.task, run.inputs.splits))
    truncated, lost = resolved.truncated
    if truncated:
        message = f"{truncated} of {resolved.train_examples} training texts are longer than {_longest(run)}"
        console.console.print(f"{message} and lose {lost} tokens together")


def split_lines(run: Run) -> list[str]:
    """Returns which splits a run reads, and a line for each that it has not: what that means."""
    task = run.experiment.task
    lines = [", ".join(f"{name}: {split.name}" for name, split in run.inputs.splits.items())]
    if not task.validation:
        lines.append(
            "no validation: nothing chooses the best step, or between settings; task.validation names a split, or a"
            " part of one (task.train=train[:80%], task.validation=train[80%:])"
        )
    if not task.test:
        lines.append("no test: the result has no test metrics; task.test names a split, or a part of one")
    return lines


def print_result(run: Run, result: dict[str, Any], folder: Workdir) -> None:
    """Prints a finished run's metrics and cost as a table, and what its training losses say is amiss.

    Args:
        run: the run.
        result: as `result.json` holds it.
        folder: the run's.
    """
    cost, best = result["cost"], run.problem.headline.name
    rows = []
    for split, metrics in result["splits"].items():
        rows.append((f"{split} {best.replace('_', ' ')}", f"{metrics[best]:.4f}", _beside(metrics, best)))
    if "validation" not in result["splits"]:
        rows += training_row(run, folder)
    share = cost["trainable_params"] / (cost["trainable_params"] + cost["frozen_params"])
    rows += [
        ("trainable parameters", f"{cost['trainable_params']:,}", f"{_percent(share)} of all"),
        ("step, GFLOP", _short(cost["step_flops"] / 1e9), f"{_short(cost['step_share_of_full'])} × full fine-tuning"),
        (
            "time, s",
            f"{result['wall_seconds']:.0f}",
            f"{result['steps']} steps, {result['input_seconds'] / result['wall_seconds']:.1%} waiting for input",
        ),
    ]
    place = console.shown_path(folder.path)
    console.table(
        f"{run.experiment.tuning.strategy} on {run.experiment.task.dataset}: {place}", ("", "value", ""), rows
    )
    last_phase = [row for row in folder.metrics if row["step"] > run.phases[-1].start]
    for line in convergence.advice(last_phase, run.experiment):
        console.console.print(f"WARNING: {line}")


def _short(value: float) -> str:
    """Returns a number with two decimals, or as many as it needs to be more than nothing: `24.37`, `0.0011`."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "< 0.1%"


def training_row(run: Run, folder: Workdir) -> list[tuple[str, str, str]]:
    """Returns a row with the training metric of the last step that was logged; none if it is not a number."""
    trained = run.problem.train_metric
    line = next((line for line in reversed(folder.metrics) if line.get(trained) is not None), None)
    if line is None:
        return []
    unit = "in standard deviations, " if run.resolved.targets else ""
    return [(f"train {trained.replace('_', ' ')}", f"{line[trained]:.4f}", f"{unit}the batch of step {line['step']}")]


def _longest(run: Run) -> str:
    """Returns the most tokens that a text may have, after what says so."""
    tokenizer, most = run.inputs.tokenizer, run.experiment.task.max_tokens
    cut = tokenizer.cut(most)
    return f"task.max_tokens={most}" if cut == most else f"{tokenizer.settings.limited_by}={cut}"


def _beside(metrics: dict[str, Any], metric: str) -> str:
    interval = console.interval(metrics, metric)
    return (f"95% {interval}, " if interval else "") + f"{metrics['count']} examples"
