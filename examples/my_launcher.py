"""A launcher of your own: it runs the jobs of a sweep in turn, and keeps a journal of them.

tljax sweep --config=… --root=… --launcher=my_launcher:Journal
"""

import argparse
import subprocess
from collections.abc import Sequence

from tljax import InputError
from tljax.distributed.preemption import PreemptionSignal
from tljax.sweeps.launchers.base import Job


class Journal:
    """Runs jobs in turn, and writes name and exit status of each to `journal.txt` among the logs."""

    def __init__(self, options: argparse.Namespace):
        if options.jobs > 1:
            raise InputError(f"--jobs={options.jobs}: {type(self).__name__} runs a job at a time")
        self._logs = options.logs

    def __call__(self, jobs: Sequence[Job], preemption: PreemptionSignal) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        for job in jobs:
            preemption.raise_if_set()
            status = subprocess.run(job.command, check=False).returncode
            with (self._logs / "journal.txt").open("a") as journal:
                journal.write(f"{job.name} {len(job.trials)} {status}\n")
