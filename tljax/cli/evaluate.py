"""`evaluate`: a split's metrics from checkpoints, every example counted once; of one run, of many, or as they train."""

import argparse
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tljax import console, streams
from tljax.checkpoints.checkpointer import Checkpoints
from tljax.checkpoints.workdir import Workdir
from tljax.cli.flags import parse_experiment, parse_overrides
from tljax.config import flag_types
from tljax.config.schema import Experiment
from tljax.core.run import prepare
from tljax.errors import InputError
from tljax.evals import overrides
from tljax.evals.evaluator import Evaluation, Result
from tljax.evals.predictions import predictions_of
from tljax.io import storage, strict_json
from tljax.problems.base import JUDGED

_SIGNS = set("*?[")  # of a glob


@dataclass(frozen=True)
class Failed:
    """What could not be evaluated.

    Attributes:
        what: the run, or one step of it.
        reason: why.
    """

    what: str
    reason: str


def evaluate(
    workdir: str | os.PathLike,
    step: str = "latest",
    split: str = "test",
    batch_size: int = 0,
    others: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Evaluates a split by a run's checkpoint; writes what `Evaluation` keeps.

    Returns:
        `split`, `step`, the metrics, and what was evaluated otherwise than the run says.
    """
    evaluation = Evaluation(workdir, split, batch_size, others)
    with evaluation.checkpoints() as checkpoints:
        return dict(evaluation.of(checkpoints, step).found)


def evaluate_untrained(experiment: Experiment, split: str = "test", batch_size: int = 0) -> dict[str, Any]:
    """Evaluates a config's model as it starts: pretrained weights with `head.init=pretrained`, trained elsewhere.

    Returns:
        `split`, `step` 0, and the metrics.
    """
    run = prepare(experiment)
    examples = overrides.split_of(run.inputs, split)
    return {"split": split, "step": 0, **predictions_of(run, run.init_state(), examples, split, batch_size).metrics()}


def evaluate_all(
    workdirs: Sequence[str], step: str, evaluation_of: Callable[[str], Evaluation], say: Callable[[str], None]
) -> Iterator[Result | Failed]:
    """The result of each run, by the checkpoint that `step` means of it, or by `all`; one that fails stops no other."""
    for workdir in workdirs:
        try:
            evaluation = evaluation_of(workdir)  # and with it the programs of one run at a time
            with evaluation.checkpoints() as checkpoints:
                if step != "all":
                    yield evaluation.of(checkpoints, step)
                    continue
                for one in checkpoints.steps or [checkpoints.find_step("latest")]:  # which says what to do
                    at = functools.partial(evaluation.at, checkpoints, one)
                    yield from _tried(at, f"{workdir} step {one}", say)
        except Exception as error:  # another run may well have enough memory, or whatever it was
            yield _failed(workdir, error)


def watch(
    find: Callable[[], list[str]],
    interval: float,
    evaluation_of: Callable[[str], Evaluation],
    say: Callable[[str], None],
) -> Iterator[Result | Failed]:
    """The result of every checkpoint of runs that train meanwhile, until all have ended.

    Args:
        find: gives their workdirs, which need not be there yet.
        interval: seconds from one look to the next.
        evaluation_of: of a workdir.
        say: tells a person a line, once.
    """
    seen: set[tuple[str, int]] = set()
    evaluation_of = functools.cache(evaluation_of)

    def at(workdir: str, checkpoints: Checkpoints, step: int) -> Result | None:
        return evaluation_of(workdir).at(checkpoints, step)

    while True:
        workdirs = find()
        ended = bool(workdirs)
        for workdir in workdirs:
            folder = Workdir(workdir)
            if not _holds_run(workdir):
                say(f"waiting for {workdir}: no run there yet")
                ended = False
                continue
            ended &= folder.result is not None  # asked first, so that all that was saved by then is looked at
            with folder.checkpoints(folder.load()[0]) as checkpoints:
                for step in checkpoints.steps:
                    if (workdir, step) not in seen:
                        seen.add((workdir, step))
                        here = functools.partial(at, workdir, checkpoints, step)
                        yield from _tried(here, f"{workdir} step {step}", say)
        if ended:
            return
        time.sleep(interval)


def _tried(at: Callable[[], Result | None], what: str, say: Callable[[str], None]) -> Iterator[Result | Failed]:
    """What `Evaluation.at` gives, or why it does not."""
    try:
        found = at()
    except Exception as error:
        yield _failed(what, error)
        return
    if found is None:
        say(f"{what}: gone, as the run keeps only some; skipped")
    else:
        yield found


def _failed(what: str, error: Exception) -> Failed:
    reason = " ".join(str(error).split())
    return Failed(what, reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}")


def _holds_run(workdir: str) -> bool:
    return (storage.locate(workdir) / "config.json").exists()


def _find(patterns: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """The workdirs that paths and globs mean; what a glob matches beside is named."""
    found: dict[str, None] = {}
    for pattern in patterns:
        for match in _matches(pattern) if _is_glob(pattern) else [pattern]:
            if match != pattern and not _holds_run(match):
                say(f"{match}: no run here, skipped")
            else:
                found[match] = None
    return list(found)


def _matches(pattern: str) -> list[str]:
    """What a glob matches on a disk or in a bucket, in order, by the names that it gives."""
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if _SIGNS & set(part))
    root = storage.locate("/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else "."))
    found = sorted(match.relative_to(root).as_posix() for match in root.glob("/".join(parts[fixed:])))
    return ["/".join([*parts[:fixed], match]) for match in found]


def _is_glob(pattern: str) -> bool:
    return bool(_SIGNS & set(pattern)) and not storage.locate(pattern).exists()


def _line(result: Result) -> str:
    best = JUDGED[result.problem].best
    stored = "  (from stored predictions)" if result.stored else ""
    found = result.found
    return f"{result.workdir} step {found['step']} {found['split']}  {best} {found[best]:.4f}{stored}"


def _show_one(title: str, found: Mapping[str, Any]) -> None:
    rows = [("examples", found["count"], "")]
    for name, value in found.items():
        if isinstance(value, float):
            rows.append((name, f"{value:.4f}", console.interval(found, name)))
    console.table(title, (found["split"], "value", "95% interval"), rows)


def _show_several(results: Sequence[Result], others: Mapping[str, Any]) -> None:
    rows = []
    for result in results:
        found, best = result.found, JUDGED[result.problem].best
        row = result.workdir, found["step"], found["count"], best, f"{found[best]:.4f}", console.interval(found, best)
        rows.append(row)
    columns = ("run", "step", "examples", "metric", "value", "95% interval")
    console.table(_title([results[0].found["split"]], others), columns, rows)


def _title(parts: Sequence[str], others: Mapping[str, Any]) -> str:
    return ", ".join([*parts, *(f"{key}={value}" for key, value in others.items())])


def _untrained(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    experiment, options = parse_experiment(parser, arguments)
    if options.workdir or options.step or options.watch or options.figures:
        raise InputError(
            "give --workdir (and --step, --watch, --figures) to evaluate a run, or --config=FILE to evaluate weights"
            " without training"
        )
    found = evaluate_untrained(experiment, options.split, options.batch_size)
    with streams.results():  # which are kept nowhere else
        if options.json:
            print(strict_json.dumps(found))
        else:
            _show_one("not trained", found)


def _one(options: argparse.Namespace, evaluation: Evaluation, others: Mapping[str, Any]) -> None:
    with evaluation.checkpoints() as checkpoints:
        result = evaluation.of(checkpoints, options.step or "latest")
    console.console.print(_line(result))
    if options.json:
        print(strict_json.dumps(result.found))
    else:
        _show_one(_title([result.workdir, f"step {result.found['step']}"], others), result.found)


def _several(options: argparse.Namespace, found: Iterator[Result | Failed], others: Mapping[str, Any]) -> int:
    """Tells results as they come, and all of them in the end; returns the exit status."""
    results, failed = [], []
    for one in found:
        if isinstance(one, Failed):
            failed.append(one)
            print(f"{one.what}: {one.reason}", file=sys.stderr, flush=True)
            continue
        results.append(one)
        console.console.print(_line(one))
        if options.json:
            print(strict_json.dumps({"workdir": one.workdir, **one.found}), flush=True)
    if results and not options.json:
        _show_several(results, others)
    if failed:
        print(f"error: could not be evaluated: {', '.join(one.what for one in failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = flag_types.Parser("python -m tljax evaluate", description=__doc__)
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
            find = functools.partial(_find, options.workdir, say)
            return _several(options, watch(find, options.interval, evaluation_of, say), others)
        workdirs = _find(options.workdir, say)
        if not workdirs:
            raise InputError(f"{', '.join(options.workdir)}: no run there")
        if len(options.workdir) == 1 and not _is_glob(options.workdir[0]) and options.step != "all":
            return _one(options, evaluation_of(workdirs[0]), others)
        for workdir in workdirs:
            Workdir(workdir).load()
        return _several(options, evaluate_all(workdirs, options.step or "latest", evaluation_of, say), others)
