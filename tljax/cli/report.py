"""`report`: from workdirs to tables, figures and one page: what was chosen, how good it is, and how sure that is."""

import argparse
import shlex
from typing import Annotated

from tljax import console
from tljax.config import flag_types, ranges
from tljax.reports import tables
from tljax.reports.report import KINDS, report
from tljax.reports.schema import TESTS, Options, Section
from tljax.sweeps import selection

# Fewer are too few for an interval of 95%.
_RESAMPLES = flag_types.number(Annotated[int, ranges.Interval(at_least=100), ranges.Interval(at_most=10**6)])


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
    parser.add_argument("--metric", default="", help="of result.json; by default the problem's headline")
    parser.add_argument("--split", default="test", choices=("test", "validation"), help="that methods are compared on")
    told = "of a difference: paired bootstrap, paired t-test over seeds, or McNemar's (of single seeds)"
    parser.add_argument("--test", default="bootstrap", choices=TESTS, help=told)
    parser.add_argument(
        "--resamples", type=_RESAMPLES, default=10_000, metavar="N", help="of a bootstrap (default: 10000)"
    )
    told = f"also write the figures as files: {', '.join(KINDS)}; repeatable"
    parser.add_argument("--figures", action="append", default=[], choices=KINDS, metavar="KIND", help=told)
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
