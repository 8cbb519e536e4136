"""`sweep --launcher=slurm`: jobs in arrays of Slurm, submitted by submitit; they outlive the sweep's own process."""

import argparse
import collections
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tljax import console
from tljax.distributed.preemption import SAVED, PreemptionSignal
from tljax.errors import InputError
from tljax.sweeps.launchers.base import Job, Launcher

POLL = 5.0  # seconds between two looks at the queue
# As in launch/slurm.sbatch, where it is said why.
_SBATCH = {"job_name": "tljax", "time": "04:00:00", "cpus_per_task": "2", "signal": "USR1@120", "requeue": True}
_BEFORE = ["trap : TERM", 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"']
_AFTER = [
    "status=$?",
    # Of an array, a task's own number may be the whole array's.
    'task="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"',
    # It saved. If it runs no more, it was cancelled, or Slurm has requeued it by itself.
    f'if [ "$status" -eq {SAVED} ] && [ "$(squeue --noheader --format=%T --jobs="$task")" = RUNNING ]; then',
    '    scontrol requeue "$task"',
    "fi",
    'exit "$status"',
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that only Slurm needs."""
    text = (
        "for --launcher=slurm: an option of sbatch, as partition=gpu, gpus-per-node=1 or time=08:00:00; may be repeated"
    )
    parser.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help=text)


def launcher(options: argparse.Namespace) -> Launcher:
    """Returns what runs jobs on a cluster, at most `--jobs` at a time, from the folder that the sweep is called in.

    A job that is preempted, requeued, or near its time limit saves, and waits in the queue again. What `--root` has in
    the queue is not submitted again, so the sweep may be stopped and called anew meanwhile. What was cancelled is.

    Raises:
        InputError: submitit is not installed, there is no Slurm, or an option cannot be given.
    """
    if not shutil.which("sbatch") or not shutil.which("srun"):
        raise InputError("--launcher=slurm: there is no sbatch on PATH; call it on a login node of the cluster")
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise InputError("--launcher=slurm needs submitit: pip install 'tljax[slurm]'") from error
    if odd := {"%", "\\"} & set(str(options.logs.absolute())):
        raise InputError(
            f"--root={options.root}: Slurm takes {odd.pop()} in the path of a log for a pattern; leave it out"
        )
    sbatch = sbatch_options(options.sbatch)
    return functools.partial(_run, folder=options.logs, at_a_time=options.jobs, sbatch=sbatch)


def sbatch_options(texts: Sequence[str]) -> dict[str, Any]:
    """Returns the values of `--sbatch=KEY=VALUE` by sbatch's long names with underscores; True of a `KEY` alone.

    Raises:
        InputError: one that the sweep sets itself.
    """
    options = {}
    for text in texts:
        key, has_value, value = text.partition("=")
        key = key.lstrip("-").replace("-", "_")
        if key in ("array", "output", "error", "open_mode"):
            raise InputError(f"--sbatch={text}: the sweep sets it itself; --jobs says how many run at a time")
        options[key] = value if has_value else True
    return options


@dataclass(frozen=True)
class Command:
    """What a node runs, which submitit keeps with the job: so a later process knows which trials are in the queue."""

    command: tuple[str, ...]
    trials: tuple[str, ...]

    def __call__(self) -> None:
        # In place of submitit's process: some Slurms signal only the one that srun started, others all below it too,
        # and each signal must come once.
        os.execv(self.command[0], self.command)


def _run(
    jobs: Sequence[Job], preemption: PreemptionSignal, *, folder: Path, at_a_time: int, sbatch: Mapping[str, Any]
) -> None:
    """Submits what is not in the queue, and waits until no job is."""
    names = {trial.folder.name for job in jobs for trial in job.trials}
    queued = _commands(names, folder, queue())
    queued_trials = {trial for command in queued.values() for trial in command.trials}
    new = [command for command in map(_command, jobs) if queued_trials.isdisjoint(command.trials)]
    if queued:
        console.console.print(f"{len(queued)} jobs are in Slurm's queue already")
    _wait(queued | _submit(new, folder, at_a_time, sbatch, queued), jobs, folder, preemption)


def _command(job: Job) -> Command:
    return Command(tuple(job.command), tuple(trial.folder.name for trial in job.trials))


def waiting(names: Collection[str], folder: Path) -> dict[str, str]:
    """Returns what Slurm's queue says of trials, by name; of those that are not there, or where there is none, nothing.

    Args:
        names: of trials.
        folder: of the logs of their sweep, which its jobs were submitted from.
    """
    if not (folder.is_dir() and shutil.which("squeue")):
        return {}
    try:
        states = queue()
        queued = _commands(names, folder, states)
    except (ImportError, InputError):  # it was submitted elsewhere, or Slurm does not answer
        return {}
    return {name: f"Slurm job {id} {states[id].lower()}" for id, command in queued.items() for name in command.trials}


def _commands(names: Collection[str], folder: Path, ids: Mapping[str, str]) -> dict[str, Command]:
    """Returns the queued jobs that were submitted from this folder for trials with these names, by Slurm's number."""
    import submitit

    submitted = (submitit.SlurmJob(folder, id) for id in ids)
    commands = {job.job_id: job.submission().function for job in submitted if job.paths.submitted_pickle.exists()}
    return {id: command for id, command in commands.items() if not set(names).isdisjoint(command.trials)}


def queue() -> dict[str, str]:
    """Returns the state of each job of this user, by number, a task of an array as `12_3`.

    Raises:
        InputError: no Slurm answers.
    """
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise InputError(f"no Slurm answers: {' '.join(process.stderr.split())[-200:]}")
    return dict(line.split() for line in process.stdout.splitlines())


def _executor(folder: Path, at_a_time: int, sbatch: Mapping[str, Any], after: Sequence[str] = ()) -> Any:
    """Returns the submitit executor of jobs with these options of sbatch, which start when those in `after` have ended.

    A container (pyxis, or Slurm's own) is one of the task: the script around it is the host's, which has scontrol.
    """
    import submitit

    options = _SBATCH | ({"dependency": f"afterany:{':'.join(after)}"} if after else {}) | sbatch
    containers = [key for key in options if "container" in key]
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(
        array_parallelism=at_a_time,
        setup=_BEFORE,
        teardown=_AFTER,
        stderr_to_stdout=True,
        srun_args=[_flag(key, options[key]) for key in containers],
        additional_parameters={key: value for key, value in options.items() if key not in containers},
    )
    return executor


def _flag(key: str, value: Any) -> str:
    return f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")


def _submit(
    commands: Sequence[Command], folder: Path, at_a_time: int, sbatch: Mapping[str, Any], queued: Mapping[str, Command]
) -> dict[str, Command]:
    """Submits one array, after those that are in the queue already, so that no more run at a time than they may."""
    if not commands:
        return {}
    # If this process dies before it has left the commands there, the jobs look for them for a minute, and end.
    try:
        submitted = _executor(folder, at_a_time, sbatch, [*queued]).submit_array(commands)
    except RuntimeError as error:  # what sbatch said
        raise InputError(f"sbatch: {' '.join(str(error).split())[-300:]}") from error
    ids = [job.job_id for job in submitted]
    number = ids[0].partition("_")[0]
    console.console.print(
        f"Slurm job {number}: {len(ids)} tasks, {min(at_a_time, len(ids))} at a time, logs in {folder}; this process "
        f"may be stopped meanwhile, and called again; `scancel {number}` cancels them",
    )
    return dict(zip(ids, commands, strict=True))


def _wait(commands: Mapping[str, Command], jobs: Sequence[Job], folder: Path, preemption: PreemptionSignal) -> None:
    """Waits until none of them is in the queue; prints what changes there."""
    states, last_line = dict.fromkeys(commands, "PENDING"), ""
    while states:
        preemption.raise_if_set()
        counts = sorted(collections.Counter(states.values()).items())
        now = ", ".join(f"{count} {state.lower()}" for state, count in counts)
        if now != last_line:
            ended = f"{len(commands) - len(states)} of {len(commands)} tasks ended"
            console.console.print(f"{time.strftime('%H:%M:%S')} Slurm: {now}; {ended}")
            last_line = now
        time.sleep(POLL)
        try:
            queued = queue()
        except InputError as error:  # a controller that is busy, or starts anew
            console.console.print(f"{error}; looking again")
            continue
        states = {id: queued[id] for id in commands if id in queued}
    trials = {trial.folder.name: trial for job in jobs for trial in job.trials}
    for id, command in commands.items():
        if any(not (trials[name].result or trials[name].error) for name in trials.keys() & set(command.trials)):
            message = f"Slurm job {id} ended without all its runs, and the same command tries again"
            console.console.print(f"{message}: {folder / f'{id}_0_log.out'}")
