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
from tljax.cli.flags import config_file, fault_in, parse_experiment
from tljax.config import flag_types
from tljax.config.schema import Experiment
from tljax.distributed.preemption import PreemptionSignal
from tljax.errors import InputError
from tljax.io import buckets
from tljax.sweeps import runner, selection, status
from tljax.sweeps.launchers import local
from tljax.sweeps.sweep import CarryOut, Protocol, show, sweep
from tljax.sweeps.trial import Trial, logs_folder, named, points, uneven


def _found(experiment: Experiment, arguments: list[str], root: epath.Path) -> list[Trial]:
    file, arg = config_file(arguments)
    try:
        overrides = runpy.run_path(file).get("sweep")
        if overrides is None:
            raise InputError(f"{file} has no function sweep(), which yields the keys of each run: {{'seed': 1}}, …")
        takes = inspect.signature(overrides).parameters
        return points(experiment, overrides(arg) if takes and arg else overrides(), root)
    except Exception as error:
        if isinstance(error, InputError) or not (fault := fault_in(file, error)):
            raise
        raise fault from error


def _parser() -> argparse.ArgumentParser:
    parser = flag_types.Parser("python -m tljax sweep", description=__doc__)
    told = "required: the folder or bucket of the runs' workdirs"
    parser.add_argument("--root", type=flag_types.path, required=True, help=told)
    told = (
        "all (default) of every setting, then choose; chosen: the first of each, choose, then the chosen one's others"
    )
    parser.add_argument("--seeds", choices=("all", "chosen"), default="all", help=told)
    told = "sections of a config, with commas between, in which the settings of one method differ (default: optim)"
    parser.add_argument("--tuned", default=",".join(selection.TUNED), metavar="SECTIONS", help=told)
    told = "test every run, not only those that validation chooses; their results and the report say so"
    parser.add_argument("--peek-test", action="store_true", help=told)
    told = "try again what has failed; what was stopped or killed goes on in any case"
    parser.add_argument("--retry-failed", action="store_true", help=told)
    told = "print how far each run is, and do nothing"
    parser.add_argument("--status", action="store_true", help=told)
    told = "stop with all saved before so many seconds are over, with exit status 75; the same command goes on"
    parser.add_argument("--max-seconds", type=flag_types.seconds, default=0, metavar="S", help=told)
    told = "with commas between: train these alone, test held back, and choose nothing (what a launched process does)"
    parser.add_argument("--points", default="", metavar="NAMES", help=told)
    parser.add_argument("--conclude", action="store_true", help="of --points: test them, too")
    local.add_arguments(parser)
    return parser


def _launched(options: argparse.Namespace, arguments: Sequence[str], preemption: PreemptionSignal) -> CarryOut:
    """Carries points out by processes of their own, which are given the same config."""
    configs = [argument for argument in arguments if argument.startswith("--config")]
    command = [sys.executable, "-m", "tljax", "sweep", *configs, f"--root={options.root}"]
    command += ["--peek-test"] if options.peek_test else []
    launch = local.LAUNCHERS[options.launcher](options)
    return lambda wanted, test: launch(local.jobs(wanted, command, test and not options.peek_test), preemption)


def main(arguments: list[str]) -> int:
    experiment, options = parse_experiment(_parser(), arguments)
    root = buckets.to_path(options.root)
    options.root, options.logs = root, logs_folder(root)
    found, tuned = _found(experiment, arguments, options.root), tuple(options.tuned.split(","))
    protocol = Protocol(tuned, options.seeds, options.peek_test)
    selection.methods(found, tuned)  # which knows these sections
    if options.status:
        with streams.results():
            status.show(found)
        return 0
    with PreemptionSignal(options.max_seconds).listening() as preemption:

        def here(wanted: Sequence[Trial], test: bool) -> None:
            runner.carry_out(wanted, found, preemption, test, options.peek_test)

        if options.points:
            if options.while_stdin:
                local.end_with_stdin()
            wanted = named(found, options.points.split(","))
            here(wanted, options.conclude or options.peek_test)
            return 1 if any(point.error for point in wanted) else 0
        if options.retry_failed:
            for point in found:
                Workdir(point.folder).forget_error()
        alone = options.launcher == "local" and options.jobs == 1
        prints = options.launcher == "print"
        with console.on_stderr() if prints else contextlib.nullcontext():
            if warning := uneven(found):
                console.console.print(warning)
            left = sweep(found, protocol, here if alone else _launched(options, arguments, preemption))
    if prints and left:
        again = [argument for argument in arguments if not argument.startswith("--launcher")]
        command = shlex.join([sys.executable, "-m", "tljax", "sweep", *again])
        with streams.results() as stdout:
            print(f"# and when these have ended: {command}", file=stdout)
        return 0
    show(found, set() if left else protocol.chosen(found))
    return 1 if left or any(point.error for point in found) else 0
