"""Tables in Python: a sweep, a report, probes of features, and the encoders that there are."""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from tljax.api import session
from tljax.api.runs import listening
from tljax.config.schema import Experiment
from tljax.distributed.preemption import PreemptionSignal
from tljax.errors import InputError
from tljax.evals import knn, logistic_regression
from tljax.evals.probe import Examples
from tljax.io import buckets
from tljax.problems.registry import problem_for
from tljax.reports import report as reports
from tljax.reports import tables
from tljax.reports.schema import Options
from tljax.sweeps import selection
from tljax.sweeps import sweep as sweeps
from tljax.sweeps.runner import run_trials
from tljax.sweeps.trial import Trial, make_trials
from tljax.weights import listing

if TYPE_CHECKING:
    import pandas as pd

Features = tuple[Any, Any]  # features [n, features] and labels [n]


def sweep(
    config: ConfigDict | Mapping[str, Any] | Experiment,
    settings: Mapping[str, Any] | Iterable[Mapping[str, Any]],
    root: str | os.PathLike,
    *,
    tuned: Sequence[str] = selection.TUNED,
    seeds: str = "all",
    peek_test: bool = False,
) -> "pd.DataFrame":
    """Trains a config at many settings, what they share computed once; tests only what validation has chosen.

        tljax.sweep(config, {"tuning.strategy": ["linear_probe", "full"], "seed": [0, 1, 2]}, root="runs")

    Args:
        config: what all runs have in common.
        settings: dotted key -> its values, of which every combination is a run; or a dict of values for each run.
        root: the folder or bucket of the runs' workdirs; the same call goes on where it was stopped.
        tuned: the sections in which the settings of a method differ: the best of each method is tested.
        seeds: `all` trains each seed of each setting; `chosen` the first, and the others of what was chosen.
        peek_test: test every run; results and report say so.

    Returns:
        A row for each run: the keys that differ, its headline metric on validation and test, whether it was `chosen`,
        `workdir`, and `error` where it failed.

    Raises:
        InputError: a key or value that cannot be, or one run twice; nothing is trained then.
        Stopped: it was interrupted, and has saved.
    """
    session.begin()
    trials = make_trials(session.experiment_of(config), _combinations(settings), buckets.to_path(os.fspath(root)))
    protocol = sweeps.Protocol(tuple(tuned), seeds, peek_test)
    selection.methods(trials, tuple(tuned))  # which knows these sections
    preemption = PreemptionSignal()
    with listening(preemption):
        unfinished = sweeps.sweep(
            trials, protocol, lambda due, test: run_trials(due, trials, preemption, test, peek_test)
        )
    return _table(trials, set() if unfinished else protocol.chosen(trials))


def _combinations(settings: Any) -> Iterable[Mapping[str, Any]]:
    if not isinstance(settings, Mapping):
        return settings
    for key, values in settings.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise InputError(f"{key}={values!r}: give a list of values, of which each is tried")
    return [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]


def _table(trials: Sequence[Trial], chosen: set[Experiment]) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for trial in trials:
        metric, splits = problem_for(trial.experiment).headline.name, (trial.result or {}).get("splits", {})
        row = dict(trial.overrides)
        row |= {f"{name} {metric}": splits[name][metric] for name in ("validation", "test") if name in splits}
        row["chosen"] = selection.setting_of(trial.experiment) in chosen
        row["workdir"], row["error"] = os.fspath(trial.folder), (trial.error or {}).get("error", "")
        rows.append(row)
    return pd.DataFrame(rows)


def report(
    folders: Sequence[str | os.PathLike] | str | os.PathLike,
    out: str | os.PathLike = "report",
    *,
    split: str = "test",
    metric: str = "",
    tuned: Sequence[str] = selection.TUNED,
    baseline: str = "",
    test: str = "bootstrap",
    figures: Sequence[str] = (),
) -> "pd.DataFrame":
    """Compares the finished runs below some folders, and writes `report.html`, tables and figures into `out`.

    Args:
        folders: of runs at any depth, or workdirs.
        out: the folder to write to.
        split: on which methods are compared, `test` or `validation`.
        metric: a metric of the results; by default the problem's headline.
        tuned: the sections in which the settings of a method differ.
        baseline: the method that the others are compared with, by its name; the first by default.
        test: of a difference, `bootstrap`, `t` or `mcnemar`.
        figures: also write them as `png`, `pdf` or `svg`.

    Returns:
        A row for each method, as `methods.csv` has it.

    Raises:
        InputError: there are no finished runs, or some that cannot be compared, which are named.
    """
    places = [folders] if isinstance(folders, str | os.PathLike) else folders
    options = Options(split, metric, tuple(tuned), baseline, test)
    sections, _ = reports.report([os.fspath(place) for place in places], out, options, figures, "tljax.report(…)")
    return tables.methods(sections)


def list_models(pattern: str = "") -> "pd.DataFrame":
    """Returns the pretrained encoders that have a name, for `load_backbone` and `config.backbone.weights`.

        tljax.list_models("dinov2")

    Args:
        pattern: part of a name, or a whole one with `*` and `?`.

    Returns:
        A row for each: `name`, `parameters` (without a head), `input` (`224 px`, `512 tokens`), `from` (`PyPI`, `HF`),
        `licence`, `groups`.

    Raises:
        InputError: none matches; the nearest names are given.
    """
    import pandas as pd

    return pd.DataFrame(listing.rows(pattern))


def probe(
    train: Features, test: Features, validation: Features | None = None, *, method: str = "logistic_regression"
) -> dict[str, Any]:
    """Measures how well classes can be told apart by features, without training the encoder.

        tljax.probe((backbone.features(images), labels), (backbone.features(others), other_labels))

    Args:
        train: features [n, features] and labels [n]: names, or whole numbers from 0.
        test: those to measure the accuracy on.
        validation: those by which C, or k, is chosen; by default a fifth of `train`, drawn by a fixed seed.
        method: `logistic_regression` (L2, over DINOv2's 45 strengths, fitted again to train and validation together),
            or `knn` (cosine, weighted by exp(similarity / 0.07), k of 10, 20, 100 and 200).

    Returns:
        `accuracy` on `test`, and what was chosen: `C` or `k`.

    Raises:
        InputError: features and labels that do not fit together, or another method.
    """
    session.begin()
    train, test, *others = _numbered([train, test, *([] if validation is None else [validation])])
    train_examples, test_examples = _examples(train), _examples(test)
    fitted, chooser = (train_examples, _examples(others[0])) if others else _split(train_examples)
    classes = int(max(part.labels.max() for part in (fitted, chooser, test_examples))) + 1
    if method == "logistic_regression":
        best = logistic_regression.search(fitted, chooser, classes)
        return {"accuracy": best.accuracy(test_examples), "C": best.strength}
    if method == "knn":
        neighbors = [k for k in knn.NEIGHBORS if k <= len(fitted.features)] or [1]
        votes = knn.votes(fitted, chooser.features, classes, neighbors)
        best_k = max(neighbors, key=lambda k: np.mean(votes[k].argmax(axis=-1) == chooser.labels))
        counts = knn.votes(train_examples, test_examples.features, classes, [best_k])[best_k]
        return {"accuracy": float(np.mean(counts.argmax(axis=-1) == test_examples.labels)), "k": best_k}
    raise InputError(f"no method {method!r}; there are logistic_regression and knn")


def _numbered(pairs: Sequence[Features]) -> list[Features]:
    """Returns the pairs with a number for each class, where their labels are names."""
    columns = [np.asarray(labels) for _, labels in pairs]
    if not all(labels.dtype.kind in "UO" for labels in columns):
        return list(pairs)
    names = np.unique(np.concatenate([labels.ravel() for labels in columns]).astype(str))
    return [
        (features, np.searchsorted(names, labels.astype(str)))
        for (features, _), labels in zip(pairs, columns, strict=True)
    ]


def _examples(pair: Features) -> Examples:
    features, labels = np.asarray(pair[0], np.float32), np.asarray(pair[1])
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise InputError(
            f"features {list(features.shape)} and labels {list(labels.shape)}: give [n, features] and [n], of one n"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels of {labels.dtype}: give names throughout, or whole numbers from 0")
    return Examples(features, labels)


def _split(examples: Examples) -> tuple[Examples, Examples]:
    """Returns four fifths and one fifth of examples."""
    order = np.random.default_rng(0).permutation(len(examples.labels))
    cut = len(order) // 5
    return tuple(Examples(examples.features[rows], examples.labels[rows]) for rows in (order[cut:], order[:cut]))
