"""What a person sees: a bar with speed and time left on a terminal, plain lines elsewhere; tables at the end."""

import os
import shlex
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tljax.program import program as started
from tljax.streams import Output, in_one_line

EVERY = 15.0  # seconds between two lines about what takes long, where there is no bar
_WIDTH = 80  # of what is no terminal
_clock = time.monotonic


class _Console(Console):
    """Prints texts as they are, none of them markup, with control characters shown; what cannot be written is lost."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False)

    @property
    def table_width(self) -> int:
        """Columns that a table may take: of a file 80, though stdin may be a terminal."""
        is_free = self.is_terminal or self.is_jupyter or "COLUMNS" in os.environ
        return self.width if is_free else _WIDTH

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


class _Lines:
    """Reports in lines: each text, and where there is none for long, how far it is."""

    def __init__(self, label: str, start: int, total: int | None, unit: str):
        self._label, self._start, self._total, self._unit = label, start, total, unit
        self._began = self._printed = _clock()

    def __call__(self, done: int, text: str = "") -> None:
        now = _clock()
        if text:
            console.print(f"{self._label} {done}/{self._total}  {text}")
        elif now - self._printed >= EVERY:
            console.print(self._progress(done, now - self._began))
        else:
            return
        self._printed = now

    def _progress(self, done: int, seconds: float) -> str:
        rate = (done - self._start) / seconds
        parts = [f"{self._label} {done}/{self._total or '?'} {self._unit}", f"{rate:.3g} a second", f"{seconds:.0f} s"]
        if self._total and rate:
            parts.append(f"some {(self._total - done) / rate:.0f} s left")
        return ", ".join(parts)


class _NotebookBar(_Lines):
    """Shows the same in one place of a notebook's output, which is replaced."""

    def __init__(self, label: str, start: int, total: int | None, unit: str):
        super().__init__(label, start, total, unit)
        self._handle, self._text, self._shown = None, "", -1.0

    def __call__(self, done: int, text: str = "") -> None:
        now, self._text = _clock(), text or self._text
        if console.quiet or (now - self._shown < 0.2 and done != self._total):  # a browser need not draw each step
            return
        self._shown = now
        line = in_one_line(f"{self._progress(done, max(now - self._began, 1e-9))}  {self._text}".rstrip())
        if self._handle:
            self._handle.update({"text/plain": line}, raw=True)
            return
        from IPython.display import display  # there in a notebook, and nowhere else

        self._handle = display({"text/plain": line}, raw=True, display_id=True)


_waits = threading.local()


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Prints every 15 seconds that what cannot tell how far it is still goes on, and for how long; not twice if nested.

    What is quiet inside of it does not silence it.

    Args:
        label: what goes on.
    """
    if getattr(_waits, "label", ""):
        yield
        return
    over, began, beside = threading.Event(), _clock(), _Console()
    beside.stderr, beside.quiet = console.stderr, console.quiet

    def tell() -> None:
        while not _over(over):
            (beside if console.quiet else console).print(f"{label}: {_clock() - began:.0f} s so far")

    _waits.label = label
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        _waits.label = ""
        over.set()
        thread.join()


def _over(event: threading.Event) -> bool:
    return event.wait(EVERY)


@contextmanager
def progress(label: str, start: int, total: int | None, unit: str = "steps") -> Iterator[Any]:
    """Yields `report(done, text)`: `text` (metrics) beside the bar, or as a line of its own where there is no bar.

    An empty text moves the bar; where there is none, it prints a line if there was none for 15 seconds.

    Args:
        label: of the bar or the lines.
        start: how much is done already.
        total: how much there is to do; None where nobody knows yet.
        unit: of what is done.
    """
    if console.is_jupyter:
        yield _NotebookBar(label, start, total, unit)
        return
    if not console.is_terminal:
        yield _Lines(label, start, total, unit)
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
    console.print(lines, soft_wrap=False, width=console.table_width)


def shown_path(path: str | os.PathLike) -> str:
    """Returns a path for a person: without `..`, and relative to the working directory where it lies below it."""
    text = os.fspath(path)
    if "://" in text:
        return text
    plain, folder = without_dots(Path(text).expanduser()), Path.cwd()
    return str(plain.relative_to(folder)) if plain.is_relative_to(folder) else str(plain)


def without_dots(path: Path) -> Path:
    """Returns the absolute path without `..`; but as it is where that is another, as behind a link."""
    plain = Path(os.path.normpath(path.absolute()))
    return path.absolute() if ".." in path.parts and plain.resolve() != path.resolve() else plain


def next_step(*words: str, program: str = "") -> None:
    """Prints the command that a person may want next, of tljax or of another `program`: the last line of a verb."""
    console.print(f"next: {program or started()} {shlex.join(words)}")


def weights(kinds: Mapping[str, Any]) -> None:
    """Prints what became of the pretrained arrays (`weights_become` of a plan), with the first names of each kind."""
    rows = [("kept", kinds["kept"], "")]
    for change in ("resampled", "adapted", "initialized", "ignored"):
        names = kinds[change]
        rows.append((change, len(names), ", ".join(names[:4]) + (" …" if len(names) > 4 else "")))
    table("weights", ("", "arrays", ""), rows)


def interval(metrics: Mapping[str, Any], metric: str) -> str:
    """Returns a metric's 95% interval as text, `0.9720 … 0.9827`; empty if there is none."""
    edges = metrics.get(f"{metric}_95")
    return f"{edges[0]:.4f} … {edges[1]:.4f}" if edges else ""


def plain(metrics: Mapping[str, Any]) -> str:
    """Returns metrics as text for a line or a bar, `loss 0.123  accuracy 0.960`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float))
