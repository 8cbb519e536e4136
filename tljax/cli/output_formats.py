"""What `predict` writes: lines of text, CSV or JSON."""

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOBase, TextIOWrapper
from typing import Any

from tljax.errors import InputError
from tljax.io import storage, strict_json
from tljax.problems.base import Problem
from tljax.streams import in_one_line, results

# One line: of an id, the file and row of a table that it is from, and probabilities or values.
Write = Callable[[str | int, Mapping[str, Any], Mapping[str, float]], None]


def _as_text(file: TextIOBase, problem: Problem, classes: Sequence[str], top: int, tabular: bool) -> Write:
    # Values have all of their digits: dates and times have the first ten in common.
    number = "{:.4f}".format if problem.has_classes else repr

    def write(id: str | int, place: Mapping[str, Any], values: Mapping[str, float]) -> None:
        shown = itertools.islice(values.items(), top)
        cells = [str(id), *(f"{label} {number(value)}" for label, value in shown)]
        file.write("\t".join(map(in_one_line, cells)) + "\n")

    return write


def _as_csv(file: TextIOBase, problem: Problem, classes: Sequence[str], top: int, tabular: bool) -> Write:
    """Writes columns: `id`; of rows of tables `file` and `row`; then the values of a regression, or `prediction`,
    `probability` where there is one, and `p_CLASS`.

    The prediction of several labels is all that are more probable than not, with `|` between.
    """
    lines = csv.writer(file, lineterminator="\n")
    places = ["file", "row"] if tabular else []
    columns = ["prediction"] * problem.has_classes + ["probability"] * problem.one_class
    columns += [f"p_{name}" for name in classes] if problem.has_classes else classes
    lines.writerow(["id", *places, *columns])

    def write(id: str | int, place: Mapping[str, Any], values: Mapping[str, float]) -> None:
        cells = ["|".join(_decided(problem, values))] * problem.has_classes
        cells += [max(values.values())] * problem.one_class
        at = [place.get(name, "") for name in places]
        lines.writerow([id, *at, *cells, *(values[name] for name in classes)])

    return write


def _as_jsonl(file: TextIOBase, problem: Problem, classes: Sequence[str], top: int, tabular: bool) -> Write:
    """Writes objects: `id`; of rows of tables `file` and `row`; and `values`, or `prediction` and `probabilities`."""

    def write(id: str | int, place: Mapping[str, Any], values: Mapping[str, float]) -> None:
        answer = {"values": values}
        if problem.has_classes:
            answer = {"prediction": problem.decision(values), "probabilities": values}
        file.write(strict_json.dumps({"id": id, **place, **answer}) + "\n")

    return write


FORMATS: dict[str, Callable[[TextIOBase, Problem, Sequence[str], int, bool], Write]] = {
    "text": _as_text,
    "csv": _as_csv,
    "jsonl": _as_jsonl,
}


def _decided(problem: Problem, answer: Mapping[str, float]) -> list[str]:
    """Returns the classes that an answer amounts to."""
    decision = problem.decision(answer)
    return [decision] if isinstance(decision, str) else decision


@contextmanager
def opened(out: str | None) -> Iterator[TextIOBase]:
    """Yields stdout, or a file that is there when it is whole.

    Raises:
        Closed: nobody reads stdout any more.
        InputError: stdout or the file cannot be written.
    """
    if out is None:
        with results() as stdout:
            yield stdout
        return
    try:
        with storage.replacing(out) as content:
            file = TextIOWrapper(content, encoding="utf-8")
            yield file
            file.detach()  # which writes what it holds, and leaves `content` open
    except OSError as error:
        raise InputError(f"--out={out}: cannot be written ({error.strerror or error})") from error
