"""stdout and stderr as they can be trusted: a pipe that is closed or a disk that is full ends no run."""

import atexit
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tljax.errors import InputError

CLOSED = 141  # the exit status of a program whose stdout was closed, as a shell has it: 128 + SIGPIPE
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_strict = False
_closed: set[int] = set()  # descriptors that were closed when this process began


class Closed(Exception):
    """The reader of stdout has gone, and what was to be written there is all that the command is for."""


def shown(text: str) -> str:
    """Returns the text with control characters as they are written in Python: `\\x1b` is shown, not obeyed.

    Lines and tabs stay. Characters that turn the direction of the text around are shown, too.
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def in_one_line(text: str) -> str:
    """Returns `shown(text)` with the ends of lines and tabs shown, too: for a name in a table or in a line."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")


class Output(io.TextIOBase):
    """A text stream that loses what it cannot write, and never fails; but stdout does inside `results`.

    What the stream's encoding does not have is written as `\\u2026`.

    Args:
        stream: to write to.
        raw: whether control characters are passed on.
    """

    def __init__(self, stream: Any, raw: bool = False):
        self.stream, self._raw = stream, raw

    def write(self, text: str) -> int:
        """Writes a text, its control characters shown unless `raw`."""
        encodable = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        if not self._raw:
            start = int(text.startswith("\r"))  # as tqdm's bars do
            encodable = encodable[:start] + shown(encodable[start:])
        self._tried(lambda: self.stream.write(encodable))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self._tried(self.stream.flush)

    def _tried(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except BrokenPipeError as error:
            self.drop()
            if _strict and self.stream is _stdout():
                raise Closed from error
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            if _strict and self.stream is _stdout():
                self.drop()
                reason = getattr(error, "strerror", None) or error
                raise InputError(f"stdout: cannot be written ({reason}): what it was to hold is not whole") from error

    def drop(self) -> None:
        """Discards what is still to be written, or Python would try again as it ends, and end with status 120."""
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), self.stream.fileno())

    @property
    def encoding(self) -> str:
        """The stream's encoding, or UTF-8."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        """Returns the stream's file descriptor."""
        return self.stream.fileno()

    def isatty(self) -> bool:
        """Returns whether the stream is an open terminal."""
        return not getattr(self.stream, "closed", False) and self.stream.isatty()

    def writable(self) -> bool:
        """Returns True."""
        return True


def install() -> None:
    """Makes stdout and stderr of this process an `Output`, for all that prints; to be called first of all."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would have this number, and get what is printed
            os.open(os.devnull, os.O_RDWR)
            _closed.add(number)
    for name in ("stdout", "stderr"):
        output = Output(getattr(sys, name) or open(os.devnull, "w"))  # noqa: PTH123, SIM115
        setattr(sys, name, output)
        atexit.register(_end, output)


@contextlib.contextmanager
def results() -> Iterator[Output]:
    """Yields stdout, raw, for a command whose results go there alone: inside, what cannot be written is an error.

    Raises:
        Closed: the reader has gone.
        InputError: anything else, such as a full disk.
    """
    global _strict
    if 1 in _closed:
        raise InputError("stdout is closed, and is all that this command writes to: give it one, or a file")
    before, _strict = _strict, True
    output = Output(_stdout(), raw=True)
    try:
        yield output
        output.flush()
    finally:
        _strict = before


def _stdout() -> Any:
    return getattr(sys.stdout, "stream", sys.stdout)


def _end(output: Output) -> None:
    try:
        output.stream.flush()
    except (OSError, ValueError):
        output.drop()
