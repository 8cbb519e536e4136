"""`configs`: lists the configs that come with tljax, or prints one: `tljax configs quickstart > mine.py`."""

import ast

from tljax import streams
from tljax.config import flag_types, ranges
from tljax.config.files import shipped
from tljax.errors import InputError


def main(arguments: list[str]) -> None:
    """Runs the verb with its arguments."""
    parser = flag_types.Parser("configs", description=__doc__)
    text = "print this one, to be changed; without a name all are listed, each for --config=NAME"
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help=text)
    name, files = parser.parse_args(arguments).name, shipped()
    if name and name not in files:
        raise InputError(ranges.no_such("config", name, files))
    with streams.results() as stdout:
        if name:
            stdout.write(files[name].read_text())
            return
        for each, file in files.items():
            summary = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
            print(f"{each:16}{summary}", file=stdout)
