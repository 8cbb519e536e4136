"""Where the processes of a sweep run: beside this one, or wherever somebody takes the commands."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tljax.points import Point
from tljax.stopping import Notice


@dataclass(frozen=True)
class Job:
    """One process's share of a sweep.

    Attributes:
        name: the same whenever the same sweep has the same points to do; letters, digits, `_`, `-` and `.`.
        command: carries the points out, from the folder in which the sweep was started. What is finished is not done
            again, what was begun goes on, and what another process does is waited for. Its exit status is 0, 1 if a
            point has failed, or 75 if it was told to stop by a signal and has saved.
        points: what it does; their workdirs say what became of them.
    """

    name: str
    command: tuple[str, ...]
    points: tuple[Point, ...]


# Runs all jobs to their end, whatever becomes of each. Raises `Stopped` when the notice says to stop, after the jobs
# have been told and, where they run beside, have ended.
Launcher = Callable[[Sequence[Job], Notice], None]

# Name -> what makes it from the verb's options; `sweep` asks for one by `--launcher`.
LAUNCHERS: dict[str, Callable[[argparse.Namespace], Launcher]] = {}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of all launchers."""
