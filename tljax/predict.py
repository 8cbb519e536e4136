"""`predict`: class names and probabilities, or values, for image files, or for each line of text files."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from tljax import sharding
from tljax.data import images
from tljax.data.pipeline import length_of, padded
from tljax.data.readers import Texts
from tljax.errors import InputError
from tljax.run import Run
from tljax.workdir import Workdir


def predict(workdir: Path, files: Sequence[Path], step: str = "latest") -> Iterator[tuple[str, dict[str, float]]]:
    """Yields the name of each image, or each text, with its probability per class name, most probable first.

    Of several labels each has its own probability; of a regression it is values in their order.

    Raises:
        InputError: a file is missing or cannot be read; all are read before the model is.
    """
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file")
    folder = Workdir(workdir)
    experiment, resolved = folder.load()
    run = Run(experiment, resolved, tokenizer=folder.tokenizer)
    names, rows = (_texts if run.network.reads == "text" else _images)(run, files)
    with folder.checkpoints(experiment) as checkpoints:
        number = checkpoints.resolve(step)
        params, batch_stats = run.evaluated(checkpoints.restore(number, run.abstract_state(number)))
    size = -(-min(len(names), experiment.task.eval_batch_size) // run.mesh.size) * run.mesh.size
    for start in range(0, len(names), size):
        batch = padded(rows(start, start + size), size)
        program = run.eval_step(size, length_of({"input": batch}))
        logits = program(params, batch_stats, sharding.put_batch(batch, run.mesh))
        for name, row in zip(names[start : start + size], np.asarray(logits).astype(np.float64), strict=False):
            yield name, _named(run, row)


def _images(run: Run, files: Sequence[Path]) -> tuple[list[str], Any]:
    expected = run.resolved.preprocessing
    decoded = (images.decode(file.read_bytes(), str(file), expected.channels) for file in files)
    views = [images.evaluation_view(image, expected) for image in decoded]
    return [str(file) for file in files], lambda start, stop: np.stack(views[start:stop])


def _texts(run: Run, files: Sequence[Path]) -> tuple[list[str], Any]:
    """Each line of each file; of a pair, its two texts with a tab between."""
    config, names, texts = run.experiment.task, [], []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from error
        names += lines
        for number, line in enumerate(lines, 1):
            parts = tuple(line.split("\t"))
            if run.resolved.pairs != (len(parts) == 2):
                wanted = "two texts with a tab between" if run.resolved.pairs else "one text without a tab"
                raise InputError(f"{file}, line {number}: needs {wanted}")
            texts.append(parts if run.resolved.pairs else line)
    tokens, _ = run.inputs.tokenizer.encode(texts, config.max_tokens)
    lengths = Texts(tokens, run.inputs.tokenizer, config.token_multiple, config.max_tokens)
    return names, lambda start, stop: lengths(range(start, min(stop, len(texts))))


def _named(run: Run, logits: np.ndarray) -> dict[str, float]:
    classes, problem = run.resolved.classes, run.experiment.task.problem
    if problem == "regression":
        return dict(zip(classes, run.inputs.unscaled(logits).tolist(), strict=True))
    odds = softmax(logits) if problem == "single_label" else expit(logits)
    return {classes[i]: float(odds[i]) for i in np.argsort(-odds, kind="stable")}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m tljax predict", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of a run")
    parser.add_argument("--step", default="latest", help="latest, best (by validation) or a number")
    parser.add_argument("--top", type=int, default=5, help="how many classes to print")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="of images, or of a text per line")
    options = parser.parse_args(arguments)
    for name, found in predict(options.workdir, options.files, options.step):
        shown = list(found.items())[: options.top]
        print(f"{name}\t" + "\t".join(f"{label} {value:.4f}" for label, value in shown))
