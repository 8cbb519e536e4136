"""The runs of a sweep: each is named by its content, so that it is found again, and never made twice."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tljax.config import Experiment
from tljax.errors import InputError
from tljax.fields import to_dict, with_values
from tljax.workdir import Workdir


@dataclass(frozen=True, eq=False)
class Point:
    """One run of a sweep.

    Attributes:
        overrides: value by dotted key, of what it has otherwise than the config.
        experiment: all that determines it.
        folder: its workdir, named by its content.
    """

    overrides: Mapping[str, Any]
    experiment: Experiment
    folder: Path

    @property
    def result(self) -> dict[str, Any] | None:
        return Workdir(self.folder).result

    @property
    def setting(self) -> str:
        """The overrides in words, but for the seed."""
        return ", ".join(f"{key.split('.')[-1]}={value}" for key, value in self.overrides.items() if key != "seed")


def points(experiment: Experiment, overrides: Iterable[Mapping[str, Any]], root: Path) -> list[Point]:
    """The runs of a sweep; all are checked before one begins.

    Args:
        experiment: the config.
        overrides: of each run, value by dotted key (`tuning.strategy`). A strategy takes the config's arguments along
            only if it is the config's.
        root: the folder of their workdirs.

    Raises:
        InputError: a key that does not exist, a value of another type, or one run twice.
    """
    found: dict[str, Point] = {}
    for one in overrides:
        values = to_dict(experiment)
        if one.get("tuning.strategy", experiment.tuning.strategy) != experiment.tuning.strategy:
            values["tuning"] = {"group_rates": experiment.tuning.group_rates}
        made = Experiment.from_config(with_values(values, one))
        name = hashlib.sha256(json.dumps(_content(made), sort_keys=True).encode()).hexdigest()[:10]
        if name in found:
            raise InputError(f"the sweep has one run twice: {dict(one)} and {dict(found[name].overrides)}")
        found[name] = Point(dict(one), made, root / f"{made.tuning.strategy}-{name}")
    if not found:
        raise InputError("the sweep yields no run")
    return list(found.values())


def _content(experiment: Experiment) -> dict[str, Any]:
    """What a run's result depends on."""
    return {key: value for key, value in to_dict(experiment).items() if key not in ("input", "checkpoint")}
