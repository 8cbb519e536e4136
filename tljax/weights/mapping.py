"""Weight conversion as data: a table of exact names that must explain every array on both sides, and runs backwards."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tljax.errors import InputError
from tljax.io.checked_files import one_line

Shape = tuple[int | None, ...]  # None where any length will do


@dataclass(frozen=True)
class ParamMapping:
    """The place of a source array among ours.

    Attributes:
        source: its name in the file.
        target: our path.
        axes: the order of the source's axes, seen from ours; None where they are the same.
        fold: the shape, its axes turned, that the source has and we have reshaped; -1 for one length not known here.
        part: for several sources that make one target, (start, stop) of this one along `axis` of the target.
        axis: where the parts are joined.
        without: (start, stop) of the source's first axis that the target has no place for: a bias that is masked.
    """

    source: str
    target: str
    axes: tuple[int, ...] | None = None
    fold: tuple[int, ...] | None = None
    part: tuple[int, int] | None = None
    axis: int = -1
    without: tuple[int, int] | None = None

    def to_ours(self, array: np.ndarray, shape: Shape) -> np.ndarray | None:
        """Returns this source's share of the target, or None where the array cannot make it."""
        share = list(shape)
        if self.part:
            share[self.axis] = self.part[1] - self.part[0]
        if self.without is not None:
            if array.ndim == 0 or len(array) < self.without[1]:
                return None
            array = np.delete(array, slice(*self.without), axis=0)
        if self.axes is not None:
            if array.ndim != len(self.axes):
                return None
            array = array.transpose(self.axes)
        if self.fold is not None:
            if not _fits(array.shape, tuple(None if n == -1 else n for n in self.fold)):
                return None
            try:
                array = array.reshape([-1 if n is None else n for n in share])
            except ValueError:  # a length that is not known here is another than ours
                return None
        return array if _fits(array.shape, tuple(share)) else None

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Returns the source array, from the whole target."""
        if self.part:
            array = np.take(array, range(*self.part), axis=self.axis)
        if self.fold is not None:
            array = array.reshape(self.fold)
        if self.axes is not None:
            array = array.transpose(np.argsort(self.axes))
        if self.without is not None:
            start, stop = self.without
            array = np.concatenate(
                [array[:start], np.zeros_like(array, shape=(stop - start, *array.shape[1:])), array[start:]]
            )
        return array


LINEAR = (1, 0)  # [out, in] -> [in, out]
CONV = (2, 3, 1, 0)  # OIHW -> HWIO


def torch_linear(source: str, target: str, part: tuple[int, int] | None = None) -> Iterator[ParamMapping]:
    """Yields a linear layer's `weight` [out, in] and `bias`.

    Args:
        source, target: the layer's names in the file and here.
        part: as in `ParamMapping`.
    """
    yield ParamMapping(f"{source}.weight", f"{target}/kernel", LINEAR, part=part)
    yield ParamMapping(f"{source}.bias", f"{target}/bias", part=part)


def torch_norm(source: str, target: str) -> Iterator[ParamMapping]:
    """Yields a LayerNorm's or GroupNorm's `weight` and `bias`."""
    yield ParamMapping(f"{source}.weight", f"{target}/scale")
    yield ParamMapping(f"{source}.bias", f"{target}/bias")


@dataclass(frozen=True)
class Table:
    """All that is known of a family of checkpoints.

    Attributes:
        mappings: one for each array that the model takes from it.
        ignored: expressions of whole names that are left out on purpose.
        aliases: (expression, replacement), applied in order to each name before it is looked up, for the spellings
            that the same checkpoint may have.
        class_row: whether its position embeddings have a row for the class token where the network's have none.
        copies: (name, sources of mappings) of an array that the checkpoint has once and the network in several places.
    """

    mappings: tuple[ParamMapping, ...]
    ignored: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    class_row: bool = False
    copies: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @cached_property
    def by_source(self) -> dict[str, ParamMapping]:
        """Returns the mapping for each canonical name."""
        return {mapping.source: mapping for mapping in self.mappings}

    def canonical(self, name: str) -> str:
        """Returns the name that the mappings know an array by: without what trainers and wrappers put before it."""
        rest = name
        for _ in range(_MAX_WRAPPERS):
            spelling = self._spelling(rest)
            if spelling in self.by_source or spelling in dict(self.copies) or self.ignores(spelling):
                return spelling
            wrapper = _WRAPPER.match(rest)
            if wrapper is None:
                break
            rest = rest[wrapper.end() :]
        return self._spelling(name)

    def ignores(self, spelling: str) -> bool:
        """Tells whether an array is left out on purpose."""
        return any(re.fullmatch(pattern, spelling) for pattern in self.ignored)

    def _spelling(self, name: str) -> str:
        for pattern, replacement in self.aliases:
            name = re.sub(pattern, replacement, name)
        return name


# Of torch's DistributedDataParallel and compile, Lightning's and others' modules, TimmWrapper, DINO's teacher.
_WRAPPER = re.compile(r"(module|_orig_mod|model|net|timm_model|teacher|backbone)\.")
_MAX_WRAPPERS = 8


class Conversion(NamedTuple):
    """A converted checkpoint: flat `path -> array`, and the source names left out."""

    arrays: dict[str, np.ndarray]
    ignored: tuple[str, ...]


def convert(
    source: Mapping, table: Table, targets: Mapping[str, Shape], optional: frozenset[str] = frozenset()
) -> Conversion:
    """Converts a checkpoint so that nothing is lost or made up.

    Args:
        source: name -> array, as the file has them; read one at a time, so no type checker may look into it.
        table: says what each name means.
        targets: path -> shape of every array that the model takes.
        optional: targets that a checkpoint may lack.

    Raises:
        InputError: a source name that no mapping covers, a target left empty or filled twice, or a shape that differs;
            all such faults are listed together, with both sides' names.
    """
    by_target, ignored, unknown = _sort(source, table)
    empty = [path for path in targets if path not in by_target and path not in optional]
    faults = [
        f"no mapping for source {name} {source[name].shape}{_nearest(table.canonical(name), table.by_source)}"
        for name in unknown[:_SHOWN]
    ]
    faults += [f"nothing fills target {path} {targets[path]}{_nearest(path, by_target)}" for path in empty[:_SHOWN]]
    hidden = len(unknown[_SHOWN:]) + len(empty[_SHOWN:])
    arrays = {}
    for path, parts in by_target.items():
        names = " + ".join(name for _, name in parts)
        if path not in targets:
            faults.append(f"source {names} goes to {path}, which the model lacks{_nearest(path, targets)}")
        elif len({mapping.source for mapping, _ in parts}) < len(parts):
            faults.append(f"target {path} is filled more than once: {names}")
        elif (array := _join(source, parts, targets[path])) is None:
            shapes = " + ".join(str(source[name].shape) for _, name in parts)
            faults.append(f"source {names} {shapes} does not make target {path} {targets[path]}")
        elif reason := _unusable(array):
            faults.append(f"source {names} {reason}")
        else:
            arrays[path] = array
    if faults:
        hidden += len(faults[_SHOWN:])
        shown = "; ".join(faults[:_SHOWN]) + (f"; and {hidden} more" if hidden else "")
        raise InputError(one_line(f"the checkpoint and the model do not fit: {shown}", 4000))
    return Conversion(arrays, tuple(ignored))


_SHOWN = 8


def _sort(source: Mapping, table: Table) -> tuple[dict[str, list[tuple[ParamMapping, str]]], list[str], list[str]]:
    """Returns the names that go to each target with their mappings, those left out on purpose, and the unknown."""
    by_target: dict[str, list[tuple[ParamMapping, str]]] = defaultdict(list)
    ignored, unknown = [], []
    for name in source:
        canonical = table.canonical(name)
        sources = dict(table.copies).get(canonical, (canonical,))
        if sources[0] in table.by_source:
            for mapping in map(table.by_source.__getitem__, sources):
                by_target[mapping.target].append((mapping, name))
        else:
            (ignored if table.ignores(canonical) else unknown).append(name)
    return by_target, ignored, unknown


def _unusable(array: np.ndarray) -> str:
    """Returns why an array cannot be weights, if so: its type, or a value that float32 has no number for."""
    if array.dtype not in _FLOATS:
        return f"is of {array.dtype}, no weights"
    limit = float(np.finfo(np.float32).max)
    if array.size and not (-limit <= float(array.min()) and float(array.max()) <= limit):
        return "holds values that are not finite numbers (NaN or infinite): the file is damaged or its training failed"
    return ""


_FLOATS = [np.dtype(kind) for kind in (np.float32, np.float16, np.float64, ml_dtypes.bfloat16)]


def unconvert(arrays: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """Returns arrays under the source's canonical names and in its layout, the inverse of `convert`."""
    return {
        mapping.source: np.ascontiguousarray(mapping.to_theirs(arrays[mapping.target]))
        for mapping in table.mappings
        if mapping.target in arrays
    }


def _join(source: Mapping, parts: list[tuple[ParamMapping, str]], shape: Shape) -> np.ndarray | None:
    """Returns the parts in order, each turned, as an array; None where they do not make one of this shape."""
    parts = sorted(parts, key=lambda item: item[0].part or (0, 0))
    arrays = [mapping.to_ours(source[name], shape) for mapping, name in parts]
    if any(array is None for array in arrays):
        return None
    whole = np.ascontiguousarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays, parts[0][0].axis))
    return whole if _fits(whole.shape, shape) else None


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    return len(shape) == len(expected) and all(b in (a, None) for a, b in zip(shape, expected, strict=True))


def _nearest(path: str, others: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(path, others, n=1, cutoff=0.8)
    return f" (nearest: {near[0]})" if near else ""
