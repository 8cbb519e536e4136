"""`evaluate`: a split's metrics from checkpoints, every example counted once; of one run, of many, or as they train."""

import argparse
import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tljax import console, streams
from tljax.checkpoints.workdir import Workdir
from tljax.cli.flags import parse_experiment, parse_overrides
from tljax.config import flag_types
from tljax.errors import InputError
from tljax.evals import overrides
from tljax.evals.evaluate import Failed, evaluate_all, evaluate_untrained, find_workdirs, is_glob, watch
from tljax.evals.evaluator import Evaluation, Result
from tljax.io import strict_json


def _line(result: Result) -> str:
    metrics, headline = result.metrics, result.headline
    note = "  (from stored predictions)" if result.stored else ""
    workdir = console.shown_path(result.workdir)
    return f"{workdir} step {metrics['step']} {metrics['split']}  {headline} {metrics[headline]:.4f}{note}"


def _show_one(title: str, metrics: Mapping[str, Any]) -> None:
    rows = [("examples", metrics["count"], "")]
    for name, value in metrics.items():
        if isinstance(value, float):
            rows.append((name, f"{value:.4f}", console.interval(metrics, name)))
    console.table(title, (metrics["split"], "value", "95% interval"), rows)


def _show_several(results: Sequence[Result], others: Mapping[str, Any]) -> None:
    rows = []
    for result in results:
        metrics, name = result.metrics, result.headline
        value = f"{metrics[name]:.4f}", console.interval(metrics, name)
        rows.append((console.shown_path(result.workdir), metrics["step"], metrics["count"], name, *value))
    columns = ("run", "step", "examples", "metric", "value", "95% interval")
    console.table(_title([results[0].metrics["split"]], others), columns, rows)


def _title(parts: Sequence[str], others: Mapping[str, Any]) -> str:
    return ", ".join([*parts, *(f"{key}={value}" for key, value in others.items())])


def _untrained(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    experiment, options = parse_experiment(parser, arguments)
    if options.workdir or options.step or options.watch or options.figures:
        raise InputError(
            "give --workdir (and --step, --watch, --figures) to evaluate a run, or --config=FILE to evaluate weights"
            " without training"
        )
    with console.on_stderr() if options.json else contextlib.nullcontext():
        metrics = evaluate_untrained(experiment, options.split, options.batch_size)
    with streams.results():  # which are kept nowhere else
        if options.json:
            print(strict_json.dumps(metrics))
        else:
            _show_one("not trained", metrics)
            configs = [argument for argument in arguments if argument.startswith("--config")]
            console.next_step("train", *configs, "--workdir=runs/NAME")


def _evaluate_one(options: argparse.Namespace, evaluation: Evaluation, others: Mapping[str, Any]) -> None:
    with evaluation.checkpoints() as checkpoints:
        result = evaluation.evaluate(checkpoints, options.step or "latest")
    workdir = console.shown_path(result.workdir)
    console.console.print(_line(result))
    if options.json:
        print(strict_json.dumps(result.metrics))
    else:
        _show_one(_title([workdir, f"step {result.metrics['step']}"], others), result.metrics)
        console.next_step("predict", f"--workdir={workdir}", "FILE")


def _show_all(options: argparse.Namespace, outcomes: Iterator[Result | Failed], others: Mapping[str, Any]) -> int:
    """Prints results as they come, and all of them in the end; returns the exit status.

    Args:
        options: of the command line.
        outcomes: of runs and checkpoints.
        others: what is evaluated otherwise than the runs say.
    """
    results, failed = [], []
    for outcome in outcomes:
        if isinstance(outcome, Failed):
            failed.append(outcome)
            print(f"{outcome.what}: {outcome.reason}", file=sys.stderr, flush=True)
            continue
        results.append(outcome)
        console.console.print(_line(outcome))
        if options.json:
            print(strict_json.dumps({"workdir": outcome.workdir, **outcome.metrics}), flush=True)
    if results and not options.json:
        _show_several(results, others)
        console.next_step(
            "report", *dict.fromkeys(console.shown_path(result.workdir) for result in results), "--out=report"
        )
    if failed:
        print(f"error: could not be evaluated: {', '.join(failure.what for failure in failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = flag_types.Parser("evaluate", description=__doc__)
    several = "a glob in quotes means several, and it may be given more than once"
    parser.add_argument(
        "--workdir",
        action="append",
        type=flag_types.path,
        default=[],
        help=f"of a run, which knows all else; {several}",
    )
    parser.add_argument("--step", help="latest (by default), best (by validation), all, or a number")
    parser.add_argument("--split", default="test", help="train, validation, test, or a slice such as train[:100]")
    parser.add_argument(
        "--batch-size", type=flag_types.count, default=0, help="never changes a metric, only speed and memory"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else; of several, lines")
    parser.add_argument("--figures", action="store_true", help="draw reliability and confusion, beside the metrics")
    parser.add_argument("--watch", action="store_true", help="evaluate every checkpoint as it comes, until runs end")
    parser.add_argument("--interval", type=flag_types.seconds, default=10.0, help="seconds between looks of --watch")
    parser.epilog = (
        "--config.KEY=VALUE, without --config=FILE, evaluates a run on other data (task.dataset, task.test, …), at "
        "another task.image_size, or in another compute_dtype."
    )
    return parser


def main(arguments: list[str]) -> int | None:
    """Runs the verb with its arguments; returns the exit status."""
    parser = _parser()
    if any(argument.startswith("--config") and not argument.startswith("--config.") for argument in arguments):
        return _untrained(parser, arguments)
    others, options = parse_overrides(parser, arguments)
    overrides.check(others)
    if not options.workdir:
        raise InputError("give --workdir=DIR (of a run), or --config=FILE (weights without training)")
    if options.watch and options.step not in (None, "all"):
        raise InputError(f"--watch evaluates every checkpoint: leave out --step={options.step}")

    def evaluation_of(workdir: str) -> Evaluation:
        return Evaluation(workdir, options.split, options.batch_size, others, options.figures)

    with contextlib.ExitStack() as stack:
        if options.json:
            stack.enter_context(console.on_stderr())
            stack.enter_context(streams.results())
        say = functools.cache(console.console.print)
        if options.watch:
            find = functools.partial(find_workdirs, options.workdir, say)
            return _show_all(options, watch(find, options.interval, evaluation_of, say), others)
        workdirs = find_workdirs(options.workdir, say)
        if not workdirs:
            raise InputError(f"{', '.join(options.workdir)}: no run there")
        if len(options.workdir) == 1 and not is_glob(options.workdir[0]) and options.step != "all":
            return _evaluate_one(options, evaluation_of(workdirs[0]), others)
        for workdir in workdirs:
            Workdir(workdir).load()
        return _show_all(options, evaluate_all(workdirs, options.step or "latest", evaluation_of, say), others)
