"""`report`: from workdirs to tables, figures and one page: what was chosen, how good it is, and how sure that is."""

import argparse
import shlex
from typing import Annotated

from tljax import console
from tljax.config import flag_types, ranges
from tljax.program import program
from tljax.reports import tables
from tljax.reports.report import KINDS, report
from tljax.reports.schema import TESTS, Options, Section
from tljax.sweeps import selection

# Fewer are too few for an interval of 95%.
_RESAMPLES = flag_types.number(Annotated[int, ranges.Interval(at_least=100), ranges.Interval(at_most=10**6)])


def _parser() -> argparse.ArgumentParser:
    parser = flag_types.Parser("report", description=__doc__)
    parser.add_argument(
        "folders",
        nargs="+",
        type=flag_types.path,
        metavar="DIR",
        help="a folder with runs at any depth, or a run's workdir",
    )
    text = (
        "a folder for report.html, methods.md, .tex, .csv (a row a method) and runs.csv (a row a run); default: report"
    )
    parser.add_argument("--out", default="report", type=flag_types.path, help=text)
    text = "the method that the others are compared with, by its name in the table; the first by default"
    parser.add_argument("--baseline", default="", metavar="NAME", help=text)
    text = "comma-separated sections of the config in which the settings of a method differ (default: optim)"
    parser.add_argument("--tuned", default=",".join(selection.TUNED), metavar="SECTIONS", help=text)
    parser.add_argument(
        "--metric", default="", help="a metric of result.json (default: the headline metric of the problem)"
    )
    parser.add_argument(
        "--split",
        default="test",
        choices=("test", "validation"),
        help="the split on which methods are compared (default: test)",
    )
    text = "of a difference: paired bootstrap (default), paired t-test over seeds, or McNemar's test (single seeds)"
    parser.add_argument("--test", default="bootstrap", choices=TESTS, help=text)
    parser.add_argument(
        "--resamples", type=_RESAMPLES, default=10_000, metavar="N", help="bootstrap resamples (default: 10000)"
    )
    text = f"also write the figures as files: {', '.join(KINDS)}; repeatable"
    parser.add_argument("--figures", action="append", default=[], choices=KINDS, metavar="KIND", help=text)
    parser.epilog = (
        "Settings of a method are its runs that differ in the tuned sections; the one with the best mean over seeds on "
        "the validation split is chosen, and alone is compared. Runs of other splits, classes or metrics are refused; "
        "each data set has a table of its own."
    )
    return parser


def main(arguments: list[str]) -> None:
    """Runs the verb."""
    options = _parser().parse_args(arguments)
    tuned = tuple(options.tuned.split(","))
    comparison = Options(options.split, options.metric, tuned, options.baseline, options.test, options.resamples)
    command = f"{program()} report {shlex.join(arguments)}"
    sections, unfinished = report(options.folders, options.out, comparison, options.figures, command)
    for section in sections:
        _show(section)
    for run in unfinished:
        console.console.print(f"{run.name}: {run.reason}")
    runs = sum(len(section.runs) for section in sections)
    message = f"{runs} runs" + (f", {len(unfinished)} more left out" if unfinished else "")
    page = console.shown_path(f"{options.out.rstrip('/')}/report.html")
    console.console.print(f"{message}: {page}")
    console.next_step(page, program="open")


def _show(section: Section) -> None:
    count = 5 if section.baseline else 3  # what it costs is in the files
    rows = [tables.row(section, method)[:count] for method in section.methods]
    for cells, method in zip(rows, section.methods, strict=True):
        cells[1] += " *" if method.best and len(rows) > 1 else " ≈" if method.tied else ""
    title = f"{section.title} (* best, ≈ not significantly worse)" if len(rows) > 1 else section.title
    console.table(title, tables.columns(section)[:count], rows)
    for method in section.left_out:
        console.console.print(f"not in the table: {method.name}: {method.reason}")
    if section.peeked:
        message = f"the test split was looked at for {len(section.peeked)} runs that were not chosen"
        console.console.print(message)
