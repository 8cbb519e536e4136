"""How a report's figures look: on any background and with any color vision, in a file or within the page."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

INK, GRID = "#1f2328", "#d8dee4"
# After Okabe and Ito (2008), without the yellow; the lighter ones are darker, to be seen on white. On a dark background
# the page has others of the same hues.
COLORS = ("#0072b2", "#c44e00", "#00835f", "#b0588f", "#b27700", "#57606a")
MARKERS, GLYPHS = "os^Dv", "●■▲◆▼"  # as matplotlib and text have them; with the colors 30 that are all different

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: smaller, and in the page's own font
    "svg.hashsalt": "tljax",  # the same figure has the same bytes
    "text.color": INK,
    "text.parse_math": False,  # a name may have a $
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure of a report.

    Attributes:
        name: of its file, without what is after the dot.
        title, caption: in words.
        figure: matplotlib's.
        span: the part of the page's width that it needs: `third`, `half` or `full`.
    """

    name: str
    title: str
    caption: str
    figure: Any
    span: str = "third"


@contextmanager
def style() -> Iterator[None]:
    """Sets how figures are drawn and written inside, whatever matplotlib is configured to elsewhere."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def inline(drawing: Drawing, name: str) -> str:
    """Returns an SVG element for the page: its colors and font are the page's, so they change with its theme.

    Args:
        name: begins each of its ids, which are the page's; `NAME-title` is that of its title there.
    """
    written = io.StringIO()
    drawing.figure.savefig(
        written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'|DejaVu Sans", "var(--sans)", text)
    for color, role in (
        (INK, "ink"),
        (GRID, "grid"),
        *((series_color, f"series-{i}") for i, series_color in enumerate(COLORS)),
    ):
        text = text.replace(color, f"var(--{role})")
    text = _own_names(text, name)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()
    size = f"max-width: {4 / 3 * float(width):.0f}px"  # as large as it was drawn, and smaller where there is less room
    head = f'<svg role="img" aria-labelledby="{name}-title" viewBox="0 0 {width} {height}" style="{size}">'
    return re.sub(r"<svg[^>]*>", head, text, count=1).rstrip()


def write(drawing: Drawing, kind: str) -> bytes:
    """Returns a figure as a file: `svg`, `pdf`, or a `png` on white."""
    written = io.BytesIO()
    ground = "white" if kind == "png" else "none"
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    drawing.figure.savefig(written, format=kind, dpi=200, facecolor=ground, metadata=metadata)
    return written.getvalue()


def _own_names(text: str, prefix: str) -> str:
    """Returns SVG in which ids that something refers to have a prefix of this figure's own, and the others are gone."""
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))

    def renamed(match: re.Match) -> str:
        return f' id="{prefix}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]+)"', renamed, text)
    return re.sub(r'(url\(#|href="#)([^")]+)', rf"\g<1>{prefix}-\g<2>", text)
