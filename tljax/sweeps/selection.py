"""Which runs of an ablation are compared, and which of them are chosen: on validation alone.

A *method* is what an experiment says apart from its seed and the sections that are tuned, by default `optim`: a data
set, pretrained weights, a strategy with its arguments. A *setting* of a method is the same with these sections. Of each
method the setting with the best mean over seeds on the validation split is chosen, and only its runs are tested.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from flax.traverse_util import flatten_dict

from tljax.config.schema import RESULT_NEUTRAL_SECTIONS, Experiment
from tljax.config.serialization import to_dict
from tljax.errors import InputError
from tljax.problems.registry import problem_of

TUNED = ("optim",)


@runtime_checkable
class Outcome(Protocol):
    """A run as far as it has come: a sweep's trial, or a workdir."""

    @property
    def experiment(self) -> Experiment:
        """All that determines it."""

    @property
    def result(self) -> Mapping[str, Any] | None:
        """What it came to; None before the end."""


Run = TypeVar("Run", bound=Outcome)


def setting_of(experiment: Experiment) -> Experiment:
    """Returns an experiment without its seed, and without what changes no number."""
    empty = Experiment()
    return dataclasses.replace(
        experiment, seed=0, **{section: getattr(empty, section) for section in RESULT_NEUTRAL_SECTIONS}
    )


def by_setting(runs: Iterable[Run]) -> dict[Experiment, list[Run]]:
    """Returns the runs by setting, in the order in which they come."""
    settings: dict[Experiment, list[Run]] = {}
    for run in runs:
        settings.setdefault(setting_of(run.experiment), []).append(run)
    return settings


def method_of(experiment: Experiment, tuned: Sequence[str] = TUNED) -> Experiment:
    """Returns an experiment's setting without its tuned sections.

    Raises:
        InputError: an experiment has no such section.
    """
    empty = Experiment()
    for section in tuned:
        if not dataclasses.is_dataclass(getattr(empty, section, None)):
            known = [name for name, value in vars(empty).items() if dataclasses.is_dataclass(value)]
            raise InputError(f"a config has no section {section!r}: there are {', '.join(known)}")
    return dataclasses.replace(setting_of(experiment), **{section: getattr(empty, section) for section in tuned})


def methods(runs: Iterable[Run], tuned: Sequence[str] = TUNED) -> dict[Experiment, dict[Experiment, list[Run]]]:
    """Returns the runs by method, and within it by setting, each in the order in which they come."""
    members_of: dict[Experiment, list[Run]] = {}
    for run in runs:
        members_of.setdefault(method_of(run.experiment, tuned), []).append(run)
    return {method: by_setting(members) for method, members in members_of.items()}


def select_trials(runs: Iterable[Run], tuned: Sequence[str] = TUNED) -> dict[Experiment, list[Run]]:
    """Returns method -> the runs of its setting with the best mean validation metric over seeds.

    The metric is the problem's headline. Of equal settings the first counts by what they say, so that a
    sweep, in a grid's order, and a report, in that of folders, choose the same. A setting of which a seed
    failed or is missing that another setting of the method has is not compared: fewer seeds are luckier. A method is
    left out where nothing is validated.
    """
    best = {}
    for method, settings in methods(runs, tuned).items():
        in_words = sorted(settings, key=lambda setting: repr(to_dict(setting)))
        validated = [[run for run in settings[setting] if _validated(run)] for setting in in_words]
        most = max(map(len, validated))
        if most:
            best[method] = max((members for members in validated if len(members) == most), key=_quality)
    return best


def names(experiments: Sequence[Experiment]) -> list[str]:
    """Returns each experiment in words: the values of the keys in which they differ, the strategy first.

    `last_k, k=2, weights=vit_small_patch14.dinov2`. A key is named by its last part, or where two would be the same, in
    full. What all have in common is left out; a single experiment has the name of its strategy.
    """
    settings = [flatten_dict(to_dict(experiment), sep=".") for experiment in experiments]
    keys = [key for key in _union(settings) if len({repr(values.get(key)) for values in settings}) > 1]
    keys = [key for key in keys if key != "tuning.strategy"]
    last = [key.split(".")[-1] for key in keys]
    short = {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}
    texts = []
    for values in settings:
        parts = [f"{short[key]}={values[key]}" for key in keys if values.get(key) not in (None, "", ())]
        texts.append(", ".join([values["tuning.strategy"], *parts]))
    return texts


def _union(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for values in settings for key in values))


def _validated(run: Outcome) -> bool:
    return bool(run.result) and "validation" in run.result["splits"]


def _quality(members: Sequence[Outcome]) -> float:
    headline = problem_of(members[0].experiment.task.problem).headline
    return statistics.mean(headline.quality(run.result["splits"]["validation"]) for run in members)
