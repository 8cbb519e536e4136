"""`predict`: class names and probabilities, or values, for images, or for each line of text files."""

import argparse
import functools
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.special import expit, softmax

from tljax import console, flag_types, sharding
from tljax.data import images
from tljax.data.folders import images_below
from tljax.data.pipeline import length_of, padded
from tljax.data.readers import Texts
from tljax.errors import InputError
from tljax.formats import FORMATS, opened
from tljax.preprocessing import Preprocessing
from tljax.run import Run
from tljax.workdir import Workdir

STDIN = Path("-")

Read = Callable[[], Any]  # gives what the network takes of one image or text, or raises InputError


def predict(
    workdir: str | os.PathLike, files: Sequence[Path], step: str = "latest", batch_size: int = 0
) -> Iterator[tuple[str, dict[str, float] | InputError]]:
    """The name of each image, or each text, with its probability per class name, most probable first.

    Of several labels each has its own probability; of a regression it is values in their order. What cannot be read
    has the error in place of them. Files are read ahead while the network computes, a few batches and no more.

    Args:
        files: of images, or of a text per line, of a pair with a tab between; `-` is stdin, with a path or a text per
            line.
        batch_size: examples at a time; the config's by default.

    Raises:
        InputError: there is no such run or checkpoint, or it cannot be restored.
    """
    folder = Workdir(workdir)
    experiment, resolved = folder.load()
    run = Run(experiment, resolved, tokenizer=folder.tokenizer)
    with folder.checkpoints(experiment) as checkpoints:
        number = checkpoints.resolve(step)
        variables = run.evaluated(checkpoints.restore(number, run.abstract_state(number)))
    items = _lines(files, resolved.pairs) if run.network.reads == "text" else _images(files, resolved.preprocessing)
    return _predict(run, variables, items, batch_size or experiment.task.eval_batch_size)


def _predict(
    run: Run, variables: tuple[Any, Any], items: Iterator[tuple[str, Read]], most: int
) -> Iterator[tuple[str, dict[str, float] | InputError]]:
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
    if run.network.reads == "text":
        config = run.experiment.task
        tokens, _ = run.inputs.tokenizer.encode(values, config.max_tokens)
        texts = Texts(tokens, run.inputs.tokenizer, config.token_multiple, config.max_tokens)
        found = texts(range(len(tokens)))
    else:
        found = np.stack(values)
    batch = padded(found, size)
    return run.eval_step(size, length_of({"input": batch}))(*variables, sharding.put_batch(batch, run.mesh))


def _answers(run: Run, chunk: Sequence[tuple[str, Any]], logits: jax.Array | np.ndarray) -> Iterator[tuple[str, Any]]:
    rows = iter(np.asarray(logits).astype(np.float64))
    for name, value in chunk:
        yield name, value if isinstance(value, InputError) else _named(run, next(rows))


def _named(run: Run, logits: np.ndarray) -> dict[str, float]:
    classes, problem = run.resolved.classes, run.experiment.task.problem
    if problem == "regression":
        return dict(zip(classes, run.inputs.unscaled(logits).tolist(), strict=True))
    odds = softmax(logits) if problem == "single_label" else expit(logits)
    return {classes[i]: float(odds[i]) for i in np.argsort(-odds, kind="stable")}


def _ahead(items: Iterable[tuple[str, Read]], workers: int, most: int) -> Iterator[tuple[str, Any]]:
    """Each name with what was read, or the error, in order; threads are up to `most` items ahead."""

    def tried(read: Read) -> Any:
        try:
            return read()
        except InputError as error:
            return error

    pool, waiting = ThreadPoolExecutor(workers), deque()
    try:
        for name, read in items:
            waiting.append((name, pool.submit(tried, read)))
            if len(waiting) > most:
                first, found = waiting.popleft()
                yield first, found.result()
        for name, found in waiting:
            yield name, found.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _images(files: Sequence[Path], expected: Preprocessing) -> Iterator[tuple[str, Read]]:
    for file in files:
        paths = (Path(os.fsdecode(line)) for _, line in _split(sys.stdin.buffer) if line) if file == STDIN else (file,)
        for path in paths:
            yield _name(path), functools.partial(_view, path, expected)


def _view(path: Path, expected: Preprocessing) -> np.ndarray:
    """As evaluation sees it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unread(path, error) from error
    return images.source_view(data, _name(path), expected, decode="exact", resize=0, crop="centre")


def _lines(files: Sequence[Path], pairs: bool) -> Iterator[tuple[str, Read]]:
    for file in files:
        name = "stdin" if file == STDIN else _name(file)
        try:
            with nullcontext(sys.stdin.buffer) if file == STDIN else file.open("rb") as content:
                for number, line in _split(content):
                    read = functools.partial(_text, line, f"{name}, line {number}", pairs)
                    yield line.decode(errors="backslashreplace"), read
        except OSError as error:
            yield name, functools.partial(_refuse, _unread(file, error))


def _split(content: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line without its end)."""
    for number, line in enumerate(content, 1):
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _text(line: bytes, where: str, pairs: bool) -> str | tuple[str, ...]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
    parts = tuple(text.split("\t"))
    if pairs != (len(parts) == 2):
        raise InputError(f"{where}: needs {'two texts with a tab between' if pairs else 'one text without a tab'}")
    return parts if pairs else text


def _refuse(error: InputError) -> None:
    raise error


def _unread(path: Path, error: OSError) -> InputError:
    reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return InputError(f"{_name(path)}: {reason}")


def _name(path: Path) -> str:
    """The path; what of it is no UTF-8 is written with escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _listed(paths: Sequence[Path], reads: str) -> list[Path]:
    """The files that are meant, with every image below a folder in its place."""
    found = []
    for path in paths:
        if path == STDIN or not path.is_dir():
            found.append(path)
            continue
        if reads == "text":
            raise InputError(f"{path}: a folder, and this run reads texts: name files with a text per line")
        below = images_below(path)
        if not below:
            raise InputError(f"{path}: no image in it")
        found += below
    return found


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = flag_types.Parser("python -m tljax predict", description=__doc__)
    parser.add_argument("--workdir", required=True, type=flag_types.path, help="of a run")
    parser.add_argument("--step", default="latest", help="latest, best (by validation) or a number")
    parser.add_argument("--format", choices=FORMATS, default="text", help="csv and jsonl have every class, in full")
    parser.add_argument("--top", type=flag_types.positive, help="how many classes a line of text has (5)")
    parser.add_argument("--out", type=flag_types.local_path, help="a file to write; stdout by default")
    parser.add_argument(
        "--batch-size", type=flag_types.count, default=0, help="never changes a prediction, only speed and memory"
    )
    parser.add_argument(
        "files",
        type=flag_types.local_path,
        nargs="+",
        metavar="FILE",
        help="of images, folders of them, or a text per line; - is stdin",
    )
    options = parser.parse_args(arguments)
    if options.top is not None and options.format != "text":
        raise InputError(f"--top={options.top}: of --format=text alone")
    if options.out and not options.out.absolute().parent.is_dir():
        raise InputError(f"--out={options.out}: no such folder")
    return options


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    experiment, resolved = Workdir(options.workdir).load()
    reads = "text" if resolved.length else "image"
    files = _listed(options.files, reads)
    total = len(files) if reads == "image" and STDIN not in files else None
    # On a terminal the answers themselves show how far it is.
    quiet = options.out is None and sys.stdout.isatty()
    progress = nullcontext(lambda done: None) if quiet else console.progress("predict", 0, total, f"{reads}s")
    answers = predict(options.workdir, files, options.step, options.batch_size)
    count, failed = 0, 0
    with console.on_stderr(), progress as report, opened(options.out) as file:
        write = FORMATS[options.format](file, experiment.task.problem, resolved.classes, options.top or 5)
        for name, found in answers:
            count += 1
            if isinstance(found, InputError):
                failed += 1
                console.console.print(str(found))
            else:
                write(name, found)
            report(count)
    if failed:
        print(f"error: {failed} of {count} could not be read", file=sys.stderr)
    return 1 if failed else 0
