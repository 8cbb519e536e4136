"""`predict`: class names and probabilities, or values, for images, rows of tables, or lines of text."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tljax import console
from tljax.checkpoints.workdir import Workdir
from tljax.cli.flags import parse_overrides
from tljax.cli.output_formats import FORMATS, opened
from tljax.config import flag_types
from tljax.errors import InputError
from tljax.evals.predict import answers_of, with_columns
from tljax.evals.predict_inputs import kind_and_path, sources
from tljax.io import storage
from tljax.problems.registry import problem_of


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = flag_types.Parser("predict", description=__doc__)
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
    _check_not_an_input(options.out, options.files)
    return options, overrides


def _check_not_an_input(out: str | None, files: Sequence[str]) -> None:
    """Raises InputError where what is predicted would be written over what it is predicted of."""
    target = Path(out or "").resolve()
    if not out or not target.is_file():
        return
    for file in files:
        path = Path(kind_and_path(file)[1]).resolve()
        if path == target or (path.is_dir() and path in target.parents):
            raise InputError(f"--out={out}: it is read as an input; give another file")


def _show_next(options: argparse.Namespace) -> None:
    workdir = f"--workdir={console.shown_path(options.workdir)}"
    if options.out:
        console.next_step("evaluate", workdir, "--config.task.dataset=LABELLED", "--split=SPLIT")
    else:
        console.next_step("predict", workdir, *options.files, "--format=csv", "--out=predictions.csv")


def main(arguments: list[str]) -> int:
    """Runs the verb with its arguments; returns the exit status."""
    options, overrides = _parse(arguments)
    experiment, resolved = Workdir(options.workdir).load()
    inputs = sources(options.files, with_columns(experiment, overrides).task, resolved)
    counts = [source.count for source in inputs]
    total = None if None in counts else sum(counts)
    # On a terminal the answers themselves show how far it is.
    quiet = options.out is None and sys.stdout.isatty()
    progress = (
        nullcontext(lambda done: None) if quiet else console.progress("predict", 0, total, resolved.input_spec.noun())
    )
    answers = answers_of(options.workdir, inputs, options.step, options.batch_size)
    count, failed = 0, 0
    with console.on_stderr(), progress as report, opened(options.out) as file:
        tabular = any(source.tabular for source in inputs)
        write = FORMATS[options.format](
            file, problem_of(experiment.task.problem), resolved.classes, options.top or 5, tabular
        )
        for item, answer in answers:
            count += 1
            if isinstance(answer, InputError):
                failed += 1
                console.console.print(str(answer))
            else:
                write(item.id, item.place, answer)
            report(count)
        if not failed:
            _show_next(options)
    if failed:
        print(f"error: {failed} of {count} could not be read", file=sys.stderr)
    return 1 if failed else 0
