"""A split's metrics from checkpoints: of a run, of several, as they train, or of weights without training."""

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tljax.checkpoints.checkpointer import Checkpoints
from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import Experiment
from tljax.core.run import prepare
from tljax.errors import InputError
from tljax.evals import overrides
from tljax.evals.evaluator import Evaluation, Result
from tljax.evals.predictions import predictions_of
from tljax.io import storage

_SIGNS = set("*?[")  # of a glob


@dataclass(frozen=True)
class Failed:
    """A run, or a step of it, that could not be evaluated.

    Attributes:
        what: the run, or a step of it.
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

    Args:
        workdir: of the run.
        step: `latest`, `best` (by validation), or a number.
        split: `train`, `validation` or `test`, or a slice in TFDS notation.
        batch_size: examples at a time; the config's by default.
        others: values for keys of the run's config, as `overrides.changed` takes them.

    Returns:
        `split`, `step`, the metrics, and what was evaluated otherwise than the run says.
    """
    evaluation = Evaluation(workdir, split, batch_size, others)
    with evaluation.checkpoints() as checkpoints:
        return dict(evaluation.evaluate(checkpoints, step).metrics)


def evaluate_untrained(experiment: Experiment, split: str = "test", batch_size: int = 0) -> dict[str, Any]:
    """Evaluates a config's model as it starts: pretrained weights with `head.init=pretrained`, trained elsewhere.

    Args:
        experiment: the config's.
        split: `train`, `validation` or `test`, or a slice in TFDS notation.
        batch_size: examples at a time; the config's by default.

    Returns:
        `split`, `step` 0, and the metrics.
    """
    run = prepare(experiment)
    examples = overrides.split_of(run.inputs, split)
    return {"split": split, "step": 0, **predictions_of(run, run.init_state(), examples, split, batch_size).metrics()}


def evaluate_all(
    workdirs: Sequence[str], step: str, evaluation_of: Callable[[str], Evaluation], say: Callable[[str], None]
) -> Iterator[Result | Failed]:
    """Yields the result of each run; a run that fails stops no other.

    Args:
        workdirs: of the runs.
        step: means a checkpoint of each, or `all` of them.
        evaluation_of: of a workdir.
        say: shows a person a line.
    """
    for workdir in workdirs:
        try:
            evaluation = evaluation_of(workdir)  # and with it the programs of one run at a time
            with evaluation.checkpoints() as checkpoints:
                if step != "all":
                    yield evaluation.evaluate(checkpoints, step)
                    continue
                for number in checkpoints.steps or [checkpoints.find_step("latest")]:  # which says what to do
                    attempt = functools.partial(evaluation.evaluate_at, checkpoints, number)
                    yield from _tried(attempt, f"{workdir} step {number}", say)
        except Exception as error:  # another run may well have enough memory, or whatever it was
            yield _failed(workdir, error)


def watch(
    find: Callable[[], list[str]],
    interval: float,
    evaluation_of: Callable[[str], Evaluation],
    say: Callable[[str], None],
) -> Iterator[Result | Failed]:
    """Yields the result of every checkpoint of runs that train meanwhile, until all have ended.

    Args:
        find: gives their workdirs, which need not be there yet.
        interval: seconds from one look to the next.
        evaluation_of: of a workdir.
        say: shows a person a line, once.
    """
    evaluated: set[tuple[str, int]] = set()
    evaluation_of = functools.cache(evaluation_of)

    def evaluate_at(workdir: str, checkpoints: Checkpoints, step: int) -> Result | None:
        return evaluation_of(workdir).evaluate_at(checkpoints, step)

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
                    if (workdir, step) not in evaluated:
                        evaluated.add((workdir, step))
                        attempt = functools.partial(evaluate_at, workdir, checkpoints, step)
                        yield from _tried(attempt, f"{workdir} step {step}", say)
        if ended:
            return
        time.sleep(interval)


def find_workdirs(patterns: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Returns the workdirs that paths and globs mean; what a glob matches beside is named."""
    workdirs: dict[str, None] = {}
    for pattern in patterns:
        for match in _matches(pattern) if is_glob(pattern) else [pattern]:
            if match != pattern and not _holds_run(match):
                say(f"{match}: no run here, skipped")
            else:
                workdirs[match] = None
    return list(workdirs)


def is_glob(pattern: str) -> bool:
    """Returns whether a workdir means several: it has a glob's signs, and is no path that is there."""
    return bool(_SIGNS & set(pattern)) and not storage.locate(pattern).exists()


def _tried(
    attempt: Callable[[], Result | None], checkpoint: str, say: Callable[[str], None]
) -> Iterator[Result | Failed]:
    """Yields what `Evaluation.evaluate_at` gives, or why it does not."""
    try:
        result = attempt()
    except Exception as error:
        yield _failed(checkpoint, error)
        return
    if result is None:
        say(f"{checkpoint}: gone, as the run keeps only some; skipped")
    else:
        yield result


def _failed(checkpoint: str, error: Exception) -> Failed:
    reason = " ".join(str(error).split())
    return Failed(checkpoint, reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}")


def _holds_run(workdir: str) -> bool:
    return (storage.locate(workdir) / "config.json").exists()


def _matches(pattern: str) -> list[str]:
    """Returns what a glob matches on a disk or in a bucket, in order, by the names that it gives."""
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if _SIGNS & set(part))
    root = storage.locate("/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else "."))
    matches = sorted(match.relative_to(root).as_posix() for match in root.glob("/".join(parts[fixed:])))
    return ["/".join([*parts[:fixed], match]) for match in matches]
