"""Runs as a sweep leaves them, written by the project's own writers, without training: what they got right is given."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import Experiment
from tljax.config.serialization import to_dict, with_values
from tljax.core.resolve import Resolved
from tljax.data.preprocessing import Preprocessing
from tljax.evals.predictions import Predictions
from tljax.problems.registry import PROBLEMS
from tljax.reports import report
from tljax.reports.schema import Options, Section
from tljax.weights.catalog import Pretrained

CLASSES = ("cat", "dog", "a_bird & co", "$fish")
COUNTS = {"validation": 40, "test": 200}
TRAINABLE = {"linear_probe": 1_000, "prompt": 50_000, "last_k": 50_000, "lora": 9_000, "full": 200_000}


def experiment(**values: Any) -> Experiment:
    """A config of a tiny task; values by dotted key, with `__` for the dot."""
    base = to_dict(Experiment())
    base["steps"] = 20
    base["task"] |= {"dataset": "shapes", "train": "train[:100]", "validation": "train[100:140]", "test": "test"}
    config = with_values(base, {key.replace("__", "."): value for key, value in values.items()})
    return Experiment.from_config(config)


def hits(accuracy: float, count: int, seed: int = 0) -> np.ndarray:
    """Which of so many examples are right: exactly this part of them, the rest drawn by the seed."""
    right = np.zeros(count, bool)
    right[: round(accuracy * count)] = True
    return np.random.default_rng(seed).permutation(right)


def predictions(right: np.ndarray, problem: str = "single_label", names: str = "test") -> Predictions:
    """Of classes that take turns; a wrong one is taken for the next, and confidence goes up and down."""
    labels = (np.arange(len(right)) % len(CLASSES)).astype(np.int32)
    said = np.where(right, labels, (labels + 1) % len(CLASSES))
    logits = (np.eye(len(CLASSES))[said] * (1 + np.arange(len(right)) % 5)[:, None]).astype(np.float32)
    ids = [f"{names}/{i}" for i in range(len(right))]
    if problem == "regression":
        values = np.linspace(0, 1, len(right), dtype=np.float32)[:, None]
        apart = np.where(right, 0.1, 0.5).astype(np.float32)[:, None]
        return Predictions(PROBLEMS[problem], ("length",), ids, values, values + apart)
    if problem == "multi_label":
        return Predictions(
            PROBLEMS[problem], CLASSES, ids, np.eye(len(CLASSES), dtype=np.float32)[labels], 2 * logits - 1
        )
    return Predictions(PROBLEMS[problem], CLASSES, ids, labels, logits)


@functools.cache
def _metrics(right: bytes, problem: str) -> dict[str, Any]:
    return predictions(np.frombuffer(right, bool), problem).metrics()


def leave(
    folder: Path,
    experiment: Experiment,
    right: Mapping[str, np.ndarray],
    curve: Sequence[float] = (0.3, 0.5, 0.6),
    key: str = "content",
    fingerprint: str = "fingerprint",
    classes: Sequence[str] = CLASSES,
    finished: bool = True,
) -> Path:
    """Leaves a run as `train` does.

    Args:
        right: which examples are right, by split; of a split that is not there nothing is known.
        curve: validation accuracy over the run.
        key: of the splits' content and order.
    """
    problem, total = experiment.task.problem, 100
    if experiment.task.fraction < 1:
        total = round(experiment.task.fraction * total)
    if problem == "regression":
        classes = ("length",)
    row = Pretrained("", "", "vit_tiny_patch16", "", Preprocessing(), "MIT")
    resolved = Resolved(row, Preprocessing(), tuple(classes), experiment.steps, total, fingerprint)
    here = Workdir(folder)
    here.path.mkdir(parents=True)
    here.start(experiment, resolved)
    for place, accuracy in enumerate(curve, 1):
        step = experiment.steps * place // len(curve)
        times = {"step": step, "seconds": float(place), "input_seconds": 0.0}
        here.append(times | {"split": "train", "loss": 1.0 / place})
        here.append(times | {"split": "validation", "accuracy": accuracy})
    here.flush()
    if not finished:
        return folder
    splits = {}
    for split, right_of_split in right.items():
        stored = predictions(right_of_split, problem, split)
        stored.save(here.evaluations / f"{experiment.steps}-{split}.parquet", {"data": f"{key} {split}"})
        splits[split] = _metrics(right_of_split.tobytes(), problem)
    trainable = TRAINABLE[experiment.tuning.strategy]
    cost = {"trainable_params": trainable, "frozen_params": 200_000 - trainable}
    cost |= {"step_flops": 1e9 * (1 + trainable / 1e5), "step_share_of_full": (1 + trainable / 1e5) / 3}
    result = {"splits": splits, "steps": experiment.steps, "skipped_steps": 0, "cost": cost}
    here.finish(result | {"wall_seconds": 10.0 + experiment.seed + trainable / 1e4, "input_seconds": 0.5})
    return folder


def sweep(
    root: Path,
    accuracies: Mapping[str, Sequence[float]],
    rates: Sequence[float] = (1e-3, 1e-2),
    seeds: Sequence[int] = (0, 1, 2),
    **values: Any,
) -> Path:
    """Of each strategy two rates, of which the second is the better on validation, and is tested alone.

    Args:
        accuracies: of each strategy that of each seed on the test split.
    """
    for strategy, metrics in accuracies.items():
        for place, rate in enumerate(rates):
            for seed, accuracy in zip(seeds, metrics, strict=True):
                config = experiment(tuning__strategy=strategy, optim__learning_rate=rate, seed=seed, **values)
                right = {"validation": hits(0.5 + 0.1 * place, COUNTS["validation"], seed)}
                if place == len(rates) - 1:
                    right["test"] = hits(accuracy, COUNTS["test"], 100 * len(strategy) + seed)
                leave(root / f"{strategy}-{rate:g}-{seed}", config, right)
    return root


def edit(path: Path, change: Any) -> None:
    """A JSON file, changed in place by a function of its content."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def compared(folder: Path, out: Path, *more: Path, **options: Any) -> list[Section]:
    """A report of some folders, with few resamples."""
    sections, _ = report.report([str(folder), *map(str, more)], out, Options(draws=500, **options))
    return sections
