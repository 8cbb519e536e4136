"""`sweep --launcher=local`: processes of this machine, beside the sweep's own."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tljax import console
from tljax.checkpoints.workdir import Workdir
from tljax.distributed.preemption import SAVED, PreemptionSignal
from tljax.errors import InputError
from tljax.profiling.device_memory import host_bytes
from tljax.sweeps.launchers.base import Job

_LOOK = 0.1  # seconds between two looks at the processes
_SAFE = 0.9  # of the memory that is free


def run_here(jobs: Sequence[Job], preemption: PreemptionSignal, count: int, logs: Path) -> None:
    """Runs jobs as processes of this machine, with equal shares of its cores and GPUs; a `Launcher`.

    Each ends when this process does, however that ends: its stdin is a pipe from here.

    Args:
        jobs: to be run.
        preemption: says when to stop before the end.
        count: processes at a time; fewer, if the memory that is free is not enough for so many.
        logs: a folder for what they print.
    """
    shares, free = _shares(count), host_bytes()[1]
    waiting, peaks, announced = list(jobs), dict[str, int](), count
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
            if peaks and fit < announced:
                needs = f"a run needs {max(peaks.values()) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
                console.console.print(f"memory: {needs}: {fit} at a time")
                announced = fit
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
    """Returns how many of `count` processes fit into `free` bytes, if each needs the highest of the known `peaks`.

    Before any is known, it is 1.
    """
    if not peaks:
        return 1
    return max(1, min(count, int(_SAFE * free) // max(1, *peaks)))


def end_with_stdin() -> None:
    """Stops this process with SIGTERM when its stdin is closed: when the one that has started it ends."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


@dataclass(frozen=True)
class _Share:
    """The part of the machine that a process has.

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
    cores_each, gpus_each = max(len(cores) // count, 1), len(gpus) // count
    return [
        _Share(
            place,
            tuple(cores[(place * cores_each + i) % len(cores)] for i in range(cores_each)) if cores else (),
            tuple(gpus[place * gpus_each : (place + 1) * gpus_each]),
        )
        for place in range(count)
    ]


def _gpus(environment: Mapping[str, str] = os.environ, nvidia: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    if environment.get("JAX_PLATFORMS") == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [number for number in environment["CUDA_VISIBLE_DEVICES"].split(",") if number]
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
        message = ("done", "failed", "stopped")[(0, 1, SAVED).index(status)]
    else:
        message = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        message += f", see {logs / job.name}.log"
    console.console.print(f"{job.name}: {message}")


def _peak(job: Job) -> int:
    """Returns the bytes that a step of its trials needs; 0 as long as none has written its plan."""
    peak = 0
    for trial in job.trials:
        with contextlib.suppress(InputError):
            peak = max(peak, Workdir(trial.folder).plan.get("peak_bytes", 0))
    return peak
