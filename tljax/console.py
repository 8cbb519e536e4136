"""What a person sees: a bar with speed and time left on a terminal, plain lines elsewhere; tables at the end."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tljax.streams import Output, in_one_line


class _Console(Console):
    """Prints texts as they are, none of them markup, with control characters shown; what cannot be written is lost."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False)

    @property
    def file(self) -> Output:
        file = super().file
        return Output(getattr(file, "stream", file), raw=True)

    @file.setter
    def file(self, file: IO[str]) -> None:
        self._file = file

    @property
    def encoding(self) -> str:
        return self.file.encoding.lower()

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(in_one_line(text), **options)


console = _Console()


def on_stderr() -> AbstractContextManager[None]:
    """Prints to stderr inside: stdout has the results, for another program or a file."""
    return _switched_on("stderr")


def quiet() -> AbstractContextManager[None]:
    """Prints nothing inside."""
    return _switched_on("quiet")


@contextmanager
def _switched_on(name: str) -> Iterator[None]:
    before = getattr(console, name)
    setattr(console, name, True)
    try:
        yield
    finally:
        setattr(console, name, before)


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self._unit = unit

    def render(self, task) -> Text:
        return Text(f"{task.speed:.2f} {self._unit}/s" if task.speed else f"… {self._unit}/s")


@contextmanager
def progress(label: str, start: int, total: int | None, unit: str = "steps") -> Iterator[Any]:
    """Yields `report(done, text)`: `text` (metrics) beside the bar, or as a line of its own where there is no bar.

    An empty text moves the bar and prints no line.

    Args:
        label: of the bar or the lines.
        start: how much is done already.
        total: how much there is to do; None where nobody knows yet.
        unit: of what is done.
    """
    if not console.is_terminal:

        def report(done: int, text: str = "") -> None:
            if text:
                console.print(f"{label} {done}/{total}  {text}")

        yield report
        return
    described, beside = (TextColumn(form, markup=False) for form in ("{task.description}", "{task.fields[text]}"))
    columns = (described, BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn())
    with Progress(*columns, beside, console=console, transient=True) as bar:
        task = bar.add_task(in_one_line(label), total=total, completed=start, text="")
        latest = ""

        def report(done: int, text: str = "") -> None:
            nonlocal latest
            latest = text or latest
            bar.update(task, completed=done, text=latest)

        yield report


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Prints `rows` under the heads `columns` and a `title`; the first column is left-aligned, the others right."""
    lines = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        lines.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        lines.add_row(*(str(cell) for cell in row))
    console.print(lines, soft_wrap=False)


def weights(kinds: Mapping[str, Any]) -> None:
    """Prints what became of the pretrained arrays (`weights_become` of a plan), with the first names of each kind."""
    rows = [("kept", kinds["kept"], "")]
    for what in ("resampled", "adapted", "initialized", "ignored"):
        names = kinds[what]
        rows.append((what, len(names), ", ".join(names[:4]) + (" …" if len(names) > 4 else "")))
    table("weights", ("", "arrays", ""), rows)


def interval(metrics: Mapping[str, Any], metric: str) -> str:
    """Returns a metric's 95% interval as text, `0.9720 … 0.9827`; empty if there is none."""
    edges = metrics.get(f"{metric}_95")
    return f"{edges[0]:.4f} … {edges[1]:.4f}" if edges else ""


def plain(metrics: Mapping[str, Any]) -> str:
    """Returns metrics as text for a line or a bar, `loss 0.123  accuracy 0.960`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float))
