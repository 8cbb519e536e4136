"""What the verbs' own flags may be: types for `argparse`, and a parser whose errors are those of everything else."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tljax.config import ranges
from tljax.errors import InputError
from tljax.program import program


class Parser(argparse.ArgumentParser):
    """A verb's parser.

    Args:
        verb: its name.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, verb: str, **options: Any):
        super().__init__(f"{program()} {verb}", **options)

    def error(self, message: str) -> NoReturn:
        """Raises InputError, where argparse would print its usage and end the process."""
        raise InputError(f"{message}; see {self.prog} --help")


def number(kind: Any) -> Callable[[str], Any]:
    """Returns an argparse type: text as a number that a constraint allows.

    Args:
        kind: an annotated `int` or `float`, as `ranges.Positive`.
    """

    def read(text: str) -> Any:
        plain = kind.__origin__
        try:
            value = plain(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be {plain.__name__}, not {ranges.shown(text)}") from error
        try:
            return ranges.coerce(value, kind, "it")
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("it ")) from error

    return read


count = number(ranges.Count)
positive = number(ranges.Positive)
seconds = number(ranges.NotNegative)


def path(text: str) -> str:
    """Returns the path or URL as it is, if it names anything.

    Raises:
        argparse.ArgumentTypeError: it is empty, which would be the current folder, or no name of a file.
    """
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{ranges.shown(text)} names no file or folder: give a path")
    return text


def sha256(text: str) -> str:
    """Returns a SHA-256 in hexadecimal.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        ranges.Hexadecimal(64).check("it", text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("it ")) from error
    return text


def local_path(text: str) -> Path:
    """Returns the path of a file or folder on this machine, as `path` does.

    Raises:
        argparse.ArgumentTypeError: it is a URL, too.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{ranges.shown(text)} is a URL: give a path on this machine")
    return Path(path(text))
