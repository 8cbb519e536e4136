"""From a task to the examples that a run trains, validates and tests on."""

import dataclasses
import hashlib
import itertools
from types import SimpleNamespace

import numpy as np

from tljax.config.schema import TaskConfig
from tljax.data.dataset import Split, Task, places_of
from tljax.data.sources import vtab
from tljax.data.sources.folder import SPLITS
from tljax.errors import InputError
from tljax.problems.registry import problem_of


def cut(task: Task, slicing: str) -> Split:
    """Selects examples in TFDS's notation (`train[:80%]`, `train[10:20]+test[:5]`), or `vtab:` and a part of VTAB-1k.

    Percentages round to the nearest example, as TFDS does.

    Raises:
        InputError: there is no such split or slice, it is empty, or it has an example twice.
    """
    of_vtab = slicing.startswith("vtab:")
    parts = vtab.find(task, slicing.removeprefix("vtab:")) if of_vtab else _slices(task, slicing)
    for (base, _, stop), (other, start, _) in itertools.pairwise(sorted(parts)):
        if base == other and start < stop:
            raise InputError(f"{task.name}: {slicing!r} has examples of {base} twice; cut its slices apart")
    return Split(task, slicing, tuple((base, np.arange(start, stop)) for base, start, stop in parts))


def _slices(task: Task, slicing: str) -> list[tuple[str, int, int]]:
    """Returns (split, from, to) of each slice."""
    sizes = {name: len(base.index) for name, base in task.bases.items()}
    if slicing in sizes:  # importing TFDS takes half a second
        parts = [(slicing, 0, sizes[slicing])]
    else:
        import tensorflow_datasets as tfds

        infos = {name: SimpleNamespace(num_examples=size) for name, size in sizes.items()}
        try:
            instructions = tfds.core.ReadInstruction.from_spec(slicing).to_absolute(infos)
        except (ValueError, AttributeError) as error:  # slices by shards, which a prepared set has none of, lack more
            why = str(error).splitlines()[0] if isinstance(error, ValueError) else "shards cannot be sliced"
            raise InputError(f"{task.name}: no split {slicing!r} ({why.rstrip('.')}); it has {sizes}") from error
        parts = [
            (part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
            for part in instructions
        ]
    for _, start, stop in parts:
        if start >= stop:
            raise InputError(f"{task.name}: no split {slicing!r} (it is empty); it has {sizes}")
    return parts


def shots(split: Split, k: int, seed: int) -> Split:
    """Selects `k` examples of each class, in the order of `split`.

    They are those with the smallest hashes of (seed, split, id): a smaller `k` gives a subset of a larger one, whatever
    is added to the data set only ever displaces others of its class, and no random generator's version matters.

    Args:
        split: that they are of.
        k: how many.
        seed: which.

    Raises:
        InputError: the task is not `single_label`, or a class has fewer than `k`.
    """
    task = split.task
    if k < 1:
        raise InputError(f"task.shots={k} must be at least 1")
    if not problem_of(task.problem).one_class:
        raise InputError(f"task.shots needs one class per example, {task.name} is {task.problem}; take task.fraction")
    counts = np.bincount(split.labels, minlength=len(task.classes))
    short = [f"class {task.classes[label]!r} has {counts[label]}" for label in np.flatnonzero(counts < k)]
    if short:
        shown = ", ".join(short[:5]) + (" …" if len(short) > 5 else "")
        raise InputError(f"task.shots={k} is too many: of {split.name}, {shown}; take fewer, or a larger slice")
    chosen = np.flatnonzero(_ranks(split, split.labels, seed) < k)
    return split.take(chosen, f"{split.name}, {k} of each class, seed {seed}")


def fraction(split: Split, part: float, seed: int) -> Split:
    """Selects a part of each class, rounded, at least one; for other problems of all examples. Chosen as `shots` does.

    Args:
        split: that they are of.
        part: above 0, at most 1.
        seed: which.

    Raises:
        InputError: the part is not above 0 and at most 1.
    """
    if not 0 < part <= 1:
        raise InputError(f"task.fraction={part} must be above 0 and at most 1")
    strata = split.labels if problem_of(split.task.problem).one_class else np.zeros(len(split), np.int32)
    counts = np.maximum(1, np.floor(part * np.bincount(strata) + 0.5))
    chosen = np.flatnonzero(_ranks(split, strata, seed) < counts[strata])
    return split.take(chosen, f"{split.name}, {part:g} of it, seed {seed}")


def _ranks(split: Split, strata: np.ndarray, seed: int) -> np.ndarray:
    """Returns the place of each example among those of its stratum, from 0, by the hash of what it is called."""
    names = np.repeat([base for base, _ in split.rows], [len(rows) for _, rows in split.rows])
    digests = (
        hashlib.sha256(f"{seed}\0{base}\0{id}".encode()).digest()[:8]
        for base, id in zip(names.tolist(), split.ids, strict=True)
    )
    hashes = np.frombuffer(b"".join(digests), ">u8")
    order = np.lexsort((hashes, strata))
    ranks = np.empty(len(split), np.int64)
    ranks[order] = np.arange(len(split)) - np.searchsorted(strata[order], strata[order])
    return ranks


def with_own_splits(task: Task, config: TaskConfig) -> TaskConfig:
    """Returns a config that names validation and test: where it leaves them unset, the data set's own, or none.

    Which split is whose is said by what people call it (`SPLITS`). One that another of the config's is cut from is not
    taken; nor is any beside those of VTAB-1k, which has its own.
    """
    named = [slicing for slicing in (config.train, config.validation, config.test) if slicing]
    cut_from = {part.partition("[")[0].strip() for slicing in named for part in slicing.split("+")}
    is_apart = "all" not in cut_from and not any(slicing.startswith("vtab:") for slicing in named)
    free = [name for name, base in task.bases.items() if is_apart and name not in cut_from and len(base.index)]
    names = {}
    for split in ("validation", "test"):
        if getattr(config, split) is None:
            own = [name for name in free if SPLITS.get(name.lower()) == split]
            names[split] = split if split in own else next(iter(own), "")
    return dataclasses.replace(config, **names)


def make_splits(task: Task, config: TaskConfig) -> dict[str, Split]:
    """Returns a config's splits, of `train`, `validation` and `test`, with no example in two of them.

    Those that it leaves unset are the data set's own (`with_own_splits`).

    Raises:
        InputError: a split cannot be had; two share examples (before `shots` and `fraction`, so that no seed hides it);
            or validation is cut from the test set.
    """
    if config.shots and config.fraction != 1:
        raise InputError(f"task.shots={config.shots} and task.fraction={config.fraction:g}: set one of them")
    config = with_own_splits(task, config)
    slicings = {"train": config.train, "validation": config.validation, "test": config.test}
    splits = {name: _cut_by_key(task, f"task.{name}", slicing) for name, slicing in slicings.items() if slicing}
    # VTAB validates smallnorb on one half of TFDS's test split and tests on the other: its definition stands.
    own = "validation" in splits and not config.validation.startswith("vtab:")
    if own and "test" in dict(splits["validation"].rows):
        raise InputError(f"task.validation={config.validation!r} is cut from the test set; cut it from train")
    for name, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if name in splits and other in splits:
            _check_apart(name, splits[name], other, splits[other])
    if config.shots:
        splits["train"] = shots(splits["train"], config.shots, config.subset_seed)
    elif config.fraction != 1:
        splits["train"] = fraction(splits["train"], config.fraction, config.subset_seed)
    return splits


def _cut_by_key(task: Task, key: str, slicing: str) -> Split:
    try:
        return cut(task, slicing)
    except InputError as error:
        raise InputError(f"{key}={slicing!r}: {error}") from error


def _check_apart(name: str, split: Split, other_name: str, other: Split) -> None:
    shared = []
    for base, rows in split.rows:
        for other_base, other_rows in other.rows:
            if base == other_base:
                common = np.intersect1d(rows, other_rows)
                shared += split.task.bases[base].index.column("id").take(places_of(common)).to_pylist()
    if shared:
        first = ", ".join(shared[:3]) + (" …" if len(shared) > 3 else "")
        raise InputError(
            f"task.{name}={split.name!r} and task.{other_name}={other.name!r} share {len(shared)} examples ({first}); "
            "cut them apart"
        )
