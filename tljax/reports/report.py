"""From workdirs to tables, figures and one page: what was chosen, how good it is, and how sure that is."""

import os
from collections.abc import Sequence

from etils import epath

from tljax.errors import InputError
from tljax.io import storage
from tljax.reports import checks, tables
from tljax.reports.compare import section_of
from tljax.reports.runs import Unfinished, read
from tljax.reports.schema import Options, Section

KINDS = ("png", "pdf", "svg")


def report(
    folders: Sequence[str],
    out: str | os.PathLike,
    options: Options = Options(),  # noqa: B008 (frozen)
    kinds: Sequence[str] = (),
    command: str = "tljax report",
) -> tuple[list[Section], list[Unfinished]]:
    """Compares all finished runs below some folders; writes a page, tables and figures into another.

    Args:
        folders: of runs, or workdirs.
        out: where to.
        options: how to compare.
        kinds: `png`, `pdf`, `svg`: also write the figures as such files.
        command: of the report, for the page.

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
    runs, without = checks.with_split(runs, options.split)
    unfinished += without
    sections = [section_of(title, members, options) for title, members in checks.by_task(runs).items()]
    folder = storage.locate(out)
    with figure_style.style():
        drawings = [list(figures.drawings(section)) for section in sections]
        _write(folder / "report.html", html.page(sections, drawings, unfinished, command))
        for number, of_section in enumerate(drawings, 1):
            for drawing in of_section:
                for kind in kinds:
                    name = drawing.name if len(drawings) == 1 else f"{number}-{drawing.name}"
                    _write(folder / "figures" / f"{name}.{kind}", figure_style.write(drawing, kind))
    _write(folder / "methods.md", tables.markdown(sections))
    _write(folder / "methods.tex", tables.latex(sections))
    _write(folder / "methods.csv", tables.methods(sections).to_csv(index=False))
    _write(folder / "runs.csv", tables.runs(sections).to_csv(index=False))
    return sections, unfinished


def _write(path: epath.Path, content: str | bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_whole(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({storage.reason(error)}): give another --out") from error
