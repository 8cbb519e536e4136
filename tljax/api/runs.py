"""Runs in Python: train, evaluate, and what a workdir holds: metrics, history, plan, network and predictions."""

import functools
import html
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from tljax.api import session
from tljax.api.inputs import listed, name_of
from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import Experiment
from tljax.config.serialization import to_dict
from tljax.distributed.preemption import PreemptionSignal
from tljax.errors import InputError
from tljax.evals import evaluate as evals
from tljax.evals.predict import answers, restored
from tljax.evals.predict_inputs import Item
from tljax.problems.registry import problem_for
from tljax.training import trainer

if TYPE_CHECKING:
    import pandas as pd


def train(
    config: ConfigDict | Mapping[str, Any] | Experiment, workdir: str | os.PathLike, *, max_seconds: float = 0.0
) -> "Result":
    """Trains a config in a workdir to its end, from where it stands: what `tljax train` does, to the bit.

    An interrupt (Ctrl-C, or a notebook's stop button) ends the step, saves, and raises `Stopped`; the same call goes
    on from there, and ends with the bits of a run that was not interrupted.

    Args:
        config: what `default_config` gave, changed.
        workdir: a new folder or bucket, or one to resume.
        max_seconds: save and raise `Stopped` before so many have passed; 0 for no limit.

    Raises:
        InputError: anything about the config, data, weights or workdir that keeps it from running.
        Stopped: it was interrupted, or its time is over, and has saved.
    """
    session.begin()
    experiment = session.experiment_of(config)
    preemption = PreemptionSignal(max_seconds)
    with listening(preemption):
        trainer.train(experiment, workdir, preemption)
    return Result(workdir)


def listening(preemption: PreemptionSignal) -> AbstractContextManager[Any]:
    """Returns what hears interrupts, for a block; in another thread than the main one, which gets none, nothing."""
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()
    return preemption.listening(interactive=True)


def evaluate(
    workdir: str | os.PathLike, split: str = "test", step: str | int = "latest", *, batch_size: int = 0, **others: Any
) -> dict[str, Any]:
    """Evaluates a split by a run's checkpoint, and keeps predictions and metrics in the workdir.

    Args:
        workdir: of the run.
        split: `train`, `validation` or `test`, or a slice in TFDS notation.
        step: `latest`, `best` (by validation), or a number.
        batch_size: examples at a time, which never changes a metric; the config's by default.
        others: another value for a key of the run's config, with `__` for the point: `task__dataset="folder:birds"`.

    Returns:
        `split`, `step`, `count`, and the metrics, with bootstrap intervals as `NAME_95`.

    Raises:
        InputError: there is no such run, checkpoint, split or data set, or a key that no evaluation may change.
    """
    session.begin()
    values = {key.replace("__", "."): value for key, value in others.items()}
    return evals.evaluate(workdir, str(step), split, batch_size, values)


def load_run(workdir: str | os.PathLike, step: str | int = "latest") -> "LoadedRun":
    """Loads the network of a run at a checkpoint.

    Args:
        workdir: of the run.
        step: `latest`, `best` (by validation), or a number.

    Raises:
        InputError: there is no such run or checkpoint, or it cannot be restored.
    """
    session.begin()
    return LoadedRun(workdir, str(step))


class Result:
    """What a run's workdir holds; in a notebook, a table.

    Attributes:
        workdir: where it is.
    """

    def __init__(self, workdir: str | os.PathLike):
        self.workdir = os.fspath(workdir)
        self._folder = Workdir(workdir)
        self._experiment, self._resolved = self._folder.load()

    @property
    def config(self) -> ConfigDict:
        """The run's config, whole."""
        return ConfigDict(to_dict(self._experiment))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in label order; of a regression those of its values."""
        return self._resolved.classes

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The metrics after the last step, split -> name -> value; intervals are `NAME_95`. Empty before the end."""
        return dict((self._folder.result or {"splits": {}})["splits"])

    @property
    def history(self) -> "pd.DataFrame":
        """A row for each line of `metrics.jsonl`: `step`, `split` (`train` or `validation`), `seconds`, and metrics."""
        import pandas as pd

        return pd.DataFrame(self._folder.metrics)

    @property
    def plan(self) -> dict[str, Any]:
        """What trains, what is frozen, and what a step costs, as `tljax inspect` prints it."""
        return self._folder.plan

    @property
    def cost(self) -> dict[str, Any]:
        """What a step costs: FLOPs, parameters that train, bytes of optimizer state, the share of full tuning."""
        return self.plan["cost"]

    def _headline(self) -> dict[str, tuple[str, str, int]]:
        """Returns by split the headline metric as text, its interval, and the number of examples."""
        name = problem_for(self._experiment).headline.name
        rows = {}
        for split, metrics in self.metrics.items():
            low, high = metrics.get(f"{name}_95") or (np.nan, np.nan)
            interval = "" if np.isnan(low) else f"{low:.4f} … {high:.4f}"
            rows[split] = f"{name} {metrics[name]:.4f}", interval, metrics["count"]
        return rows

    def __repr__(self) -> str:
        parts = [f"{split} {value} [{interval}]" for split, (value, interval, _) in self._headline().items()]
        return f"{type(self).__name__}({self.workdir}: {', '.join(parts) or 'not finished'})"

    def _repr_html_(self) -> str:
        strategy = f"{self._experiment.tuning.strategy} on {self._experiment.task.dataset}"
        rows = "".join(
            f"<tr><td>{split}</td><td>{value}</td><td>{interval}</td><td>{count:,} examples</td></tr>"
            for split, (value, interval, count) in self._headline().items()
        )
        cost = self.cost
        share = f"{cost['trainable_params']:,} parameters train, {cost['step_share_of_full']:.2f} × full fine-tuning"
        caption = f"{html.escape(strategy)}: {html.escape(self.workdir)}<br>{share}"
        return f"<table><caption>{caption}</caption>{rows or '<tr><td>not finished</td></tr>'}</table>"


class LoadedRun(Result):
    """A run with its network at a checkpoint.

    Attributes:
        step: of the checkpoint.
        params: `backbone` and `head`; an average's, where the config asks for one.
        batch_stats: the stored statistics of BatchNorms.
    """

    def __init__(self, workdir: str | os.PathLike, step: str):
        super().__init__(workdir)
        self._run, (self.params, self.batch_stats), self.step = restored(workdir, step)

    @property
    def module(self) -> Any:
        """The Linen network, backbone and head."""
        return self._run.network.module

    def predict(self, inputs: Iterable[Any], batch_size: int = 0) -> list[dict[str, float]]:
        """Returns for each image or text the probability of each class by name, the most probable first.

        Of several labels each has its own probability; of a regression it is values by name.

        Args:
            inputs: images (paths, PIL images, uint8 [height, width, channels] of any sizes), or texts (a pair is a
                tuple of two).
            batch_size: how many at a time, which never changes a prediction; the config's by default.

        Raises:
            InputError: one of them cannot be read; its place is named.
        """
        spec = self._resolved.input_spec
        items = (
            (Item(place), functools.partial(spec.prepare, value, name_of(value, place)))
            for place, value in enumerate(listed(inputs))
        )
        predictions = []
        for _, answer in answers(self._run, (self.params, self.batch_stats), items, batch_size):
            if isinstance(answer, InputError):
                raise answer
            predictions.append(answer)
        return predictions

    def prepare(self, inputs: Iterable[Any]) -> Any:
        """Returns images or texts as `apply` takes them, each as in evaluation."""
        spec = self._resolved.input_spec
        examples = [spec.prepare(value, name_of(value, place)) for place, value in enumerate(listed(inputs))]
        return spec.batch(examples, self._experiment.task, self._run.inputs.tokenizer)

    def apply(self, params: Mapping[str, Any], x: Any) -> Float[Array, "batch classes"]:
        """Returns logits: a pure function, to be jitted, differentiated, vmapped or sharded.

        Args:
            params: as `self.params`.
            x: what `prepare` gave.
        """
        return self._run.network.forward({"params": params, "batch_stats": self.batch_stats}, x)[0]

    def features(self, inputs: Iterable[Any]) -> Float[np.ndarray, "n features"]:
        """Returns what the head reads of each input.

        Args:
            inputs: as of `predict`.
        """
        variables = {"params": self.params, "batch_stats": self.batch_stats}
        return np.asarray(self._features(variables, self.prepare(inputs)))

    @functools.cached_property
    def _features(self) -> Any:
        stops = (len(self._run.network.backbone.groups),)
        return jax.jit(lambda variables, x: self._run.network.features(variables, x, stops)[0])
