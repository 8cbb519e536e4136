"""Weight conversion as data: an ordered table of rules that must explain every name on both sides."""

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tljax.errors import InputError


@dataclass(frozen=True)
class Layout:
    """The order of an array's axes in the source, seen from ours; None where they are the same."""

    axes: tuple[int, ...] | None

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        return array if self.axes is None else array.transpose(self.axes)


SAME = Layout(None)
LINEAR = Layout((1, 0))  # [out, in] -> [in, out]
CONV = Layout((2, 3, 1, 0))  # OIHW -> HWIO


@dataclass(frozen=True)
class Rule:
    """Where one family of source arrays goes.

    Attributes:
        source: a regular expression that a source name must match whole.
        target: our path, with the expression's groups as `\\1`; None says that the array is left out on purpose.
        layout: how the array must be turned.
        part: for several sources that make one target, this one's place in it.
        axis: the axis along which the parts are joined.
    """

    source: str
    target: str | None
    layout: Layout = SAME
    part: int | None = None
    axis: int = -1


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint: flat `path -> array`, and the source names left out."""

    arrays: dict[str, np.ndarray]
    ignored: tuple[str, ...]


def convert(
    source: Mapping[str, np.ndarray], rules: Sequence[Rule], targets: Mapping[str, tuple[int, ...]]
) -> Conversion:
    """Converts a checkpoint so that nothing is lost or made up.

    Args:
        source: name -> array, as the file has them.
        rules: tried in order; the first whose `source` matches decides.
        targets: path -> shape of every array that the model needs.

    Raises:
        InputError: a source name that no rule covers, a target left empty or filled twice, or a shape that differs;
            all such faults are listed together, with both sides' names.
    """
    parts: dict[str, list[tuple[Rule, str]]] = defaultdict(list)
    ignored, unknown = [], []
    for name in source:
        matches = ((rule, re.fullmatch(rule.source, name)) for rule in rules)
        rule, match = next(((rule, match) for rule, match in matches if match), (None, None))
        if rule is None:
            unknown.append(name)
        elif rule.target is None:
            ignored.append(name)
        else:
            parts[match.expand(rule.target)].append((rule, name))
    faults = [f"no rule for source {name} {source[name].shape}" for name in unknown]
    faults += [
        f"nothing fills target {path} {targets[path]}{_nearest(path, parts)}" for path in targets if path not in parts
    ]
    arrays = {}
    for path, found in parts.items():
        names = " + ".join(name for _, name in found)
        if path not in targets:
            faults.append(f"source {names} goes to {path}, which the model lacks{_nearest(path, targets)}")
        elif len({rule.part for rule, _ in found}) < len(found) or (len(found) > 1 and found[0][0].part is None):
            faults.append(f"target {path} is filled more than once: {names}")
        else:
            arrays[path] = _join(source, found)
            if arrays[path] is None or arrays[path].shape != targets[path]:
                given = " + ".join(str(source[name].shape) for _, name in found)
                faults.append(f"source {names} {given} does not make target {path} {targets[path]}")
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise InputError(f"the checkpoint and the model do not fit: {shown}")
    return Conversion(arrays, tuple(ignored))


def _join(source: Mapping[str, np.ndarray], found: list[tuple[Rule, str]]) -> np.ndarray | None:
    """The parts in order, each turned, as one array; None where their shapes do not allow it."""
    found = sorted(found, key=lambda item: item[0].part or 0)
    try:
        arrays = [rule.layout.to_ours(source[name]) for rule, name in found]
        return np.ascontiguousarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays, found[0][0].axis))
    except ValueError:
        return None


def _nearest(path: str, others: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(path, others, n=1, cutoff=0.8)
    return f" (nearest: {near[0]})" if near else ""
