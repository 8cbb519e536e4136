"""`predict`: class names and probabilities, or values, for images, rows of tables, or lines of text."""

import argparse
import itertools
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from scipy.special import expit, softmax

from tljax import console
from tljax.checkpoints.workdir import Workdir
from tljax.cli.flags import parse_overrides
from tljax.cli.output_formats import FORMATS, opened
from tljax.cli.predict_inputs import COLUMN_KEYS, Item, Read, Source, sources
from tljax.config import flag_types
from tljax.config.schema import Experiment
from tljax.config.serialization import to_dict, with_values
from tljax.core.run import Run
from tljax.data.loader import length_of, padded
from tljax.distributed import mesh
from tljax.errors import InputError
from tljax.io import storage


def predict(
    workdir: str | os.PathLike,
    files: Sequence[str | os.PathLike],
    step: str = "latest",
    batch_size: int = 0,
    overrides: Mapping[str, Any] = {},
) -> Iterator[tuple[str | int, dict[str, float] | InputError]]:
    """Gives the id of each image, text or row with its probability per class name, most probable first.

    Of several labels each has its own probability; of a regression it is values in their order. What cannot be read
    has the error in place of them. Files are read ahead while the network computes, a few batches and no more.

    Args:
        files: as `predict_inputs.sources` takes them. A text with a tab in it is a pair.
        batch_size: examples at a time; the config's by default.
        overrides: values for the config's `COLUMN_KEYS`, by dotted key: how tables are read.

    Raises:
        InputError: there is no such run or checkpoint, or it cannot be restored; or of `predict_inputs.sources`.
    """
    experiment, resolved = Workdir(workdir).load()
    inputs = sources(files, _overridden(experiment, overrides).task, resolved)
    return ((item.id, answer) for item, answer in _answers_of(workdir, inputs, step, batch_size))


def _answers_of(
    workdir: str | os.PathLike, inputs: Sequence[Source], step: str, batch_size: int
) -> Iterator[tuple[Item, dict[str, float] | InputError]]:
    """Yields what a run's network says of the examples of sources."""
    folder = Workdir(workdir)
    experiment, resolved = folder.load()
    run = Run(experiment, resolved, tokenizer=folder.tokenizer)
    with folder.checkpoints(experiment) as checkpoints:
        number = checkpoints.find_step(step)
        variables = run.evaluation_variables(checkpoints.restore(number, run.abstract_state(number)))
    items = itertools.chain.from_iterable(source.items() for source in inputs)
    return _predict(run, variables, items, batch_size or experiment.task.eval_batch_size)


def _predict(
    run: Run, variables: tuple[Any, Any], items: Iterator[tuple[Item, Read]], most: int
) -> Iterator[tuple[Item, dict[str, float] | InputError]]:
    """Of up to `most` items at a time; where there are fewer in all, of no more rows than that."""
    size, before = 0, iter(())
    for chunk in _chunks(_ahead(items, max(run.experiment.input.workers, 1), 2 * most), most):
        size = size or -(-len(chunk) // run.mesh.size) * run.mesh.size
        logits = _launch(run, variables, [value for _, value in chunk if not isinstance(value, InputError)], size)
        yield from before  # while the device is at this one
        before = _answers(run, chunk, logits)
    yield from before


def _launch(run: Run, variables: tuple[Any, Any], values: Sequence[Any], size: int) -> jax.Array | np.ndarray:
    """The logits of what was read, before they are computed; rows of padding follow."""
    if not values:
        return np.empty((0, len(run.resolved.classes)))
    batch = padded(run.network.input_spec.batch(values, run.experiment.task, run.inputs.tokenizer), size)
    return run.programs.eval_step(size, length_of({"input": batch}))(*variables, mesh.put_batch(batch, run.mesh))


def _answers(run: Run, chunk: Sequence[tuple[Item, Any]], logits: jax.Array | np.ndarray) -> Iterator[tuple[Item, Any]]:
    rows = iter(np.asarray(logits).astype(np.float64))
    for item, value in chunk:
        yield item, value if isinstance(value, InputError) else _named(run, next(rows))


def _named(run: Run, logits: np.ndarray) -> dict[str, float]:
    classes, problem = run.resolved.classes, run.experiment.task.problem
    if problem == "regression":
        return dict(zip(classes, run.inputs.unscaled(logits).tolist(), strict=True))
    odds = softmax(logits) if problem == "single_label" else expit(logits)
    return {classes[i]: float(odds[i]) for i in np.argsort(-odds, kind="stable")}


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


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _overridden(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """Returns the experiment with other columns.

    Raises:
        InputError: a key says nothing of how tables are read.
    """
    for key in overrides:
        if key not in COLUMN_KEYS:
            raise InputError(f"config.{key} is the run's, whatever is predicted; there are: {', '.join(COLUMN_KEYS)}")
    return Experiment.from_config(with_values(to_dict(experiment), overrides))


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = flag_types.Parser("python -m tljax predict", description=__doc__)
    parser.add_argument("--workdir", required=True, type=flag_types.path, help="of a run")
    parser.add_argument("--step", default="latest", help="latest, best (by validation) or a number")
    parser.add_argument("--format", choices=FORMATS, default="text", help="csv and jsonl have every class, in full")
    parser.add_argument("--top", type=flag_types.positive, help="how many classes a line of text has (5)")
    parser.add_argument("--out", type=flag_types.path, help="a file to write, or a bucket's URL; stdout by default")
    parser.add_argument(
        "--batch-size", type=flag_types.count, default=0, help="never changes a prediction, only speed and memory"
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="an image, a folder of them, a table (.csv, .tsv, .jsonl, .parquet, or csv:PATH …) with a row for each"
        " example, or .txt with a text per line; - is stdin, with a text, or an image's path, per line",
    )
    parser.epilog = (
        "--config.task.text=COLUMN, or .image, names what is read of a table (the run's own column by default); "
        "--config.task.separator and .quote say how its cells are told apart. Its column id is kept."
    )
    overrides, options = parse_overrides(parser, arguments)
    if options.top is not None and options.format != "text":
        raise InputError(f"--top={options.top}: of --format=text alone")
    if options.out and not storage.is_remote(place := storage.locate(options.out)) and not place.parent.is_dir():
        raise InputError(f"--out={options.out}: no such folder")
    return options, overrides


def main(arguments: list[str]) -> int:
    options, overrides = _parse(arguments)
    experiment, resolved = Workdir(options.workdir).load()
    inputs = sources(options.files, _overridden(experiment, overrides).task, resolved)
    counts = [source.count for source in inputs]
    total = None if None in counts else sum(counts)
    # On a terminal the answers themselves show how far it is.
    quiet = options.out is None and sys.stdout.isatty()
    progress = (
        nullcontext(lambda done: None) if quiet else console.progress("predict", 0, total, resolved.input_spec.noun())
    )
    answers = _answers_of(options.workdir, inputs, options.step, options.batch_size)
    count, failed = 0, 0
    with console.on_stderr(), progress as report, opened(options.out) as file:
        tabular = any(source.tabular for source in inputs)
        write = FORMATS[options.format](file, experiment.task.problem, resolved.classes, options.top or 5, tabular)
        for item, answer in answers:
            count += 1
            if isinstance(answer, InputError):
                failed += 1
                console.console.print(str(answer))
            else:
                write(item.id, item.place, answer)
            report(count)
    if failed:
        print(f"error: {failed} of {count} could not be read", file=sys.stderr)
    return 1 if failed else 0
