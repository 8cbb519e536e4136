"""Runs the Python of a page, block after block, as a notebook would: what a cell ends with is shown.

python tests/docs/run_page.py PAGE
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path.cwd()), str(ROOT / "examples"), str(ROOT)]


def show(value: object) -> None:
    """Shows a value as a notebook does."""
    if hasattr(value, "_repr_html_"):
        value._repr_html_()  # must not fail
    print(repr(value), flush=True)


def main(page: Path) -> None:
    """Runs the blocks of a page in one namespace."""
    from tests.docs import blocks

    names = {"__name__": "__main__"}
    for number, block in enumerate(blocks.python_blocks(page), start=1):
        name = f"{page.name}, block {number}"
        tree = ast.parse(block, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        print(f"--- {name}", flush=True)
        exec(compile(tree, name, "exec"), names)
        if last and (value := eval(compile(ast.Expression(last.value), name, "eval"), names)) is not None:
            show(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
