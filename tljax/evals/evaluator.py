"""A split of a run, evaluated by one checkpoint after another; each once, whoever asks again."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tljax.checkpoints.checkpointer import Checkpoints
from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import Experiment
from tljax.config.serialization import to_dict
from tljax.core.resolve import Resolved
from tljax.core.run import Run
from tljax.core.state import TrainState
from tljax.data.dataset import Split
from tljax.data.readers import Reader
from tljax.errors import InputError
from tljax.evals import overrides, predictions
from tljax.evals.predictions import Predictions, predictions_of
from tljax.io import storage, strict_json
from tljax.problems.registry import problem_for


@dataclass(frozen=True)
class Result:
    """The metrics of a checkpoint on a split.

    Attributes:
        workdir: of the run, as it was called.
        headline: the name of the metric that the result is reported by.
        metrics: `split`, `step`, the metrics, and `overrides` and `slicing` where there are any; what the JSON holds.
        stored: whether the predictions were there already.
    """

    workdir: str
    headline: str
    metrics: Mapping[str, Any]
    stored: bool


def name_of(step: int, split: str, changes: Mapping[str, Any] = {}) -> str:
    """Returns the name of an evaluation's files, without what is after the dot.

    Args:
        step: of the checkpoint.
        split: as it was asked for.
        changes: as `overrides.changed` gives them.
    """
    name = f"{step}-{split.replace('/', '_')}"
    if not changes:
        return name
    return f"{name}-{hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8]}"


def metadata(
    own: tuple[Experiment, Resolved],
    checkpoints: Checkpoints,
    step: int,
    name: str,
    split: Split,
    changes: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Returns all that predictions of a split depend on, as JSON gives it back.

    Args:
        own: what the run's workdir says (`Workdir.load`).
        checkpoints: the run's.
        step: of the checkpoint.
        name: what the split is called.
        split: its examples.
        changes: as `overrides.changed` gives them.
    """
    run = json.dumps([to_dict(part) for part in own], sort_keys=True)
    facts = {
        "run": hashlib.sha256(run.encode()).hexdigest(),
        "step": step,
        "checkpoint": checkpoints.identity(step),
        "split": name,
        "data": split.key,
        "overrides": changes,
    }
    return json.loads(strict_json.dumps(facts))


class Evaluation:
    """A split of a run. Nothing of the network is made before a checkpoint comes that has no predictions yet.

    The result is kept in the workdir as `evaluations/STEP-SPLIT.parquet`, the predictions, and `.json`, the metrics;
    with a hash in the name where anything is evaluated otherwise than the run says.

    Args:
        workdir: of the run.
        split: `train`, `validation` or `test`, or a slice in TFDS notation.
        batch_size: examples at a time; the config's by default.
        others: values for keys of the run's config, as `overrides.changed` takes them.
        draw: whether figures are drawn beside, of several labels the reliability alone.

    Raises:
        InputError: there is no such run, split or data set, or a key that no evaluation may change.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        split: str = "test",
        batch_size: int = 0,
        others: Mapping[str, Any] = {},
        draw: bool = False,
    ):
        self._folder = Workdir(workdir)
        self._workdir, self._split, self._batch_size, self._draw = os.fspath(workdir), split, batch_size, draw
        self._own = self._folder.load()
        self._experiment, self._resolved, self._changes = overrides.changed(*self._own, others)
        self._problem = problem_for(self._experiment)
        if draw and not self._problem.has_classes:
            raise InputError(f"{workdir}: figures are of classes, and this run is a regression; leave --figures out")
        self._examples = overrides.examples(self._experiment, self._resolved, self._changes, split)
        self._facts: dict[str, Any] = {"slicing": self._examples.name, "overrides": self._changes}
        if self._examples.task.fingerprint != self._resolved.data:  # whose own splits are kept apart
            contents = self._folder.training_contents
            self._facts["trained_on"] = overrides.count_trained_on(self._examples, contents)
        self._files = self._folder.path / "evaluations"

    def checkpoints(self) -> Checkpoints:
        """Opens the run's checkpoints."""
        return self._folder.checkpoints(self._experiment)

    def evaluate(self, checkpoints: Checkpoints, which: str) -> Result:
        """Returns the result of the checkpoint meant by `latest`, `best` or a number.

        Raises:
            InputError: there is none, or it cannot be restored.
        """
        while True:
            result = self.evaluate_at(checkpoints, checkpoints.find_step(which))
            if result is not None:  # else the run has just put another in its place
                return result

    def evaluate_at(self, checkpoints: Checkpoints, step: int) -> Result | None:
        """Returns the result of the checkpoint of a step; None if the run has removed it meanwhile.

        Raises:
            InputError: it cannot be restored.
        """
        name = name_of(step, self._split, self._changes)
        try:
            facts = metadata(self._own, checkpoints, step, self._split, self._examples, self._changes)
            predicted = self._stored(name, facts)
            state = self._restored(checkpoints, step) if predicted is None else None
        except (InputError, OSError):
            if step in checkpoints.steps:
                raise
            return None
        if state is not None:
            label = f"{self._workdir} step {step} {self._split}"
            predicted = predictions_of(self._run, state, self._examples, label, self._batch_size, self._reader)
            storage.sweep(self._files)  # what a process that was killed left
            predicted.save(self._folder.evaluations / f"{name}.parquet", facts)
        result = {"split": self._split, "step": step, **predicted.metrics()}
        if self._changes:
            result |= self._facts
        # A file that says so already keeps its date.
        if not self._says(name, result):
            self._folder.save_evaluation(name, result)
        if self._draw:
            self._figures(name, predicted)
        return Result(self._workdir, self._problem.headline.name, result, state is None)

    def _stored(self, name: str, facts: Mapping[str, Any]) -> Predictions | None:
        """Returns the predictions that are kept, if they are whole and of the same."""
        try:
            predicted, stored_facts = predictions.load(self._files / f"{name}.parquet", self._problem)
        except InputError:
            return None
        return predicted if stored_facts == facts else None

    def _restored(self, checkpoints: Checkpoints, step: int) -> TrainState:
        """Returns the state to evaluate, at the size at which it is evaluated."""
        state = checkpoints.restore(step, self._trained.abstract_state(step))
        params, batch_stats = self._trained.evaluation_variables(state)
        params = self._run.network.resized(params, self._trained.network)
        return state.replace(params=params, batch_stats=batch_stats, average={})

    @cached_property
    def _trained(self) -> Run:
        """The run as it was trained, which its checkpoints fit."""
        return Run(*self._own, tokenizer=self._folder.tokenizer)

    @cached_property
    def _run(self) -> Run:
        """The run as it is evaluated."""
        if self._own == (self._experiment, self._resolved):
            return self._trained
        return Run(self._experiment, self._resolved, tokenizer=self._folder.tokenizer)

    @cached_property
    def _reader(self) -> Reader:
        return self._run.inputs.reader(self._examples)

    def _says(self, name: str, result: Mapping[str, Any]) -> bool:
        """Returns whether the JSON is there, and of this result."""
        try:
            return json.loads(storage.read(self._files / f"{name}.json")) == json.loads(strict_json.dumps(result))
        except (OSError, ValueError, RecursionError):
            return False

    def _figures(self, name: str, predicted: Predictions) -> None:
        from tljax.evals import plots  # and with it matplotlib, which takes a second

        plots.reliability(self._files / f"{name}.reliability.png", predicted.logits, predicted.labels)
        if self._problem.one_class:
            path = self._files / f"{name}.confusion.png"
            plots.confusion(path, predicted.logits, predicted.labels, predicted.classes)
