"""The tables of a report: Markdown and LaTeX for people, CSV for programs."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tljax.reports.formatting import NOTHING, compact, probability, seconds
from tljax.reports.schema import Method, Section
from tljax.reports.text import protocol, reading

if TYPE_CHECKING:
    import pandas as pd


def columns(section: Section) -> list[str]:
    """Returns the heads of a table for people: the first and the last column hold names, the others numbers."""
    compared = ["difference", "p"] if section.baseline else []
    costs = ["trainable", "GFLOP", "÷ full", "time, s"]
    title = f"{section.options.split} {section.scale.title}"
    return ["method", title, "95% interval", *compared, *costs, "seeds", "setting"]


def row(section: Section, method: Method) -> list[str]:
    """Returns a method's cells under `columns`, none of them marked."""
    scale, against = section.scale, method.against
    compared = [NOTHING, NOTHING] if section.baseline else []
    if against:
        compared = [scale.text(against.difference, sign=True), probability(against.adjusted)]
    return [
        method.name,
        scale.spread(method.mean, method.deviation),
        scale.interval(method.low, method.high),
        *compared,
        compact(method.cost("trainable_params")),
        f"{method.cost('step_flops') / 1e9:.4g}",
        f"{method.cost('step_share_of_full'):.2f}",
        seconds(method.seconds),
        str(len(method.runs)),
        method.setting.words or NOTHING,
    ]


def markdown(sections: Sequence[Section]) -> str:
    """Returns each section's table, under its name, with what was done and how to read it."""
    parts = []
    for section in sections:
        heads = columns(section)
        rows = _marked(section, lambda text: f"**{text}**", lambda text: f"{text} ≈")
        align = ["---", *["---:"] * (len(heads) - 2), "---"]
        lines = [_line(heads), _line(align), *map(_line, rows)]
        notes = " ".join([*protocol(section), *reading(section)])
        parts.append(f"## {section.title}\n\n" + "\n".join(lines) + f"\n\n{notes}\n")
    return "\n".join(parts)


def latex(sections: Sequence[Section]) -> str:
    r"""Returns a `tabular` for each section, with the rules of booktabs: \usepackage{booktabs} is all it needs."""
    import pandas as pd

    parts = []
    for section in sections:
        heads = columns(section)
        rows = _marked(section, lambda text: rf"\textbf{{{text}}}", lambda text: rf"\underline{{{text}}}")
        frame = pd.DataFrame([[cells[0], *map(_in_latex, cells[1:-1]), cells[-1]] for cells in rows], columns=heads)
        style = frame.style.hide(axis="index").format(escape="latex", subset=[heads[0], heads[-1]])
        style = style.format_index(_head_in_latex, axis="columns")
        layout = f"l{'r' * (len(heads) - 2)}l"
        notes = "".join(f"% {note}\n" for note in [*protocol(section), *reading(section)])
        parts.append(f"% {section.title}\n{notes}" + style.to_latex(hrules=True, column_format=layout))
    return "\n".join(parts)


def methods(sections: Sequence[Section]) -> "pd.DataFrame":
    """Returns a row for each method of each data set; metrics as they are, not in per cent."""
    import pandas as pd

    return pd.DataFrame([_of_method(section, method) for section in sections for method in section.methods])


def runs(sections: Sequence[Section]) -> "pd.DataFrame":
    """Returns a row for each run, with all of its metrics of validation and of the split that is compared."""
    import pandas as pd

    rows = []
    for section in sections:
        splits = dict.fromkeys(("validation", section.options.split))
        for method in section.everything:
            for setting in method.settings:
                for run in setting.runs:
                    measured: dict[str, Any] = {}
                    for split in splits:
                        metrics = run.metrics(split) or {}
                        measured |= {f"{split}_{k}": v for k, v in metrics.items() if isinstance(v, float)}
                    names = {
                        "data": section.title,
                        "method": method.name,
                        "setting": setting.words,
                        "seed": run.seed,
                        "chosen": setting.chosen,
                    }
                    spent = {key: run.result[key] for key in ("steps", "wall_seconds", "input_seconds")}
                    origin = {
                        "workdir": run.name,
                        "git_commit": run.origin["git_commit"],
                        "command": " ".join(run.command),
                    }
                    rows.append(names | measured | _cost(run.result["cost"].get) | spent | origin)
    return pd.DataFrame(rows)


def _of_method(section: Section, method: Method) -> dict[str, Any]:
    against, options = method.against, section.options
    validation = method.setting.validation
    return {
        "data": section.title,
        "method": method.name,
        "setting": method.setting.words,
        "settings_tried": len(method.settings),
        "validation_mean": sum(validation) / len(validation) if validation else None,
        "seeds": " ".join(str(run.seed) for run in method.runs),
        "split": options.split,
        "examples": section.count,
        "metric": options.metric,
        "mean": method.mean,
        "sd": method.deviation,
        "low": method.low,
        "high": method.high,
        "baseline": section.baseline.name if section.baseline else None,
        "test": options.test if against else None,
        "difference": against.difference if against else None,
        "difference_low": against.low if against else None,
        "difference_high": against.high if against else None,
        "p": against.p if against else None,
        "p_holm": against.adjusted if against else None,
        "best": method.best,
        "tied": method.tied,
        **_cost(method.cost),
        "wall_seconds": method.seconds,
    }


def _cost(get: Callable[[str], Any]) -> dict[str, Any]:
    return {key: get(key) for key in ("trainable_params", "step_flops", "step_share_of_full")}


def _marked(section: Section, best: Callable[[str], str], tied: Callable[[str], str]) -> list[list[str]]:
    """Returns the rows, the best mean and those not significantly worse marked, unless there is a single method."""
    rows = []
    for method in section.methods:
        cells = row(section, method)
        mark = best if method.best and len(section.methods) > 1 else tied if method.tied else str
        cells[1] = mark(cells[1])
        rows.append(cells)
    return rows


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(re.sub(r"([|\\])", r"\\\1", cell) for cell in cells) + " |"


def _in_latex(text: str) -> str:
    for sign, command in (("±", r"$\pm$"), ("−", "$-$"), ("–", "--"), ("…", r"\ldots{}"), ("<", "$<$")):
        text = text.replace(sign, command)
    return text


def _head_in_latex(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("÷", r"$\div$")
