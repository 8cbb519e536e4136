"""`predict`: class names and probabilities for image files."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tljax import sharding
from tljax.data import images
from tljax.errors import InputError
from tljax.run import Run
from tljax.workdir import Workdir


def predict(workdir: Path, files: Sequence[Path], step: str = "latest") -> Iterator[tuple[Path, dict[str, float]]]:
    """Yields each file with its probability per class name, most probable first.

    Raises:
        InputError: a file is missing or not an image; all are read before the model is.
    """
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file")
    folder = Workdir(workdir)
    experiment, resolved = folder.load()
    expected = resolved.preprocessing
    decoded = (images.decode(file.read_bytes(), str(file), expected.channels) for file in files)
    pictures = [images.evaluation_view(image, expected) for image in decoded]
    run = Run(experiment, resolved)
    with folder.checkpoints() as checkpoints:
        number = checkpoints.resolve(step)
        params, batch_stats = run.evaluated(checkpoints.restore(number, run.abstract_state(number)))
    size = -(-min(len(files), experiment.task.eval_batch_size) // run.mesh.size) * run.mesh.size
    program = run.eval_step(size)
    for start in range(0, len(files), size):
        batch = pictures[start : start + size]
        batch += [batch[0]] * (size - len(batch))
        image = sharding.put_batch({"image": np.stack(batch)}, run.mesh)["image"]
        logits = np.asarray(program(params, batch_stats, image)).astype(np.float64)
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        for file, row in zip(files[start : start + size], odds / odds.sum(-1, keepdims=True), strict=False):
            order = np.argsort(-row, kind="stable")
            yield file, {resolved.classes[i]: float(row[i]) for i in order}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m tljax predict", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of a run")
    parser.add_argument("--step", default="latest", help="latest, best (by validation) or a number")
    parser.add_argument("--top", type=int, default=5, help="how many classes to print")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="image files")
    options = parser.parse_args(arguments)
    for file, probabilities in predict(options.workdir, options.files, options.step):
        shown = list(probabilities.items())[: options.top]
        print(f"{file}\t" + "\t".join(f"{name} {probability:.4f}" for name, probability in shown))
