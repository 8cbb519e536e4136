"""`sweep`: many runs of a config that differ in some keys; what they have in common is computed once.

Every setting is trained with the test split held back. When all are in, the setting of each method with the best mean
over seeds on validation is chosen, and its runs alone are tested.
"""

import argparse
import contextlib
import inspect
import runpy
import shlex
import sys
from collections.abc import Sequence

from etils import epath

from tljax import console, streams
from tljax.checkpoints.workdir import Workdir
from tljax.cli.flags import config_file, parse_experiment
from tljax.config import flag_types
from tljax.config.files import config_faults
from tljax.config.schema import Experiment
from tljax.distributed.preemption import PreemptionSignal
from tljax.errors import InputError
from tljax.io import buckets
from tljax.sweeps import selection, status
from tljax.sweeps.launchers import registry
from tljax.sweeps.launchers.base import make_jobs
from tljax.sweeps.launchers.local import end_with_stdin
from tljax.sweeps.runner import run_trials
from tljax.sweeps.sweep import Protocol, RunTrials, show, sweep
from tljax.sweeps.trial import Trial, logs_folder, make_trials, trials_by_name, uneven


def _trials(experiment: Experiment, arguments: list[str], root: epath.Path) -> list[Trial]:
    file, arg = config_file(arguments)
    with config_faults(file):
        overrides = runpy.run_path(file).get("sweep")
        if overrides is None:
            raise InputError(f"{file} has no function sweep(), which yields the keys of each run: {{'seed': 1}}, …")
        takes = inspect.signature(overrides).parameters
        return make_trials(experiment, overrides(arg) if takes and arg else overrides(), root)


def _parser() -> argparse.ArgumentParser:
    parser = flag_types.Parser("sweep", description=__doc__)
    text = "required: the folder or bucket of the runs' workdirs"
    parser.add_argument("--root", type=flag_types.path, required=True, help=text)
    text = (
        "all (default): every seed of every setting, then choose; chosen: the first seed of each setting, choose, then "
        "the other seeds of the chosen settings"
    )
    parser.add_argument("--seeds", choices=("all", "chosen"), default="all", help=text)
    text = "comma-separated sections of the config in which the settings of a method differ (default: optim)"
    parser.add_argument("--tuned", default=",".join(selection.TUNED), metavar="SECTIONS", help=text)
    text = "test every trial, not only those that validation chooses; results and report say so"
    parser.add_argument("--peek-test", action="store_true", help=text)
    text = "run failed trials again; those that were stopped or killed go on in any case"
    parser.add_argument("--retry-failed", action="store_true", help=text)
    text = "print the status of each trial, and run nothing"
    parser.add_argument("--status", action="store_true", help=text)
    text = "save and stop before S seconds have passed, with exit status 75; the same command resumes"
    parser.add_argument("--max-seconds", type=flag_types.seconds, default=0, metavar="S", help=text)
    text = "comma-separated names: train only these trials, test none, choose nothing (what a launched process does)"
    parser.add_argument("--trials", "--points", default="", metavar="NAMES", help=text)
    parser.add_argument("--conclude", action="store_true", help="with --trials: test them, too")
    registry.add_arguments(parser)
    return parser


def _launched(options: argparse.Namespace, arguments: Sequence[str], preemption: PreemptionSignal) -> RunTrials:
    """Returns what runs trials in processes of their own, which are given the same config."""
    configs = [argument for argument in arguments if argument.startswith("--config")]
    command = [sys.executable, "-m", "tljax", "sweep", *configs, f"--root={options.root}"]
    command += ["--peek-test"] if options.peek_test else []
    launch = registry.make_launcher(options)
    return lambda trials, test: launch(make_jobs(trials, command, test and not options.peek_test), preemption)


def main(arguments: list[str]) -> int:
    """Runs the verb; returns its exit status, 1 if a trial has failed or is not done."""
    experiment, options = parse_experiment(_parser(), arguments)
    root = buckets.to_path(options.root)
    options.root, options.logs = root, logs_folder(root)
    trials, tuned = _trials(experiment, arguments, options.root), tuple(options.tuned.split(","))
    protocol = Protocol(tuned, options.seeds, options.peek_test)
    selection.methods(trials, tuned)  # which knows these sections
    if options.status:
        with streams.results():
            status.show(trials)
        return 0
    with PreemptionSignal(options.max_seconds).listening() as preemption:

        def run_here(due: Sequence[Trial], test: bool) -> None:
            run_trials(due, trials, preemption, test, options.peek_test)

        if options.trials:
            if options.while_stdin:
                end_with_stdin()
            share = trials_by_name(trials, options.trials.split(","))
            run_here(share, options.conclude or options.peek_test)
            return 1 if any(trial.error for trial in share) else 0
        if options.retry_failed:
            for trial in trials:
                Workdir(trial.folder).forget_error()
        alone = options.launcher == "local" and options.jobs == 1
        prints = options.launcher == "print"
        with console.on_stderr() if prints else contextlib.nullcontext():
            if warning := uneven(trials):
                console.console.print(warning)
            unfinished = sweep(trials, protocol, run_here if alone else _launched(options, arguments, preemption))
    if prints and unfinished:
        again = [argument for argument in arguments if not argument.startswith("--launcher")]
        command = shlex.join([sys.executable, "-m", "tljax", "sweep", *again])
        with streams.results() as stdout:
            print(f"# and when these have ended: {command}", file=stdout)
        return 0
    show(trials, set() if unfinished else protocol.chosen(trials))
    failed, place = any(trial.error for trial in trials), console.shown_path(root)
    if failed:
        console.next_step("sweep", *arguments, *([] if options.retry_failed else ["--retry-failed"]))
    elif not unfinished:
        console.next_step("report", place, f"--out={place.rstrip('/')}-report")
    return 1 if unfinished or failed else 0
