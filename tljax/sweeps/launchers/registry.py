"""The launchers by name, and their flags."""

import argparse
import functools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from tljax import streams
from tljax.config import flag_types
from tljax.config.references import is_reference, resolve_reference
from tljax.distributed.preemption import PreemptionSignal
from tljax.sweeps.launchers import local, slurm
from tljax.sweeps.launchers.base import Job, Launcher


def print_commands(jobs: Sequence[Job], preemption: PreemptionSignal) -> None:
    """Prints a command of a shell for each job, for whatever else there is to run them; a `Launcher`."""
    with streams.results() as stdout:
        for job in jobs:
            print(f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(job.command)}", file=stdout)


# Name -> what makes it from the verb's options.
LAUNCHERS: dict[str, Callable[[argparse.Namespace], Launcher]] = {
    "local": lambda options: functools.partial(local.run_here, count=options.jobs, logs=options.logs),
    "print": lambda options: print_commands,
    "slurm": slurm.launcher,
}


def make_launcher(options: argparse.Namespace) -> Launcher:
    """Returns the launcher that `--launcher` names, for these options.

    Raises:
        InputError: there is none, or it cannot run here.
    """
    name = options.launcher
    make = resolve_reference(name, "--launcher") if is_reference(name) else LAUNCHERS[name]
    return make(options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of all launchers."""
    text = (
        "local (default): processes of this machine; slurm: tasks of a job array; "
        "print: only print a command for each, for any scheduler; package.module:name: your own"
    )
    parser.add_argument("--launcher", type=_name, default="local", metavar="NAME", help=text)
    text = (
        "how many at a time: of --launcher=local, processes, each with its share of the cores, or this one process "
        "where it is 1 (default); of slurm, tasks"
    )
    parser.add_argument("--jobs", type=flag_types.positive, default=1, metavar="N", help=text)
    slurm.add_arguments(parser)
    parser.add_argument("--while-stdin", action="store_true", help=argparse.SUPPRESS)


def _name(text: str) -> str:
    if not is_reference(text) and text not in LAUNCHERS:
        known = ", ".join(LAUNCHERS)
        raise argparse.ArgumentTypeError(f"no launcher {text!r}: there are {known}, or give package.module:name")
    return text
