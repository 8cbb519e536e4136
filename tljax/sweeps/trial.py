"""The runs of a sweep: each is named by its content, so that it is found again, and never made twice."""

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
from tljax.config.ranges import shown
from tljax.config.schema import RESULT_NEUTRAL_SECTIONS, Experiment
from tljax.config.serialization import to_dict, with_values
from tljax.errors import InputError
from tljax.evals import linear_probe
from tljax.io import storage
from tljax.sweeps import selection


@dataclass(frozen=True, eq=False)
class Trial:
    """One run of a sweep.

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
        """By which the command line and the status call it."""
        return self.folder.name

    @property
    def result(self) -> dict[str, Any] | None:
        return Workdir(self.folder).result

    @property
    def error(self) -> dict[str, Any] | None:
        return Workdir(self.folder).error

    def left(self, test: bool) -> bool:
        """Whether something is to be done: training or, with `test`, what it holds back. What has failed is done."""
        if self.error:
            return False
        result = self.result
        return result is None or (test and "held" in result)

    @property
    def setting(self) -> str:
        """The overrides in words, but for the seed."""
        return ", ".join(f"{key.split('.')[-1]}={value}" for key, value in self.overrides.items() if key != "seed")


def points(experiment: Experiment, overrides: Any, root: str | os.PathLike) -> list[Trial]:
    """The runs of a sweep; all are checked before one begins.

    Args:
        experiment: the config.
        overrides: what a `sweep()` gave: of each run a dict, value by dotted key (`tuning.strategy`). A strategy takes
            the config's arguments along only if it is the config's.
        root: the folder of their workdirs, or a bucket.

    Raises:
        InputError: a key that does not exist, a value of another type, or one run twice.
    """
    place = epath.Path(root) if storage.is_remote(root) else Path(root)
    found: dict[str, Trial] = {}
    if not isinstance(overrides, Iterable) or isinstance(overrides, Mapping | str):
        raise InputError(f"sweep() must return dicts, one for each run, not {shown(overrides)}")
    for one in overrides:
        if not isinstance(one, Mapping):
            raise InputError(f"sweep() must yield a dict of values by key for each run, not {shown(one)}")
        values = to_dict(experiment)
        if one.get("tuning.strategy", experiment.tuning.strategy) != experiment.tuning.strategy:
            values["tuning"] = {"group_rates": experiment.tuning.group_rates}
        made = Experiment.from_config(with_values(values, one))
        name = hashlib.sha256(json.dumps(_content(made), sort_keys=True).encode()).hexdigest()[:10]
        if name in found:
            raise InputError(f"the sweep has one run twice: {dict(one)} and {dict(found[name].overrides)}")
        found[name] = Trial(dict(one), made, place / f"{made.tuning.strategy.replace(':', '.')}-{name}")
    if not found:
        raise InputError("the sweep yields no run")
    return list(found.values())


def logs_folder(root: str | os.PathLike) -> Path:
    """Returns the folder for what a sweep's processes print: below the root, or of a bucket below `tljax-logs` here."""
    if storage.is_remote(root):
        return Path("tljax-logs", *os.fspath(root).partition("://")[2].strip("/").split("/"))
    return Path(root) / "logs"


def named(found: Sequence[Trial], names: Sequence[str]) -> list[Trial]:
    """The points with these names, in the sweep's order.

    Raises:
        InputError: a name that none has.
    """
    by_name = {point.name: point for point in found}
    for name in names:
        if name not in by_name:
            raise InputError(f"the sweep has no point {name}: --status shows what there is")
    return [point for point in found if point.name in names]


def common(experiment: Experiment) -> Experiment:
    """What a frozen prefix, and the examples that it sees, depend on."""
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


def side_by_side(found: Sequence[Trial]) -> list[list[Trial]]:
    """The points, those together that can train as heads of one program, which others share with nobody."""
    groups: list[list[Trial]] = []
    for point in found:
        mates = next((group for group in groups if _together(group[0].experiment, point.experiment)), None)
        if mates is None:
            groups.append([point])
        else:
            mates.append(point)
    return groups


def _together(a: Experiment, b: Experiment) -> bool:
    return linear_probe.together(a, b) and common(a) == common(b)


def units(found: Sequence[Trial]) -> list[list[Trial]]:
    """The least shares of a sweep that one process can have without doing what another does, too.

    Heads train side by side. What is only to be tested takes one process for runs that differ in numbers.
    """
    trained: dict[Experiment, list[Trial]] = {}
    for point in found:
        if point.result:
            trained.setdefault(point.experiment.without_traced_hparams(), []).append(point)
    return side_by_side([point for point in found if not point.result]) + list(trained.values())


def uneven(found: Sequence[Trial]) -> str:
    """What is wrong with the seeds, in a line; empty if all settings have the same."""
    seeds: dict[Experiment, list[int]] = {}
    for point in found:
        seeds.setdefault(selection.setting_of(point.experiment), []).append(point.experiment.seed)
    if len(every := {tuple(sorted(of)) for of in seeds.values()}) < 2:
        return ""
    most, least = max(every, key=len), min(every, key=len)
    return (
        f"the settings have different seeds, such as {most} and {least}: runs are compared in pairs of one seed, and a"
        " setting with fewer than another of its method is not chosen"
    )


def _content(experiment: Experiment) -> dict[str, Any]:
    """What a run's result depends on."""
    content = {key: value for key, value in to_dict(experiment).items() if key not in RESULT_NEUTRAL_SECTIONS}
    return content | ({"references": experiment.references} if experiment.references else {})
