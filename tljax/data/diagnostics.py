"""What is wrong with a data set, as far as its index tells: nothing is decoded."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from tljax import console
from tljax.data.dataset import Split, Task, values_of
from tljax.data.input_spec import INPUTS
from tljax.problems.registry import problem_of
from tljax.streams import in_one_line

_SHOWN = 20  # classes in a table
_PAIRS = 5  # examples of a finding


def examine(task: Task, splits: Mapping[str, Split], size: int = 0) -> dict[str, Any]:
    """Examines what a task's index tells; the report can be held by JSON.

    Args:
        task: the data set.
        splits: as a run uses them, by name.
        size: pixels along each side of what the network takes; 0 leaves out how many pictures are smaller.

    Returns:
        `splits`: name -> `slicing`, `examples` and, as the task has them, `classes`, `targets`, `classes_per_example`,
        `height`, `width`, `sizes`, `smaller`, `bytes`; `skipped` and `notes`, as in `Task`; `copies` and `conflicts`
        (`_copies`, `_conflicts`); `warnings`: a sentence for each finding that makes a number wrong.
    """
    report: dict[str, Any] = {
        "task": task.name,
        "kind": task.kind,
        "problem": task.problem,
        "input_size": size,
        "splits": {name: _labels(split) | _inputs(split, size) for name, split in splits.items()},
        "skipped": [dict(example) for example in task.skipped],
        "notes": [dict(example) for example in task.notes],
    }
    repeated = _repeated(splits)
    report["copies"] = _copies(repeated, list(splits))
    report["conflicts"] = _conflicts(repeated, task)
    report["warnings"] = [*_about_copies(report), *_about_labels(report)]
    return report


def _labels(split: Split) -> dict[str, Any]:
    """Counts the examples of each class, or the range of each target."""
    task, labels = split.task, split.labels
    report: dict[str, Any] = {"slicing": split.name, "examples": len(split)}
    problem = problem_of(task.problem)
    if not problem.has_classes:
        columns = zip(task.classes, labels.T.astype(np.float64), strict=True)
        return report | {"targets": {name: _spread(values) for name, values in columns}}
    if not problem.one_class:
        counts = labels.sum(axis=0, dtype=np.float64).astype(int)
        report["classes_per_example"] = _spread(labels.sum(axis=1)) | {"mean": float(labels.sum() / len(labels))}
    else:
        counts = np.bincount(labels, minlength=len(task.classes))
    return report | {
        "classes": dict(zip(task.classes, counts.tolist(), strict=True)),
        "smallest": int(counts.min()),
        "largest": int(counts.max()),
        "imbalance": float(counts.max() / counts.min()) if counts.min() else None,
    }


def _inputs(split: Split, size: int) -> dict[str, Any]:
    """Summarizes sizes of pictures in pixels, or lengths of texts in bytes of UTF-8."""
    columns = INPUTS[split.task.kind].size_columns
    summary: dict[str, Any] = {name: _spread(values_of(split.column(name))) for name in columns}
    if "height" in columns:
        height, width = split.sizes.T
        summary["sizes"] = len(np.unique(height.astype(np.int64) << 32 | width))
        if size:
            summary["smaller"] = int((np.minimum(height, width) < size).sum())
    return summary


def _spread(values: np.ndarray) -> dict[str, int | float]:
    return {"min": values.min().item(), "median": float(np.median(values)), "max": values.max().item()}


def _repeated(splits: Mapping[str, Split]) -> list[list[tuple[str, str, Any]]]:
    """Lists (split, id, label) of the examples with equal content, for each content that occurs more than once."""
    if not splits:
        return []
    content = pa.concat_arrays([chunk for split in splits.values() for chunk in split.column("sha256").chunks])
    codes = values_of(content.dictionary_encode().indices)
    places = np.flatnonzero(np.bincount(codes)[codes] > 1)
    names, starts = list(splits), np.cumsum([0, *map(len, splits.values())])
    examples: dict[int, list[tuple[str, str, Any]]] = {}
    for place in places.tolist():
        number = int(np.searchsorted(starts, place, side="right")) - 1
        split, own = splits[names[number]], place - starts[number]
        examples.setdefault(int(codes[place]), []).append((names[number], split.ids[own], split.labels[own].tolist()))
    return list(examples.values())


def _copies(repeated: Sequence[Sequence[tuple[str, str, Any]]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Reports each pair of splits, or split by itself, that share content.

    `count` is of examples in the second split whose content is in the first, or of a split that are another's copy;
    `pairs` are the ids of the first five.
    """
    report = []
    for i, first in enumerate(names):
        for other in names[i:]:
            count, pairs = 0, []
            for group in repeated:
                first_ids = [id for split, id, _ in group if split == first]
                second_ids = first_ids[1:] if first == other else [id for split, id, _ in group if split == other]
                if first_ids and second_ids:
                    count += len(second_ids)
                    pairs.append([first_ids[0], second_ids[0]])
            if count:
                report.append({"splits": [first, other], "count": count, "pairs": pairs[:_PAIRS]})
    return report


def _conflicts(repeated: Sequence[Sequence[tuple[str, str, Any]]], task: Task) -> dict[str, Any]:
    """Counts contents that have two labels, one of which must be wrong; `pairs` are five of [split, id, label]."""
    pairs, text = [], problem_of(task.problem).label_text
    for group in repeated:
        other = next((example for example in group if example[2] != group[0][2]), None)
        if other:
            pairs.append([[split, id, text(label, task.classes)] for split, id, label in (group[0], other)])
    return {"count": len(pairs), "pairs": pairs[:_PAIRS]}


def _about_copies(report: Mapping[str, Any]) -> Iterable[str]:
    for copies in report["copies"]:
        first, other = copies["splits"]
        if first != other:
            listed = ", ".join(f"{id} = {copy}" for id, copy in copies["pairs"])
            yield f"examples of {other} that {first} has too, by content: {copies['count']} ({listed})"
    conflicts = report["conflicts"]
    if conflicts["count"]:
        pairs = (" / ".join(f"{id} in {split}: {label}" for split, id, label in p) for p in conflicts["pairs"])
        listed = ", ".join(pairs)
        yield f"contents with two labels: {conflicts['count']} ({listed})"


def _about_labels(report: Mapping[str, Any]) -> Iterable[str]:
    for name, split in report["splits"].items():
        absent = [label for label, count in split.get("classes", {}).items() if not count]
        if absent:
            shown = ", ".join(absent[:_PAIRS]) + (" …" if len(absent) > _PAIRS else "")
            yield f"classes without an example in {name}: {len(absent)} of {len(split['classes'])} ({shown})"
        for target, spread in split.get("targets", {}).items():
            if spread["min"] == spread["max"]:
                yield f"{target} is {spread['min']:g} throughout {name}"
    if report["skipped"]:
        first = report["skipped"][0]
        yield f"examples skipped: {len(report['skipped'])} (the first is {first['id']}: {first['reason']})"


def show(report: Mapping[str, Any]) -> None:
    """Prints the tables of a report, then a line for each warning."""
    splits = report["splits"]
    rows: dict[str, list[str]] = {}
    for split in splits.values():
        for label, text in _summary(split).items():
            rows.setdefault(label, []).append(text)
    console.table(report["task"], ("", *splits), ([label, *texts] for label, texts in rows.items()))
    if splits and all("classes" in split for split in splits.values()):
        _show_classes(splits)
    for copies in report["copies"]:
        split, again = copies["splits"]
        if split == again:
            listed = ", ".join(f"{id} = {copy}" for id, copy in copies["pairs"])
            console.console.print(f"examples of {split} that are another's copy: {copies['count']} ({listed})")
    for example in report["notes"]:
        console.console.print(f"{example['id']} in {example['split']}: {example['note']}")
    for example in report["skipped"]:
        console.console.print(f"skipped, of {example['split']}: {example['reason']}")
    warn(report)


def warn(report: Mapping[str, Any]) -> None:
    """Prints a line for each warning."""
    for warning in report["warnings"]:
        console.console.print(f"WARNING: {warning}")


def _summary(split: Mapping[str, Any]) -> dict[str, str]:
    summary = {"slicing": split["slicing"], "examples": f"{split['examples']:,}"}
    if "classes" in split:
        summary["of a class"] = f"{split['smallest']:,} … {split['largest']:,}"
        summary["imbalance"] = f"{split['imbalance']:.1f}" if split["imbalance"] else "∞"
    if "classes_per_example" in split:
        summary["classes of each"] = (
            f"{_range(split['classes_per_example'])}, mean {split['classes_per_example']['mean']:.2f}"
        )
    summary |= {name: _range(spread) for name, spread in split.get("targets", {}).items()}
    summary |= {name: _range(split[name]) for name in ("height", "width", "bytes") if name in split}
    if "sizes" in split:
        summary["sizes"] = f"{split['sizes']:,}"
    if "smaller" in split:
        summary["smaller than the input"] = f"{split['smaller']:,}"
    return summary


def _range(spread: Mapping[str, float]) -> str:
    """Shows the lowest, the median and the highest value."""
    return f"{spread['min']:.6g} … {spread['median']:.6g} … {spread['max']:.6g}"


def _show_classes(splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints the count of every class, or of the most and the least frequent of the first split."""
    counts = next(iter(splits.values()))["classes"]
    by_count = sorted(counts, key=lambda name: -counts[name])
    rows = [[name, *(f"{split['classes'][name]:,}" for split in splits.values())] for name in by_count]
    if len(rows) > _SHOWN:
        half = _SHOWN // 2
        rows[half:-half] = [[f"… {len(rows) - _SHOWN} more", *("…" for _ in splits)]]
    console.table("examples of each class", ("", *splits), rows)


_ROWS = 12  # classes on a sheet
_INCHES = 1.2  # of a picture's side


def contact_sheet(
    pictures: Mapping[str, Sequence[UInt8[np.ndarray, "size size channels"]]], path: Path, title: str
) -> None:
    """Draws a PNG: a row for each class, at most 12, of its pictures as the network gets them.

    Args:
        pictures: class name -> pictures of 1 (grey), 3 or 4 (with alpha) channels, all of one size.
        path: the file; its folder is made.
        title: what they are; how many classes were left out is added.
    """
    from matplotlib.figure import Figure

    shown = dict(list(pictures.items())[:_ROWS])
    if len(pictures) > len(shown):
        title += f" ({len(shown)} of {len(pictures)} classes)"
    columns = max(map(len, shown.values()))
    figure = Figure(figsize=(_INCHES * columns + 2, _INCHES * len(shown) + 0.6), layout="constrained")
    cells = figure.subplots(len(shown), columns, squeeze=False)
    for row, (name, row_pictures) in zip(cells, shown.items(), strict=True):
        for axes, picture in zip(row, row_pictures, strict=False):
            axes.imshow(picture if picture.shape[-1] > 1 else picture.repeat(3, axis=-1))
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        label = in_one_line(name if len(name) <= 24 else name[:23] + "…")
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", parse_math=False)  # a name may have a $
    figure.suptitle(title, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
