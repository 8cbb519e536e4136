"""The trials of a sweep: each is named by its content, so that it is found again, and never made twice."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from tljax.checkpoints.workdir import Workdir
from tljax.config import defaults
from tljax.config.ranges import shown
from tljax.config.schema import RESULT_NEUTRAL_SECTIONS, Experiment, TaskConfig
from tljax.config.serialization import to_dict, with_values
from tljax.errors import InputError
from tljax.evals import linear_probe
from tljax.io import storage
from tljax.sweeps import selection


@dataclass(frozen=True, eq=False)
class Trial:
    """A run of a sweep.

    Attributes:
        overrides: value by dotted key, of what it has otherwise than the config.
        experiment: all that determines it.
        folder: its workdir, named by its content.
    """

    overrides: Mapping[str, Any]
    experiment: Experiment
    folder: epath.Path | Path

    @property
    def name(self) -> str:
        """Its name on the command line and in the status."""
        return self.folder.name

    @property
    def result(self) -> dict[str, Any] | None:
        """What its workdir has as its result; None before the end."""
        return Workdir(self.folder).result

    @property
    def error(self) -> dict[str, Any] | None:
        """Why it failed; None if it has not."""
        return Workdir(self.folder).error

    def left(self, test: bool) -> bool:
        """Returns whether training or, with `test`, the test that it holds back is to be done; a failed one is done."""
        if self.error:
            return False
        result = self.result
        return result is None or (test and "held" in result)

    @property
    def setting(self) -> str:
        """The overrides in words, but for the seed."""
        shown = ((key.split(".")[-1], value if value != "" else "''") for key, value in self.overrides.items())
        return ", ".join(f"{key}={value}" for key, value in shown if key != "seed")


def make_trials(experiment: Experiment, overrides: Any, root: str | os.PathLike) -> list[Trial]:
    """Returns the trials of a sweep; all are checked before one begins.

    Args:
        experiment: the config.
        overrides: what a `sweep()` gave: of each trial a dict, value by dotted key (`tuning.strategy`). A strategy
            takes the config's arguments along only if it is the config's.
        root: the folder of their workdirs, or a bucket.

    Raises:
        InputError: a key that does not exist, a value of another type, or one run twice.
    """
    place = epath.Path(root) if storage.is_remote(root) else Path(root)
    trials: dict[str, Trial] = {}
    if not isinstance(overrides, Iterable) or isinstance(overrides, Mapping | str):
        raise InputError(f"sweep() must return dicts, one for each run, not {shown(overrides)}")
    for values in overrides:
        if not isinstance(values, Mapping):
            raise InputError(f"sweep() must yield a dict of values by key for each run, not {shown(values)}")
        config = to_dict(experiment)
        if values.get("tuning.strategy", experiment.tuning.strategy) != experiment.tuning.strategy:
            config["tuning"] = {"group_rates": experiment.tuning.group_rates}
            config = defaults.cleared(config)
        trial_experiment = Experiment.from_config(with_values(config, values))
        name = hashlib.sha256(json.dumps(_content(trial_experiment), sort_keys=True).encode()).hexdigest()[:10]
        if name in trials:
            raise InputError(f"the sweep has one run twice: {dict(values)} and {dict(trials[name].overrides)}")
        strategy = trial_experiment.tuning.strategy.replace(":", ".")
        trials[name] = Trial(dict(values), trial_experiment, place / f"{strategy}-{name}")
    if not trials:
        raise InputError("the sweep yields no run")
    return list(trials.values())


def logs_folder(root: str | os.PathLike) -> Path:
    """Returns the folder for what a sweep's processes print: below the root, or of a bucket below `tljax-logs` here."""
    if storage.is_remote(root):
        return Path("tljax-logs", *os.fspath(root).partition("://")[2].strip("/").split("/"))
    return Path(root) / "logs"


def trials_by_name(trials: Sequence[Trial], names: Sequence[str]) -> list[Trial]:
    """Returns the trials with these names, in the sweep's order.

    Raises:
        InputError: a name that none has.
    """
    by_name = {trial.name: trial for trial in trials}
    for name in names:
        if name not in by_name:
            raise InputError(f"the sweep has no trial {name}: --status shows what there is")
    return [trial for trial in trials if trial.name in names]


def common(experiment: Experiment) -> Experiment:
    """Returns what of an experiment a frozen prefix, and the examples that it sees, depend on."""
    task = dataclasses.replace(
        experiment.task, batch_size=1, eval_batch_size=1, balance="", class_weights=(), flip_test=False
    )
    return Experiment(
        seed=experiment.seed if task.varies or not experiment.backbone.weights else 0,
        compute_dtype=experiment.compute_dtype,
        cache=experiment.cache,
        backbone=experiment.backbone,
        task=task,
    )


def side_by_side(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Returns the trials in groups that can train as heads of one program; the others are groups of their own."""
    groups: list[list[Trial]] = []
    for trial in trials:
        mates = next((group for group in groups if _together(group[0].experiment, trial.experiment)), None)
        if mates is None:
            groups.append([trial])
        else:
            mates.append(trial)
    return groups


def _together(first: Experiment, second: Experiment) -> bool:
    return linear_probe.together(first, second) and common(first) == common(second)


def units(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Returns the least shares of a sweep that a process can have without doing what another does, too.

    Heads train side by side. What is only to be tested takes one process for runs that differ in numbers.
    """
    trained: dict[Experiment, list[Trial]] = {}
    for trial in trials:
        if trial.result:
            trained.setdefault(trial.experiment.without_traced_hparams(), []).append(trial)
    return side_by_side([trial for trial in trials if not trial.result]) + list(trained.values())


def uneven(trials: Sequence[Trial]) -> str:
    """Returns what is wrong with the seeds, in a line; empty if all settings have the same."""
    seeds: dict[Experiment, list[int]] = {}
    for trial in trials:
        seeds.setdefault(selection.setting_of(trial.experiment), []).append(trial.experiment.seed)
    if len(seed_sets := {tuple(sorted(numbers)) for numbers in seeds.values()}) < 2:
        return ""
    most, least = max(seed_sets, key=len), min(seed_sets, key=len)
    return (
        f"the settings have different seeds, such as {most} and {least}: runs are compared in pairs of one seed, and a"
        " setting with fewer than another of its method is not chosen"
    )


def _content(experiment: Experiment) -> dict[str, Any]:
    """Returns what a run's result depends on, by section."""
    # As earlier versions named splits that a config leaves unset, so that their trials keep their names.
    experiment = experiment.with_splits(TaskConfig(validation="", test=""))
    content = {key: value for key, value in to_dict(experiment).items() if key not in RESULT_NEUTRAL_SECTIONS}
    content["task"].pop("pack", None)
    if experiment.backbone.frozen_dtype == "float32":
        del content["backbone"]["frozen_dtype"]
    for section, key in ((content, "min_steps"), (content["optim"], "warmup")):  # which they had not
        if not section[key]:
            del section[key]
    return content | ({"references": experiment.references} if experiment.references else {})
