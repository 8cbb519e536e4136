"""The figures of a section, from what it compares."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tljax.config.schema import Experiment
from tljax.evals import plots
from tljax.reports import statistics
from tljax.reports.figure_style import COLORS, GRID, INK, MARKERS, Drawing
from tljax.reports.formatting import compact
from tljax.reports.run_metrics import pooled
from tljax.reports.schema import Method, Section
from tljax.streams import in_one_line
from tljax.sweeps import selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 150  # of a curve, above which no eye sees a difference
_SHOWN = 20  # classes whose change is drawn
_CELLS = 12  # classes up to which what has a cell for each fits half of a page
_CONFUSED = 40  # and up to which a confusion matrix fits a whole one


def drawings(section: Section) -> Iterator[Drawing]:
    """Yields the figures that the section's runs have something to draw for, in the order of the page."""
    yield from _costs(section)
    yield from _efficiency(section)
    yield from _learning(section)
    metrics = section.methods[0].run_metrics[0]
    if metrics.bins is not None:
        yield _reliability(section)
    if metrics.confused is not None and section.baseline is not None:
        yield _per_class(section)
    if metrics.confused is not None and len(_classes(section)) <= _CONFUSED:
        yield from _confusions(section)


def look(number: int) -> dict[str, Any]:
    """Returns color and marker of the method in a place of the table."""
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}


def _costs(section: Section) -> Iterator[Drawing]:
    axis_costs = {
        "parameters": ("parameters that train", lambda method: method.cost("trainable_params")),
        "flops": ("GFLOP of a training step", lambda method: method.cost("step_flops") / 1e9),
        "time": ("wall time of a run, s", lambda method: method.seconds),
    }
    title, sign = section.scale.title, -1 if section.scale.less_is_better else 1
    for name, (label, cost) in axis_costs.items():
        figure, axes = _figure(section, len(section.methods))
        spent = np.array([cost(method) for method in section.methods])
        for number, method in enumerate(section.methods):
            _point(section, axes, spent[number], method, number)
        front = statistics.pareto(spent, sign * np.array([method.mean for method in section.methods]))
        reached = [section.scale.shown(section.methods[i].mean) for i in front]
        axes.step(spent[front], reached, where="post", color=INK, linewidth=0.8, linestyle=":", zorder=1)
        axes.set(xlabel=label, ylabel=f"{section.options.split} {title}")
        _cost_axis(axes, spent)
        _legend(figure)
        caption = "The dotted line joins those that no other beats at no more cost (Pareto front); bars: 95% intervals."
        metric = section.scale.metric.replace("_", " ").capitalize()
        yield Drawing(name, f"{metric} against {label}", caption, figure)


def _efficiency(section: Section) -> Iterator[Drawing]:
    families = by_training_examples(section)
    if not families:
        return
    figure, axes = _figure(section, len(families))
    for number, (name, members) in enumerate(families.items()):
        sizes = [method.runs[0].resolved.train_examples for method in members]
        for size, method in zip(sizes, members, strict=True):
            _point(section, axes, size, method, number, label="")
        means = [section.scale.shown(method.mean) for method in members]
        axes.plot(sizes, means, label=name, markersize=4, **look(number))
    axes.set(xlabel="training examples", ylabel=f"{section.options.split} {section.scale.title}")
    all_methods = [method for members in families.values() for method in members]
    _cost_axis(axes, np.array([method.runs[0].resolved.train_examples for method in all_methods]))
    _legend(figure)
    yield Drawing("efficiency", "Data efficiency", "Methods that differ in training examples alone, joined.", figure)


def _learning(section: Section) -> Iterator[Drawing]:
    metric, scale = section.selected_by, section.selected_scale
    for split, key, label, unit in (
        ("validation", metric, f"validation {scale.title}", scale.shown(1.0)),
        ("train", "loss", "training loss", 1.0),
    ):
        figure, axes = _figure(section, len(section.methods))
        for number, method in enumerate(section.methods):
            steps, values = over_steps(method, split, key)
            if len(steps) < 2:
                continue
            values = unit * values
            mean, color = values.mean(axis=0), look(number)["color"]
            axes.plot(steps, mean, label=method.name, color=color, marker=look(number)["marker"], markersize=3)
            if len(values) > 1:
                spread = values.std(axis=0, ddof=1)
                axes.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.18, linewidth=0)
        if not axes.lines:
            continue
        axes.set(xlabel="step", ylabel=label)
        _legend(figure)
        caption = "Mean over the seeds of each chosen setting; bands: one standard deviation to each side."
        lacking = len(section.methods) - len(axes.lines)
        if lacking:
            caption += f" {lacking} of {len(section.methods)} methods have logged it at one step only, and no curve."
        yield Drawing(f"learning-{split}", f"Learning curves: {label.removesuffix(', %')}", caption, figure)


def _per_class(section: Section) -> Drawing:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    classes, base = _classes(section), _recall(section.baseline)
    rest = [method for method in section.methods if method is not section.baseline]
    changes = 100 * np.stack([_recall(method) - base for method in rest])
    most = np.sort(np.argsort(-np.abs(np.nan_to_num(changes)).max(axis=0), kind="stable")[:_SHOWN])
    changes, names = changes[:, most], [classes[i] for i in most]
    bound = max(1.0, np.nanmax(np.abs(changes)))
    figure = Figure(figsize=(max(4.2, 2.4 + 0.45 * len(names)), 1.6 + 0.3 * len(rest)), layout="constrained")
    axes = figure.subplots()
    loss, gain = COLORS[1], COLORS[0]
    shades = LinearSegmentedColormap.from_list("change", [(loss, 1.0), (loss, 0.0), (gain, 0.0), (gain, 1.0)])
    axes.pcolormesh(changes, cmap=shades, vmin=-bound, vmax=bound, edgecolors=GRID, linewidth=0.5)
    for (row, column), change in np.ndenumerate(changes):
        if not np.isnan(change):
            color = "white" if abs(change) > 0.75 * bound else INK
            text = f"{change:+.0f}".replace("-", "−")
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color, fontsize=7.5)
    axes.set_xticks(np.arange(len(names)) + 0.5, [_short(name) for name in names], rotation=90 if _long(names) else 0)
    axes.set_yticks(np.arange(len(rest)) + 0.5, [_short(method.name, 36) for method in rest])
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    subset = (
        f"the {len(names)} of {len(classes)} classes that change most" if len(classes) > len(names) else "each class"
    )
    caption = f"Points of recall gained (+) or lost (−) beside {section.baseline.name}, mean over seeds; {subset}."
    return Drawing("per-class", "Change by class", caption, figure, "half" if len(names) <= _CELLS else "full")


def _reliability(section: Section) -> Drawing:
    figure, axes = _figure(section, len(section.methods))
    axes.plot((0, 1), (0, 1), ":", color=INK, linewidth=0.8)
    for number, method in enumerate(section.methods):
        bins = pooled([metrics.bins for metrics in method.run_metrics])
        is_filled = bins.count > 0
        label = f"{method.name} (ECE {bins.ece:.3f})"
        axes.plot(bins.confidence[is_filled], bins.accuracy[is_filled], label=label, markersize=3.5, **look(number))
    axes.set(xlabel="confidence", ylabel="part that comes true", xlim=(0, 1), ylim=(0, 1))
    _legend(figure)
    caption = "How often a confidence comes true, in 15 bins (arXiv:1706.04599), all seeds together; dotted: ideal."
    return Drawing("reliability", "Reliability", caption, figure)


def _confusions(section: Section) -> Iterator[Drawing]:
    for method in dict.fromkeys((section.best, section.baseline or section.best)):
        counts = np.mean([metrics.confused for metrics in method.run_metrics], axis=0)
        picture = plots.confusions(counts, _classes(section))
        name = "confusion-best" if method is section.best else "confusion-baseline"
        seeds = f", mean over {len(method.run_metrics)} seeds" if len(method.run_metrics) > 1 else ""
        caption = f"Examples of each class by what they are taken for{seeds}."
        yield Drawing(name, f"Confusion: {method.name}", caption, picture, "half" if len(counts) <= _CELLS else "full")


def _figure(section: Section, entries: int) -> tuple[Any, "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 2.9 + 0.17 * entries), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Any) -> None:
    figure.legend(loc="outside lower left", ncols=1, borderaxespad=0.2, labelspacing=0.25)


def _point(section: Section, axes: "Axes", x: float, method: Method, number: int, label: str | None = None) -> None:
    """Draws a method's mean over its cost, with its interval."""
    mean, low, high = (section.scale.shown(value) for value in (method.mean, method.low, method.high))
    text = _short(method.name, 44) if label is None else label
    apart = [[max(mean - low, 0)], [max(high - mean, 0)]]  # a mean may lie outside of an interval of quantiles
    axes.errorbar(x, mean, apart, label=text, linestyle="none", markersize=6, elinewidth=1, **look(number))


def _cost_axis(axes: "Axes", values: np.ndarray) -> None:
    """Makes the axis logarithmic where values are far apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = values.min(), values.max()
    if low > 0 and high > 5 * low:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    shown: Callable[[float, Any], str] = lambda value, _: compact(value)  # noqa: E731
    axes.xaxis.set_major_formatter(FuncFormatter(shown))


def _recall(method: Method) -> np.ndarray:
    """Returns the recall of each class, over all seeds together; NaN of a class that does not occur."""
    counts = np.sum([metrics.confused for metrics in method.run_metrics], axis=0)
    occur = counts.sum(axis=1)
    return np.divide(np.diag(counts), occur, out=np.full(len(counts), np.nan), where=occur > 0)


def _classes(section: Section) -> Sequence[str]:
    return [in_one_line(name) for name in section.runs[0].resolved.classes]


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _long(names: Sequence[str]) -> bool:
    return max(map(len, names)) > 4


def over_steps(method: Method, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps at which every run of a method logged a metric [steps], and its values [seeds, steps].

    Of long logs, every so many steps are taken.

    Args:
        method: whose runs.
        split: of which the metric is.
        metric: its name.
    """
    logged = []
    for run in method.runs:
        lines = [line for line in run.folder.metrics if line["split"] == split and metric in line]
        logged.append({line["step"]: line[metric] for line in lines})
    steps = sorted(set.intersection(*(set(values) for values in logged)))
    steps = steps[:: -(-len(steps) // _POINTS)] if steps else []
    return np.array(steps, int), np.array([[values[step] for step in steps] for values in logged], float)


def by_training_examples(section: Section) -> dict[str, list[Method]]:
    """Returns name -> methods that differ in their training examples alone, by how many they have (two or more)."""
    families: dict[Experiment, list[Method]] = {}
    for method in section.methods:
        families.setdefault(_without_examples(method, section), []).append(method)
    by_examples = {}
    for name, members in zip(selection.names(list(families)), families.values(), strict=True):
        if len({method.runs[0].resolved.train_examples for method in members}) > 1:
            by_examples[name] = sorted(members, key=lambda method: method.runs[0].resolved.train_examples)
    return by_examples


def _without_examples(method: Method, section: Section) -> Experiment:
    experiment = selection.method_of(method.runs[0].experiment, section.options.tuned)
    task = dataclasses.replace(experiment.task, train="train", shots=0, fraction=1.0, subset_seed=0)
    return dataclasses.replace(experiment, task=task)
