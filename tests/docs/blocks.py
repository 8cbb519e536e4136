"""The blocks of a Markdown page, and the links of it."""

import re
from pathlib import Path

_FENCE = re.compile(r"^(?P<fence>```+)(?P<info>[^\n]*)\n(?P<body>.*?)^(?P=fence)$", re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    """Returns the fenced blocks of a language, or of a directive with its argument, without options."""
    text = page.read_text()
    bodies = [match["body"] for match in _FENCE.finditer(text) if match["info"].strip() == language]
    return [re.sub(r"\A(:[\w-]+:[^\n]*\n)+", "", body) for body in bodies]


def prose(page: Path) -> str:
    """Returns a page without its fenced blocks and its code in a line."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text()))
