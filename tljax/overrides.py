"""What an evaluation may do otherwise than the run that it evaluates: other examples, another size or precision."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tljax.config import Experiment
from tljax.data import images, tasks
from tljax.data.examples import Split, Task, among
from tljax.data.splits import cut
from tljax.errors import InputError
from tljax.fields import to_dict
from tljax.inputs import Inputs
from tljax.resolve import Resolved, check_length

SPLITS = ("train", "validation", "test")
# What says which examples there are.
_DATA = tuple(f"task.{name}" for name in ("dataset", "image", "text", "label", "split", "on_error"))
_OF_IMAGES, _OF_TEXTS = ("task.image_size", "task.flip_test"), ("task.max_tokens", "task.token_multiple")
# What changes speed and memory only.
_SPEED = ("task.eval_batch_size", "task.token_multiple", "input.workers", "input.cache_gb")
_ALLOWED = (*_DATA, *(f"task.{name}" for name in SPLITS), *_OF_IMAGES, *_OF_TEXTS, "compute_dtype", *_SPEED)


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
    """A run's experiment and what it resolved to, with other values.

    Args:
        overrides: values by dotted key (`task.image_size`).

    Returns:
        Both, and those of the overrides that can change a prediction.

    Raises:
        InputError: a key that no evaluation may change, or none of this kind of network; or a value of another type.
    """
    check(overrides)
    reads, foreign = ("texts", _OF_IMAGES) if resolved.length else ("images", _OF_TEXTS)
    values = to_dict(experiment)
    told = {}
    for key, value in overrides.items():
        if key in foreign:
            raise InputError(f"config.{key} has no effect on this run, which reads {reads}")
        *path, name = key.split(".")
        place = values[path[0]] if path else values
        if value != place[name] and key not in _SPEED:
            told[key] = value
        place[name] = value
    made = Experiment.from_config(values)
    if "task.image_size" in told:
        size = made.task.image_size or resolved.pretrained.preprocessing.size
        preprocessing = dataclasses.replace(resolved.preprocessing, size=size)
        images.check_size(preprocessing)
        resolved = dataclasses.replace(resolved, preprocessing=preprocessing)
    if "task.max_tokens" in told:
        check_length(resolved.pretrained, made.task.max_tokens)
    return made, resolved, told


def examples(experiment: Experiment, resolved: Resolved, told: Mapping[str, Any], split: str) -> Split:
    """The examples that an evaluation is of: the run's own, or those of another data set, labelled by its classes.

    What keeps a run's splits apart, and its data those that it was trained on, is asked of its own data set only.

    Args:
        experiment, resolved, told: as `changed` gives them.
        split: `train`, `validation` or `test` of the config, or what it says in TFDS notation.

    Raises:
        InputError: the data set cannot be had or is not the one trained on, has no such split, or has other classes.
    """
    if not any(key in _DATA for key in told):
        return split_of(Inputs(experiment, resolved), split)
    task = tasks.load(experiment.task)
    if task.fingerprint == resolved.data:  # the same at another place
        return split_of(Inputs(experiment, resolved), split)
    _check_kind(task, resolved)
    slicing = getattr(experiment.task, split) if split in SPLITS else split
    if not slicing:
        raise _no_split(split)
    return cut(among(task, resolved.classes), slicing)


def split_of(inputs: Inputs, split: str) -> Split:
    """The config's `train`, `validation` or `test`, or what `split` itself says in TFDS notation.

    Raises:
        InputError: the config has none for that name.
    """
    if split not in SPLITS:
        return cut(inputs.task, split)
    if split not in inputs.splits:
        raise _no_split(split)
    return inputs.splits[split]


def _no_split(split: str) -> InputError:
    return InputError(f"this run has no {split} split (config.task.{split} is empty)")


def _check_kind(task: Task, resolved: Resolved) -> None:
    """Raises InputError where the network was trained on inputs of another kind."""
    kinds = {("image", False): "images", ("text", False): "texts", ("text", True): "pairs of texts"}
    held, read = kinds[task.kind, task.pairs], kinds["text" if resolved.length else "image", resolved.pairs]
    if held != read:
        raise InputError(f"{task.name} holds {held}, and the run reads {read}")
