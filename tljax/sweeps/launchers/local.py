"""Where the processes of a sweep run: beside this one, or wherever somebody takes the commands."""

import argparse
import contextlib
import functools
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tljax import console, streams
from tljax.checkpoints.workdir import Workdir
from tljax.config import flag_types
from tljax.distributed.preemption import SAVED, PreemptionSignal
from tljax.errors import InputError
from tljax.profiling.device_memory import host_bytes
from tljax.sweeps.launchers import slurm
from tljax.sweeps.trial import Trial, units

_LOOK = 0.1  # seconds between two looks at the processes
_SAFE = 0.9  # of the memory that is free


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
    points: tuple[Trial, ...]


# Runs all jobs to their end, whatever becomes of each. Raises `Stopped` when the signal says to stop, after the jobs
# have been told and, where they run beside, have ended.
Launcher = Callable[[Sequence[Job], PreemptionSignal], None]


def jobs(wanted: Sequence[Trial], command: Sequence[str], test: bool) -> list[Job]:
    """The points, by `units`, as jobs of a command that is told which points; with `test`, to test them, too."""
    found = []
    for unit in units(wanted):
        name = unit[0].name + (f"-and-{len(unit) - 1}" if len(unit) > 1 else "") + ("-test" if test else "")
        told = f"--points={','.join(point.name for point in unit)}", *(("--conclude",) if test else ())
        found.append(Job(name, (*command, *told), tuple(unit)))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of all launchers."""
    told = (
        "local (default): processes of this machine; slurm: tasks of a job array; "
        "print: only print a command for each, for any scheduler"
    )
    parser.add_argument("--launcher", choices=tuple(LAUNCHERS), default="local", help=told)
    told = (
        "how many at a time: of --launcher=local, processes, each with its share of the cores, or this one process "
        "where it is 1 (default); of slurm, tasks"
    )
    parser.add_argument("--jobs", type=flag_types.positive, default=1, metavar="N", help=told)
    slurm.add_arguments(parser)
    parser.add_argument("--while-stdin", action="store_true", help=argparse.SUPPRESS)


def printed(jobs: Sequence[Job], preemption: PreemptionSignal) -> None:
    """A `Launcher` that prints a command of a shell for each job, for whatever else there is to run them."""
    with streams.results() as stdout:
        for job in jobs:
            print(f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(job.command)}", file=stdout)


def beside(jobs: Sequence[Job], preemption: PreemptionSignal, count: int, logs: Path) -> None:
    """A `Launcher` of processes on this machine, with equal shares of its cores and GPUs.

    Each ends when this process does, however that ends: its stdin is a pipe from here.

    Args:
        count: processes at a time; fewer, if the memory that is free is not enough for so many.
        logs: a folder for what they print.
    """
    shares, free = _shares(count), host_bytes()[1]
    waiting, peaks, told = list(jobs), dict[str, int](), count
    running: dict[_Share, tuple[Job, subprocess.Popen]] = {}
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            preemption.raise_if_set()
            for share, (job, process) in list(running.items()):
                if job.name not in peaks and (peak := _peak(job)):
                    peaks[job.name] = peak
                if process.poll() is not None:
                    del running[share]
                    peaks.setdefault(job.name, 0)  # of what shares its program with others, and needs little
                    _tell_end(job, process, logs)
            fit = count if shares[0].gpus else at_once(count, peaks.values(), free)
            if peaks and fit < told:
                needs = f"a run needs {max(peaks.values()) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
                console.console.print(f"memory: {needs}: {fit} at a time")
                told = fit
            if waiting and len(running) < fit:
                share = next(share for share in shares if share not in running)
                job = waiting.pop(0)
                running[share] = job, _started(job, share, logs)
            else:
                time.sleep(_LOOK)
    finally:
        for _, process in running.values():
            process.stdin.close()
        for _, process in running.values():
            process.wait()


def at_once(count: int, peaks: Collection[int], free: int) -> int:
    """How many of `count` processes fit into so many free bytes, if each needs the highest of the known peaks.

    Before any is known, it is one.
    """
    if not peaks:
        return 1
    return max(1, min(count, int(_SAFE * free) // max(1, *peaks)))


def end_with_stdin() -> None:
    """This process is told to stop when its stdin is closed: when the one that has started it ends."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


@dataclass(frozen=True)
class _Share:
    """What a process has of the machine.

    Attributes:
        place: among the processes that run at a time.
        cores: their numbers; none where a process cannot be kept to some.
        gpus: as of CUDA_VISIBLE_DEVICES; none where there are none.
    """

    place: int
    cores: tuple[int, ...]
    gpus: tuple[str, ...]


def _shares(count: int) -> list[_Share]:
    if count < 1:
        raise InputError(f"--jobs must be at least 1, not {count}")
    cores, gpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [], _gpus()
    if 0 < len(gpus) < count:
        raise InputError(f"--jobs={count} processes cannot share {len(gpus)} GPUs: give --jobs={len(gpus)}")
    each, mine = max(len(cores) // count, 1), len(gpus) // count
    return [
        _Share(
            place,
            tuple(cores[(place * each + i) % len(cores)] for i in range(each)) if cores else (),
            tuple(gpus[place * mine : (place + 1) * mine]),
        )
        for place in range(count)
    ]


def _gpus(environment: Mapping[str, str] = os.environ, nvidia: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    if environment.get("JAX_PLATFORMS") == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [one for one in environment["CUDA_VISIBLE_DEVICES"].split(",") if one]
    return [str(number) for number, _ in enumerate(nvidia.glob("*"))]


def _started(job: Job, share: _Share, logs: Path) -> subprocess.Popen:
    console.console.print(f"{job.name}: begun")
    environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": ",".join(share.gpus)} if share.gpus else {})
    before = os.sched_getaffinity(0) if share.cores else ()
    with (logs / f"{job.name}.log").open("ab") as log:
        try:
            if share.cores:  # which the process takes over as it starts, before a thread of it runs elsewhere
                os.sched_setaffinity(0, share.cores)
            # Away from the terminal, whose Ctrl-C is for this process: it tells the others once, by their stdin.
            return subprocess.Popen(
                [*job.command, "--while-stdin"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        finally:
            if share.cores:
                os.sched_setaffinity(0, before)


def _tell_end(job: Job, process: subprocess.Popen, logs: Path) -> None:
    process.stdin.close()
    status = process.returncode
    if status in (0, 1, SAVED):
        told = ("done", "failed", "stopped")[(0, 1, SAVED).index(status)]
    else:
        told = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        told += f", see {logs / job.name}.log"
    console.console.print(f"{job.name}: {told}")


def _peak(job: Job) -> int:
    """Bytes that a step of one of its points needs; 0 as long as none has found that out."""
    found = 0
    for point in job.points:
        with contextlib.suppress(InputError):
            found = max(found, Workdir(point.folder).plan.get("peak_bytes", 0))
    return found


# Name -> what makes it from the verb's options; `sweep` asks for one by `--launcher`.
LAUNCHERS: dict[str, Callable[[argparse.Namespace], Launcher]] = {
    "local": lambda options: functools.partial(beside, count=options.jobs, logs=options.logs),
    "print": lambda options: printed,
    "slurm": slurm.launcher,
}
