"""Sphinx extension: the config reference from the schema, and docstrings of code as code.

A page that has the line `%% config keys %%` gets a table for each section of a config in its place.
"""

import inspect
import re
import types
import typing
from typing import Annotated, Any

from tljax.config import ranges, references
from tljax.config.schema import Experiment
from tljax.config.tuning import PhaseConfig, argument_kinds
from tljax.tuning.recipes import RECIPES
from tljax.tuning.strategies import STRATEGIES

MARK = "%% config keys %%"


def meanings(thing: Any) -> dict[str, str]:
    """Returns what a docstring says of each attribute or argument; names that share a line share their meaning."""
    text = re.split(r"^(?:Attributes|Args):\n", inspect.getdoc(thing), flags=re.M)[-1].partition("\n\n")[0]
    entries = re.findall(r"^    (\S[^:\n]*): (.*(?:\n        .*)*)", text, re.M)
    return {name: " ".join(said.split()) for names, said in entries for name in names.split(", ")}


def kind_and_range(kind: Any) -> tuple[str, str]:
    """Returns the plain type of an annotation, and what its constraints allow."""
    if typing.get_origin(kind) is Annotated:
        name, allowed = kind_and_range(kind.__origin__)
        said = [allowed, *(_allowed(constraint) for constraint in kind.__metadata__)]
        return name, ", ".join(filter(None, said))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return kind_and_range(typing.get_args(kind)[0])
    if typing.get_origin(kind) is tuple:
        name, allowed = kind_and_range(typing.get_args(kind)[0])
        return f"tuple of {name}", allowed
    return getattr(typing.get_origin(kind) or kind, "__name__", "any"), ""


def _allowed(constraint: Any) -> str:
    match constraint:
        case ranges.OneOf():
            own = ", or `module:name`" if type(constraint) is not ranges.OneOf else ""
            return ", ".join(f"`{value!r}`" if value in ("", 0) else f"`{value}`" for value in constraint.values) + own
        case ranges.Interval(at_most=ranges.INT32):
            return ""
        case ranges.Interval():
            bounds = vars(constraint).items()
            large = {2**63: "2**63"}
            return " and ".join(f"{name.replace('_', ' ')} {large.get(b, b)}" for name, b in bounds if b is not None)
        case ranges.Hexadecimal(digits):
            return f"{digits} hexadecimal digits"
        case ranges.NotEmpty():
            return "not empty"
    return inspect.getdoc(constraint).splitlines()[0].rstrip(".").lower()


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    return "unset" if value is None else f"`{value!r}`"


def _table(section: str, cls: type, defaults: Any = None) -> list[str]:
    """Returns a row for each attribute that the docstring explains, but for arguments of strategies."""
    hints, said = typing.get_type_hints(cls, include_extras=True), meanings(cls)
    columns = ("key", "type", "range", *(("default",) if defaults else ()), "meaning")
    lines = [_row(*columns), _row(*["---"] * len(columns))]
    for name in (name for name in cls.__dataclass_fields__ if name in said and name != "arguments"):
        default = (_default(getattr(defaults, name)),) if defaults else ()
        lines.append(_row(f"`{section}{name}`", *kind_and_range(hints[name]), *default, said[name]))
    return lines


def _arguments() -> list[str]:
    """Returns a row for each argument of a strategy."""
    lines = [_row("strategy", "key", "type", "range", "default", "meaning"), _row(*["---"] * 6)]
    for strategy in (*STRATEGIES, *RECIPES):
        function = references.look_up(strategy, "tuning.strategy")
        parameters, said = references.parameters_of(function), meanings(function)
        summary = inspect.getdoc(function).splitlines()[0]
        for name, annotation in argument_kinds("tuning.strategy", strategy).items():
            cells = *kind_and_range(annotation), _default(parameters[name].default), said.get(name, summary)
            lines.append(_row(f"`{strategy}`", f"`tuning.{name}`", *cells))
    return lines


def config_reference() -> str:
    """Returns a table for each section of a config, as Markdown."""
    sections = typing.get_type_hints(Experiment)
    nested = {name: cls for name, cls in sections.items() if hasattr(cls, "__dataclass_fields__")}
    lines = ["## The run", "", *_table("", Experiment, Experiment()), ""]
    for name, cls in nested.items():
        lines += [f"## `{name}`", "", inspect.getdoc(cls).splitlines()[0], "", *_table(f"{name}.", cls, cls()), ""]
        if name == "tuning":
            lines += ["### Arguments of strategies", "", *_arguments(), ""]
            lines += ["### Keys of a phase", "", *_table("", PhaseConfig), ""]
    return "\n".join(lines)


def _write_keys(app: Any, page: str, source: list[str]) -> None:
    if MARK in source[0]:
        source[0] = source[0].replace(MARK, config_reference())


def _mark_code(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Makes an indented block after an empty line a literal one: in our docstrings that is code."""
    marked: list[str] = []
    for place, line in enumerate(lines):
        starts = line.startswith("    ") and place and not lines[place - 1].strip()
        before = next((other for other in reversed(lines[:place]) if other.strip()), "")
        if starts and not before.startswith(" "):
            marked += ["::", ""]
        marked.append(line)
    lines[:] = marked


def setup(app: Any) -> dict[str, Any]:
    """Registers both with Sphinx."""
    app.connect("source-read", _write_keys)
    app.connect("autodoc-process-docstring", _mark_code, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
