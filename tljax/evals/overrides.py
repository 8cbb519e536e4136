"""What an evaluation may do otherwise than the run that it evaluates: other examples, another size or precision."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tljax import console
from tljax.config.schema import Experiment
from tljax.config.serialization import to_dict
from tljax.core.inputs import Inputs
from tljax.core.resolve import Resolved, check_length
from tljax.data import registry
from tljax.data.dataset import Split, Task, among, in_stored_order, numbered, shown
from tljax.data.input_spec import INPUTS
from tljax.data.splits import cut
from tljax.data.transforms import image
from tljax.errors import InputError
from tljax.problems.registry import problem_of

SPLITS = ("train", "validation", "test")
_TABLE, _COLUMNS = ("classes", "separator", "quote"), ("image", "text", "label", "split")
# What says which examples there are.
_DATA = tuple(f"task.{name}" for name in ("dataset", "dataset_args", *_COLUMNS, "on_error", *_TABLE))
_OF_INPUTS = ("task.image_size", "task.flip_test", "task.max_tokens", "task.token_multiple")
# What changes speed and memory only.
_SPEED = ("task.eval_batch_size", "task.token_multiple", "task.pack", "input.workers", "input.cache_gb")
_SLICES = tuple(f"task.{name}" for name in SPLITS)
_ALLOWED = (*_DATA, *_SLICES, *_OF_INPUTS, "compute_dtype", *_SPEED)


def check(keys: Mapping[str, Any]) -> None:
    """Raises InputError for a key that no evaluation may change."""
    for key in keys:
        if key not in _ALLOWED:
            raise InputError(
                f"config.{key} is the trained run's: another value would make another network, or have no effect on"
                f" an evaluation; what can be changed: {', '.join(dict.fromkeys(_ALLOWED))}"
            )


def changed(
    experiment: Experiment, resolved: Resolved, overrides: Mapping[str, Any]
) -> tuple[Experiment, Resolved, dict[str, Any]]:
    """Returns a run's experiment and what it resolved to, with other values.

    Args:
        experiment, resolved: the run's.
        overrides: values by dotted key (`task.image_size`).

    Returns:
        Both, and those of the overrides that can change a prediction.

    Raises:
        InputError: a key that no evaluation may change, or none of this kind of network; or a value of another type.
    """
    check(overrides)
    spec = resolved.input_spec
    values = to_dict(experiment)
    if "task.dataset" in overrides:  # whose arguments, if it has any, are those that are named here
        values["task"]["dataset_args"] = {}
    values["task"] = {"dataset_args": {}, "pack": False} | values["task"]
    changes = {}
    for key, value in overrides.items():
        if key in _OF_INPUTS and key.removeprefix("task.") not in spec.config_keys:
            raise InputError(f"config.{key} has no effect on this run, which reads {spec.noun()}")
        *path, name = key.split(".")
        place = values[path[0]] if path else values
        if value != place[name] and key not in _SPEED:
            changes[key] = value
        place[name] = value
    if "task.dataset" in changes:  # whose slices are those that are named here, were they the run's own
        changes |= {key: value for key, value in overrides.items() if key in _SLICES}
    changed_experiment = Experiment.from_config(values)
    if "task.image_size" in changes:
        size = changed_experiment.task.image_size or resolved.pretrained.preprocessing.size
        preprocessing = dataclasses.replace(resolved.preprocessing, size=size)
        image.check_size(preprocessing)
        resolved = dataclasses.replace(resolved, preprocessing=preprocessing)
    if "task.max_tokens" in changes:
        check_length(resolved.pretrained, changed_experiment.task.max_tokens)
    return changed_experiment, resolved, changes


def examples(experiment: Experiment, resolved: Resolved, changes: Mapping[str, Any], split: str) -> Split:
    """Returns the examples to evaluate: the run's own, or those of another data set, labelled by its classes.

    The run's slices, and what keeps its splits apart, are of its own data set. Of another `task.dataset` the whole
    split of that name is taken, unless a slice of it is named; what is taken, and how its classes become the run's, is
    printed.

    Args:
        experiment, resolved, changes: as `changed` gives them.
        split: `train`, `validation` or `test` of the config, or what it says in TFDS notation.

    Raises:
        InputError: the data set cannot be had or is not the one trained on, has no such split, or has other classes.
    """
    if not any(key in _DATA for key in changes):
        return split_of(Inputs(experiment, resolved), split)
    task = in_stored_order(registry.load(experiment.task), resolved.classes, resolved.data)
    if task.fingerprint == resolved.data:  # the same at another place
        chosen = split_of(Inputs(experiment, resolved), split)
        console.console.print(f"{task.name}: the data of the run, of which {chosen.name}, {len(chosen)} examples")
        return chosen
    _check_kind(task, resolved)
    chosen = cut(among(task, resolved.classes), _slicing(experiment, task, changes, split))
    if "task.dataset" in changes:
        _show(task, resolved, chosen)
    return chosen


def count_trained_on(split: Split, contents: np.ndarray | None) -> int | None:
    """Counts the examples that the run was trained on, and prints how many where there are any, as no metric shows it.

    Args:
        split: what is evaluated.
        contents: `Workdir.training_contents`; None where the run has none, which is printed.
    """
    if contents is None:
        console.console.print(f"{split.task.name}: whether the run was trained on some of it is not known")
        return None
    rows_seen = np.flatnonzero(np.isin(split.contents, contents))
    if len(rows_seen):
        console.console.print(
            f"{split.task.name}: {len(rows_seen)} of {len(split)} examples are in the run's training split, too (first:"
            f" {split.ids[rows_seen[0]]}): its metrics are not those of new data"
        )
    return len(rows_seen)


def split_of(inputs: Inputs, split: str) -> Split:
    """Returns the config's `train`, `validation` or `test`, or what `split` itself says in TFDS notation.

    Raises:
        InputError: the config has none for that name.
    """
    if split not in SPLITS:
        return cut(inputs.task, split)
    if split not in inputs.splits:
        raise _no_split(split)
    return inputs.splits[split]


def _slicing(experiment: Experiment, task: Task, changes: Mapping[str, Any], split: str) -> str:
    """Returns which examples of another data set are meant, in TFDS notation.

    Raises:
        InputError: it has no split of that name, nor those that the run cuts its own from.
    """
    if split not in SPLITS:
        return split
    own = getattr(experiment.task, split)
    if "task.dataset" not in changes or f"task.{split}" in changes:
        if not own:
            raise _no_split(split)
        return own
    if split in task.bases:
        return split
    bases = dict.fromkeys(part.partition("[")[0].strip() for part in own.split("+"))
    if all(name in task.bases for name in bases):
        return "+".join(bases)
    sizes = {name: len(base.index) for name, base in task.bases.items()}
    raise InputError(f"{task.name} has no split {split!r}; it has {sizes}: give --split=NAME, or config.task.{split}")


def _show(task: Task, resolved: Resolved, split: Split) -> None:
    """Prints what is evaluated of another data set, and which class of the run each of its classes is."""
    extent = "the whole of " if all(len(rows) == len(task.bases[name].index) for name, rows in split.rows) else ""
    lines = [f"{task.name}: {extent}{split.name}, {len(split)} examples"]
    if problem_of(task.problem).has_classes:
        places, own = numbered(resolved.classes, "the run"), numbered(task.classes, task.name)
        pairs = [f"{number} {name} is the run's {places[name]}" for name, number in own.items()]
        same = list(places) == list(own)
        lines.append(f"classes by name: {f'the same {len(places)} in the same order' if same else shown(pairs)}")
        if lacking := [name for name in places if name not in own]:
            lines.append(f"classes of the run that are not there: {shown(lacking)}")
    for line in lines:
        console.console.print(line)


def _no_split(split: str) -> InputError:
    return InputError(f"this run has no {split} split (config.task.{split} is empty)")


def _check_kind(task: Task, resolved: Resolved) -> None:
    """Raises InputError where the network was trained on inputs of another kind."""
    content, read = INPUTS[task.kind].noun(task.pairs), resolved.input_spec.noun(resolved.pairs)
    if content != read:
        raise InputError(f"{task.name} holds {content}, and the run reads {read}")
