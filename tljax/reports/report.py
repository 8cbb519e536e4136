"""`report`: from workdirs to tables, figures and one page: what was chosen, how good it is, and how sure that is."""

import argparse
import os
import shlex
from collections.abc import Sequence
from typing import Annotated

from etils import epath

from tljax import console
from tljax.config import flag_types, ranges
from tljax.errors import InputError
from tljax.io import storage
from tljax.reports import checks, tables
from tljax.reports.compare import section_of
from tljax.reports.runs import Unfinished, read
from tljax.reports.schema import TESTS, Options, Section
from tljax.sweeps import selection

_KINDS = ("png", "pdf", "svg")
# Fewer are too few for an interval of 95%.
_RESAMPLES = flag_types.number(Annotated[int, ranges.Interval(at_least=100), ranges.Interval(at_most=10**6)])


def report(
    folders: Sequence[str],
    out: str | os.PathLike,
    options: Options = Options(),  # noqa: B008 (frozen)
    kinds: Sequence[str] = (),
    command: str = "python -m tljax report",
) -> tuple[list[Section], list[Unfinished]]:
    """Compares all finished runs below some folders; writes what `main` says into another.

    Args:
        kinds: `png`, `pdf`, `svg`: also write the figures as such files.
        command: that the page says made it.

    Returns:
        What is said of each data set, and the runs that were left out because they are not finished.

    Raises:
        InputError: there are no finished runs, or some that cannot be compared, which are named.
    """
    from tljax.reports import figure_style, figures, html

    runs, unfinished = read(folders)
    if not runs:
        first = unfinished[0]
        raise InputError(f"{', '.join(folders)}: no run is finished; the first: {first.name}: {first.reason}")
    found = [section_of(title, members, options) for title, members in checks.by_task(runs).items()]
    folder = storage.locate(out)
    with figure_style.style():
        drawn = [list(figures.drawings(one)) for one in found]
        _write(folder / "report.html", html.page(found, drawn, unfinished, command))
        for number, of in enumerate(drawn, 1):
            for drawing in of:
                for kind in kinds:
                    name = drawing.name if len(drawn) == 1 else f"{number}-{drawing.name}"
                    _write(folder / "figures" / f"{name}.{kind}", figure_style.write(drawing, kind))
    _write(folder / "methods.md", tables.markdown(found))
    _write(folder / "methods.tex", tables.latex(found))
    _write(folder / "methods.csv", tables.methods(found).to_csv(index=False))
    _write(folder / "runs.csv", tables.runs(found).to_csv(index=False))
    return found, unfinished


def _write(path: epath.Path, content: str | bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_whole(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({storage.reason(error)}): give another --out") from error


def _show(one: Section) -> None:
    shown = 5 if one.baseline else 3  # what it costs is in the files
    rows = [tables.row(one, method)[:shown] for method in one.methods]
    for cells, method in zip(rows, one.methods, strict=True):
        cells[1] += " *" if method.best and len(rows) > 1 else " ≈" if method.tied else ""
    title = f"{one.title} (* best, ≈ not significantly worse)" if len(rows) > 1 else one.title
    console.table(title, tables.columns(one)[:shown], rows)
    for left in one.left_out:
        console.console.print(f"not in the table: {left.name}: {left.reason}")
    if one.peeked:
        told = f"the test split was looked at for {len(one.peeked)} runs that were not chosen"
        console.console.print(told)


def _parser() -> argparse.ArgumentParser:
    parser = flag_types.Parser("python -m tljax report", description=__doc__)
    parser.add_argument(
        "folders",
        nargs="+",
        type=flag_types.path,
        metavar="DIR",
        help="of runs, at any depth below; or a run's workdir",
    )
    told = "required: a folder for report.html, methods.md, .tex, .csv (a row per method) and runs.csv (a row per run)"
    parser.add_argument("--out", required=True, type=flag_types.path, help=told)
    told = "the method that the others are compared with, by its name in the table; the first by default"
    parser.add_argument("--baseline", default="", metavar="NAME", help=told)
    told = "sections of a config, with commas between, in which the settings of one method differ (default: optim)"
    parser.add_argument("--tuned", default=",".join(selection.TUNED), metavar="SECTIONS", help=told)
    parser.add_argument("--metric", default="", help="of result.json; by default the one that the problem is judged by")
    parser.add_argument("--split", default="test", choices=("test", "validation"), help="that methods are compared on")
    told = "of a difference: paired bootstrap, paired t-test over seeds, or McNemar's (of single seeds)"
    parser.add_argument("--test", default="bootstrap", choices=TESTS, help=told)
    parser.add_argument(
        "--resamples", type=_RESAMPLES, default=10_000, metavar="N", help="of a bootstrap (default: 10000)"
    )
    told = f"also write the figures as files: {', '.join(_KINDS)}; repeatable"
    parser.add_argument("--figures", action="append", default=[], choices=_KINDS, metavar="KIND", help=told)
    parser.epilog = (
        "Settings of a method are its runs that differ in the tuned sections; the one with the best mean over seeds on "
        "the validation split is chosen, and alone is compared. Runs of other splits, classes or metrics are refused; "
        "each data set has a table of its own."
    )
    return parser


def main(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    tuned = tuple(options.tuned.split(","))
    asked = Options(options.split, options.metric, tuned, options.baseline, options.test, options.resamples)
    command = shlex.join(["python", "-m", "tljax", "report", *arguments])
    found, unfinished = report(options.folders, options.out, asked, options.figures, command)
    for one in found:
        _show(one)
    for one in unfinished:
        console.console.print(f"{one.name}: {one.reason}")
    runs = sum(len(one.runs) for one in found)
    told = f"{runs} runs" + (f", {len(unfinished)} more not finished" if unfinished else "")
    console.console.print(f"{told}: {options.out.rstrip('/')}/report.html")
