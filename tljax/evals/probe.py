"""Linear probes on cached features: many heads at once, chosen on validation, evaluated.

search = probe.search(experiments, features, run.train_input(), validation, classes, test=test)
for head in search.best:  # one of each seed, of the setting that validation likes best
    head.experiment, head.params["kernel"], head.validation["accuracy"], head.test["accuracy"]
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from tljax.config.schema import Experiment
from tljax.data.loader import TrainInput
from tljax.errors import InputError
from tljax.evals.linear_probe import Head, fit, forward, setting
from tljax.problems.registry import problem_for

_LOGITS = 1 << 28  # bytes of logits that an evaluation computes at once


@dataclass(frozen=True, eq=False)
class Examples:
    """A split to evaluate on.

    Attributes:
        features: float32 [n, features].
        labels: as `Problem.summarize` takes them.
    """

    features: Float[np.ndarray, "n features"]
    labels: Num[np.ndarray, "n ..."]


@dataclass(frozen=True, eq=False)
class Search:
    """The heads of a search, and the best of them.

    Attributes:
        heads: of each experiment, in their order.
        best: those of the chosen setting, which differ in their seed.
    """

    heads: list[Head]
    best: list[Head]


def search(
    experiments: Sequence[Experiment],
    features: Float[np.ndarray, "*views n features"],
    stream: TrainInput,
    validation: Examples,
    classes: int,
    *,
    test: Examples | None = None,
    test_all: bool = False,
    unscaled: Callable[[np.ndarray], np.ndarray] = lambda logits: logits,
) -> Search:
    """Trains a head for each experiment and chooses the best setting by validation alone.

    A setting is what experiments have in common that differ in their seed; its quality is the mean over seeds of the
    problem's headline metric. Of equal ones the first counts.

    Args:
        experiments: the probes.
        features, stream, classes: as `linear_probe.fit` takes them.
        validation: chooses the setting.
        test: evaluated for the heads of the best setting, or with `test_all` for each.
        unscaled: from what heads say to the labels' own units, as `Inputs.unscaled`.

    Raises:
        InputError: as `linear_probe.fit`; or no setting is left whose heads all stayed finite.
    """
    heads = fit(experiments, features, stream, classes)
    sound = [i for i, head in enumerate(heads) if not head.failed]
    for i, metrics in zip(sound, evaluate([heads[i] for i in sound], validation, unscaled), strict=True):
        heads[i] = dataclasses.replace(heads[i], validation=metrics)
    best = _best(heads)
    if test is not None:
        tested = sound if test_all else best
        for i, metrics in zip(tested, evaluate([heads[i] for i in tested], test, unscaled), strict=True):
            heads[i] = dataclasses.replace(heads[i], test=metrics)
    return Search(heads, [heads[i] for i in best])


def evaluate(
    heads: Sequence[Head], examples: Examples, unscaled: Callable[[np.ndarray], np.ndarray] = lambda logits: logits
) -> list[dict[str, Any]]:
    """Returns what `Problem.summarize` says of each head, without the metrics of a ranking.

    Args:
        heads: of one problem.
        examples: a split.
        unscaled: from what heads say to the labels' own units.
    """
    if not heads:
        return []
    metrics: list[dict[str, Any]] = []
    problem, classes = problem_for(heads[0].experiment), heads[0].params["kernel"].shape[-1]
    size = max(1, _LOGITS // (4 * len(examples.features) * classes))
    dtype = jnp.dtype(heads[0].experiment.compute_dtype)
    apply = jax.jit(jax.vmap(functools.partial(forward, dtype=dtype), in_axes=(0, None, None)))
    x = jnp.asarray(examples.features)
    for first in range(0, len(heads), size):
        chunk = heads[first : first + size]
        params = {"head": {k: np.stack([head.params[k].T for head in chunk]) for k in chunk[0].params}}
        for logits in np.asarray(apply(params, {}, x)[0]):
            metrics.append(problem.summarize(unscaled(logits), examples.labels, full=False))
    return metrics


def _best(heads: Sequence[Head]) -> list[int]:
    """Returns the places of the heads of the best setting."""
    settings: dict[Any, list[int]] = {}
    for i, head in enumerate(heads):
        settings.setdefault(tuple(setting(head.experiment).values()), []).append(i)
    sound = [members for members in settings.values() if not any(heads[i].failed for i in members)]
    if not sound:
        raise InputError("no head stayed finite at every step: lower optim.learning_rate, or set optim.clip_norm")
    headline = problem_for(heads[0].experiment).headline
    return max(sound, key=lambda members: np.mean([headline.quality(heads[i].validation) for i in members]))
