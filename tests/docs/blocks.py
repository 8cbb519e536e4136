"""The pages of the documentation: their blocks of code, headings and links."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import forks

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^(?P<fence>```+)(?P<language>[^\n]*)\n(?P<body>.*?)^(?P=fence)$", re.M | re.S)
_PYTHON = ("python", "{code-cell} ipython3")


def python_blocks(page: Path) -> list[str]:
    """Returns the Python of a page, block by block; what cannot run has another language, as `text`."""
    fences = _FENCE.finditer(page.read_text())
    return [match["body"] for match in fences if match["language"].strip() in _PYTHON]


def without_blocks(page: Path) -> str:
    """Returns a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Returns what a link to a heading of a page may name, as GitHub and MyST do."""
    headings = re.findall(r"^#{1,3} (.*)$", without_blocks(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    """Yields the links and pictures of a page that lie in the checkout."""
    text = re.sub(r"`[^`\n]*`", "", without_blocks(page))
    yield from (link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", link))


def run(page: Path, folder: Path) -> str:
    """Runs the Python of a page in a folder, in a process of its own; returns what it printed."""
    command = [sys.executable, str(ROOT / "tests" / "docs" / "run_page.py"), str(page)]
    done = forks.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, f"{page}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
