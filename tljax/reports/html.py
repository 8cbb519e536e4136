"""One HTML page with all of a report, which asks for nothing beside itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tljax.reports import tables
from tljax.reports.figure_style import COLORS, GLYPHS, Drawing, inline
from tljax.reports.formatting import NOTHING, counted
from tljax.reports.runs import Run, Unfinished
from tljax.reports.schema import LeftOut, Method, Section, Setting
from tljax.reports.statistics import mean_and_deviation
from tljax.reports.text import finding, protocol, reading
from tljax.streams import shown


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown, what a column is sorted by, and how it is marked: `best`, `tied` or not."""

    text: str
    key: float | str
    mark: str = ""


def page(
    sections: Sequence[Section], drawings: Sequence[Sequence[Drawing]], unfinished: Sequence[Unfinished], command: str
) -> str:
    """Returns the page.

    Args:
        sections: of each data set.
        drawings: the figures of each section.
        unfinished: runs that are in no section.
        command: of the report.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tljax.reports", "assets")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    numbers = {run: number for number, run in enumerate((run for section in sections for run in section.runs), 1)}
    pairs = enumerate(zip(sections, drawings, strict=True), 1)
    listed = [_section(f"s{number}", section, figures) for number, (section, figures) in pairs]
    runs = counted(len(numbers), "finished run")
    return environment.get_template("page.html").render(
        title=", ".join(section.title for section in sections),
        summary=f"{runs}, {counted(sum(len(section.methods) for section in sections), 'method')}",
        sections=listed,
        number=numbers,
        unfinished=unfinished,
        command=command,
        css=_text("page.css"),
        js=_text("page.js"),
        nothing=NOTHING,
    )


def _shown(value: Any) -> Any:
    return shown(value) if type(value) is str else value


def _text(name: str) -> str:
    from importlib.resources import files

    return (files("tljax.reports") / "assets" / name).read_text(encoding="utf-8")


def _section(key: str, section: Section, drawings: Sequence[Drawing]) -> dict[str, Any]:
    differing = _differing(section.runs)
    versions = {tuple((run.origin["versions"] or {}).items()) for run in section.runs}
    return {
        "key": key,
        "title": section.title,
        "finding": finding(section),
        "protocol": " ".join(protocol(section)),
        "reading": reading(section),
        "heads": tables.columns(section),
        "methods": [_method(section, number, method) for number, method in enumerate(section.methods)],
        "tried": [
            _tried(section, number, setting)
            for number, method in enumerate(section.everything)
            for setting in method.settings
        ],
        "selected_by": f"validation {section.selected_scale.title}",
        "groups": [_group(section, number, method, differing) for number, method in enumerate(section.everything)],
        "left_out": section.left_out,
        "versions": dict(versions.pop()) if len(versions) == 1 else None,
        "drawn": [(drawing, f"{key}-{drawing.name}", inline(drawing, f"{key}-{drawing.name}")) for drawing in drawings],
    }


def _method(section: Section, number: int, method: Method) -> dict[str, Any]:
    texts, against = tables.row(section, method)[1:-2], method.against  # name, seeds and setting are the template's
    nothing = float("-inf")
    keys = [round(method.mean, 12), round(method.low, 12)]  # what is equal but for rounding keeps its place
    if section.baseline is not None:
        keys += [against.difference, against.adjusted] if against else [nothing, 2.0]
    keys += [method.cost("trainable_params"), method.cost("step_flops"), method.cost("step_share_of_full")]
    cells = [Cell(text, key) for text, key in zip(texts, [*keys, method.seconds], strict=True)]
    if len(section.methods) > 1:
        mark = "best" if method.best else "tied" if method.tied else ""
        cells[0] = Cell(texts[0], keys[0], mark)
    return {
        "name": method.name,
        "setting": method.setting.words,
        "glyph": GLYPHS[number % len(GLYPHS)],
        "series": number % len(COLORS),
        "baseline": method is section.baseline,
        "runs": method.runs,
        "cells": cells,
    }


def _tried(section: Section, number: int, setting: Setting) -> dict[str, Any]:
    values, scale = setting.validation, section.selected_scale
    mean, deviation = mean_and_deviation(values) if values else (float("nan"), float("nan"))
    return {
        "method": section.everything[number].name,
        "group": number,
        "setting": setting,
        "value": Cell(scale.spread(mean, deviation), mean if values else float("-inf")),
    }


def _group(section: Section, number: int, method: Method | LeftOut, differing: Sequence[str]) -> dict[str, Any]:
    """Returns a method's runs, as the appendix lists them."""
    runs = []
    for setting in method.settings:
        for run in setting.runs:
            scores = []
            for split, scale in (("validation", section.selected_scale), (section.options.split, section.scale)):
                metrics = run.metrics(split)
                if metrics:
                    scores.append(f"{split} {scale.title}: {scale.text(metrics[scale.metric])}")
            runs.append(
                {
                    "run": run,
                    "setting": setting,
                    "scores": list(dict.fromkeys(scores)),
                    "differs": {key: run.values.get(key) for key in differing},
                    "peeked": run in section.peeked,
                    "command": " \\\n  ".join([" ".join(run.command[:2]), *run.command[2:]]),
                }
            )
    return {"number": number, "name": method.name, "runs": runs}


def _differing(runs: Sequence[Run]) -> list[str]:
    """Returns the keys of which runs have different values."""
    keys = dict.fromkeys(key for run in runs for key in run.values)
    return [key for key in keys if len({repr(run.values.get(key)) for run in runs}) > 1]
