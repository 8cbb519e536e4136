"""What a run's network says of images, rows of tables, or lines of text: read ahead, a batch at a time."""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import Experiment
from tljax.config.serialization import to_dict, with_values
from tljax.core.run import Run
from tljax.data.loader import chunks, length_of, padded
from tljax.distributed import mesh
from tljax.errors import InputError
from tljax.evals.predict_inputs import COLUMN_KEYS, Item, Read, Source, sources


def predict(
    workdir: str | os.PathLike,
    files: Sequence[str | os.PathLike],
    step: str = "latest",
    batch_size: int = 0,
    overrides: Mapping[str, Any] = {},
) -> Iterator[tuple[str | int, dict[str, float] | InputError]]:
    """Yields the id of each image, text or row with what the network says of it (`Problem.answer`).

    That is the probability of each class by name, the most probable first; of several labels each has its own
    probability; of a regression it is values in their order. What cannot be read has the error in place of them. Files
    are read ahead while the network computes, a few batches and no more.

    Args:
        workdir: of the run.
        files: as `predict_inputs.sources` takes them. A text with a tab in it is a pair.
        step: `latest`, `best` (by validation), or a number.
        batch_size: examples at a time; the config's by default.
        overrides: values for the config's `COLUMN_KEYS`, by dotted key: how tables are read.

    Raises:
        InputError: there is no such run or checkpoint, or it cannot be restored; or of `predict_inputs.sources`.
    """
    experiment, resolved = Workdir(workdir).load()
    inputs = sources(files, with_columns(experiment, overrides).task, resolved)
    return ((item.id, answer) for item, answer in answers_of(workdir, inputs, step, batch_size))


def answers_of(
    workdir: str | os.PathLike, inputs: Sequence[Source], step: str, batch_size: int
) -> Iterator[tuple[Item, dict[str, float] | InputError]]:
    """Returns what a run's network says of the examples of sources, one after another.

    Args:
        workdir: of the run.
        inputs: the sources.
        step: of the checkpoint, as `predict` takes it.
        batch_size: examples at a time; the config's by default.
    """
    run, variables, _ = restored(workdir, step)
    items = itertools.chain.from_iterable(source.items() for source in inputs)
    return answers(run, variables, items, batch_size)


def restored(workdir: str | os.PathLike, step: str) -> tuple[Run, tuple[Any, Any], int]:
    """Returns a run, its params and batch_stats at a checkpoint, and the checkpoint's step.

    Args:
        workdir: of the run.
        step: `latest`, `best` (by validation), or a number.

    Raises:
        InputError: there is no such run or checkpoint, or it cannot be restored.
    """
    folder = Workdir(workdir)
    experiment, resolved = folder.load()
    run = Run(experiment, resolved, tokenizer=folder.tokenizer)
    with folder.checkpoints(experiment) as checkpoints:
        number = checkpoints.find_step(step)
        return run, run.evaluation_variables(checkpoints.restore(number, run.abstract_state(number))), number


def answers(
    run: Run, variables: tuple[Any, Any], items: Iterator[tuple[Item, Read]], batch_size: int = 0
) -> Iterator[tuple[Item, dict[str, float] | InputError]]:
    """Yields what a network says of each item, or the error in place of it.

    Args:
        run: whose network.
        variables: its params and batch_stats.
        items: each with what reads it.
        batch_size: how many at a time; the config's by default. Of fewer in all, there are no more rows than that.
    """
    size, before, most = 0, iter(()), batch_size or run.experiment.task.eval_batch_size
    for chunk in chunks(_ahead(items, max(run.experiment.input.workers, 1), 2 * most), most):
        size = size or -(-len(chunk) // run.mesh.size) * run.mesh.size
        logits = _launch(run, variables, [value for _, value in chunk if not isinstance(value, InputError)], size)
        yield from before  # while the device is at this one
        before = _answers(run, chunk, logits)
    yield from before


def _launch(run: Run, variables: tuple[Any, Any], values: Sequence[Any], size: int) -> jax.Array | np.ndarray:
    """Returns the outputs for what was read, before they are computed; rows of padding follow."""
    if not values:
        return np.empty((0, run.network.outputs))
    batch = padded(run.network.input_spec.batch(values, run.experiment.task, run.inputs.tokenizer), size)
    return run.programs.eval_step(size, length_of({"input": batch}))(*variables, mesh.put_batch(batch, run.mesh))


def _answers(run: Run, chunk: Sequence[tuple[Item, Any]], logits: jax.Array | np.ndarray) -> Iterator[tuple[Item, Any]]:
    rows = iter(np.asarray(logits).astype(np.float64))
    for item, value in chunk:
        if isinstance(value, InputError):
            yield item, value
        else:
            yield item, run.problem.answer(run.inputs.unscaled(next(rows)), run.resolved.classes)


def _ahead(items: Iterable[tuple[Any, Read]], workers: int, most: int) -> Iterator[tuple[Any, Any]]:
    """Yields each item with what was read, or the error, in order; threads are up to `most` items ahead."""

    def tried(read: Read) -> Any:
        try:
            return read()
        except InputError as error:
            return error

    pool, waiting = ThreadPoolExecutor(workers), deque()
    try:
        for item, read in items:
            waiting.append((item, pool.submit(tried, read)))
            if len(waiting) > most:
                first, answer = waiting.popleft()
                yield first, answer.result()
        for item, answer in waiting:
            yield item, answer.result()
    finally:
        pool.shutdown(cancel_futures=True)


def with_columns(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """Returns the experiment with other columns of tables.

    Raises:
        InputError: a key says nothing of how tables are read.
    """
    for key in overrides:
        if key not in COLUMN_KEYS:
            raise InputError(f"config.{key} is the run's, whatever is predicted; there are: {', '.join(COLUMN_KEYS)}")
    return Experiment.from_config(with_values(to_dict(experiment), overrides))
