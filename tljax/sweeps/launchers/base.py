"""What a launcher is: it starts the processes of a sweep, and waits for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tljax.distributed.preemption import PreemptionSignal
from tljax.sweeps.trial import Trial, units


@dataclass(frozen=True)
class Job:
    """The share of a sweep that a process has.

    Attributes:
        name: the same whenever the same sweep has the same trials to do; letters, digits, `_`, `-` and `.`.
        command: runs the trials, from the folder in which the sweep was started. What is finished is not done again,
            what was begun goes on, and what another process does is waited for. Its exit status is 0, 1 if a trial has
            failed, or 75 if it was stopped by a signal and has saved.
        trials: what it runs; their workdirs say what became of them.
    """

    name: str
    command: tuple[str, ...]
    trials: tuple[Trial, ...]


@runtime_checkable
class Launcher(Protocol):
    """Runs jobs, here or on a cluster.

    `--launcher=package.module:name` takes a user's own: `name` is called once, before anything is trained, with the
    options of the command line, and returns a launcher. Of the options it may need `root` (of the workdirs), `logs` (a
    folder for what jobs print), `jobs` (how many may run at a time) and `sbatch` (a list of KEY=VALUE). What it cannot
    run with it refuses by raising `tljax.errors.InputError` there.
    """

    def __call__(self, jobs: Sequence[Job], preemption: PreemptionSignal) -> None:
        """Runs all jobs to their end, whatever becomes of each.

        It is called for training, and again for the tests of the trials that were chosen. A job that it leaves undone
        is done when the same sweep is called again.

        Raises:
            Stopped: by `preemption.raise_if_set()`, to be called every few seconds. Jobs that would not outlive this
                process are stopped first, by SIGTERM, and waited for, as they save.
        """


def make_jobs(trials: Sequence[Trial], command: Sequence[str], test: bool) -> list[Job]:
    """Returns the jobs of a sweep, one for each of its `units`.

    Args:
        trials: to be run.
        command: of the sweep, to which is added which trials the job runs.
        test: whether they are evaluated on the test split, too.
    """
    jobs = []
    for unit in units(trials):
        name = unit[0].name + (f"-and-{len(unit) - 1}" if len(unit) > 1 else "") + ("-test" if test else "")
        share = f"--trials={','.join(trial.name for trial in unit)}", *(("--conclude",) if test else ())
        jobs.append(Job(name, (*command, *share), tuple(unit)))
    return jobs
