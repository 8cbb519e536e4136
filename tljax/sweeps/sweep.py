"""`sweep`: many runs of a config that differ in some keys; what they have in common is computed once.

Every setting is trained with the test split held back. When all are in, the setting of each method with the best mean
over seeds on validation is chosen, and its runs alone are tested.
"""

import argparse
import contextlib
import inspect
import runpy
import shlex
import statistics
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from etils import epath

from tljax import console, streams
from tljax.checkpoints.workdir import Workdir
from tljax.cli.flags import config_file, fault_in, parse_experiment
from tljax.config import flag_types
from tljax.config.schema import Experiment
from tljax.distributed.preemption import Notice
from tljax.errors import InputError
from tljax.io import buckets
from tljax.problems.base import JUDGED
from tljax.sweeps import runner, selection, status
from tljax.sweeps.launchers import local
from tljax.sweeps.trial import Point, logs_folder, named, points, uneven


@dataclass(frozen=True)
class Protocol:
    """Which points are trained, and which are tested.

    Attributes:
        tuned: sections of a config in which the settings of a method differ (`selection`).
        seeds: `all` of every setting before one is chosen; or `chosen`: the first of each, then the others of those
            that were chosen by it.
        peek: whether every point is tested.
    """

    tuned: tuple[str, ...] = selection.TUNED
    seeds: str = "all"
    peek: bool = False

    def due(self, found: Sequence[Point]) -> tuple[list[Point], bool]:
        """What is to be done next as the workdirs stand; and whether it is tested, too, or trained alone.

        What has failed is not due, and is never chosen before what has not.
        """
        if self.peek:
            return [point for point in found if point.left(test=True)], True
        first = found
        if self.seeds == "chosen":
            first = [members[0] for members in selection.by_setting(found).values()]
        if training := [point for point in first if point.left(test=False)]:
            return training, False
        picked = self.chosen(first)
        return [
            point for point in found if selection.setting_of(point.experiment) in picked and point.left(test=True)
        ], True

    def chosen(self, found: Sequence[Point]) -> set[Experiment]:
        """The setting of each method that is tested: the best, or the only one."""
        chosen = selection.chosen(found, self.tuned)
        picked = {selection.setting_of(members[0].experiment) for members in chosen.values()}
        for method, settings in selection.methods(found, self.tuned).items():
            if method not in chosen and len(settings) == 1:
                picked |= settings.keys()
        return picked


CarryOut = Callable[[Sequence[Point], bool], None]


def sweep(found: Sequence[Point], protocol: Protocol, carry_out: CarryOut) -> list[Point]:
    """Has carried out what is due until nothing is, each point at most once; returns those that are due all the same.

    Args:
        carry_out: trains points or, if told so, trains and tests them as far as they are not; leaves them failed or
            unfinished, if it must.

    Raises:
        Stopped: told to; the same call goes on.
    """
    tried: set[tuple[Point, bool]] = set()
    while True:
        due, test = protocol.due(found)
        new = [point for point in due if (point, test) not in tried]
        if not new:
            return due
        tried |= {(point, test) for point in new}
        carry_out(new, test)


def show(found: Sequence[Point], picked: Collection[Experiment]) -> None:
    """A table: a row per setting, with the mean over its seeds, and a star at those that were chosen."""
    metric, rows = JUDGED[found[0].experiment.task.problem].best, []
    for setting, members in selection.by_setting(found).items():
        done = [point for point in members if point.result]
        cells = [_mean(done, name, metric) for name in ("validation", "test")]
        seconds = f"{sum(point.result['wall_seconds'] for point in done):.0f}"
        star = " *" if done and setting in picked else ""
        rows.append((members[0].setting + star, f"{len(done)} of {len(members)}", *cells, seconds))
    title = "sweep (* the best of its method on validation)"
    console.table(title, ("setting", "runs", f"validation {metric}", f"test {metric}", "s"), rows)
    for point in found:
        if point.error:
            told = f"failed: {point.setting}, seed {point.experiment.seed} ({point.folder}): {point.error['error']}"
            console.console.print(told)


def _mean(done: Sequence[Point], split: str, metric: str) -> str:
    values = [point.result["splits"][split][metric] for point in done if split in point.result["splits"]]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}" if values else ""


def _found(experiment: Experiment, arguments: list[str], root: epath.Path) -> list[Point]:
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


def _launched(options: argparse.Namespace, arguments: Sequence[str], notice: Notice) -> CarryOut:
    """Carries points out by processes of their own, which are given the same config."""
    configs = [argument for argument in arguments if argument.startswith("--config")]
    command = [sys.executable, "-m", "tljax", "sweep", *configs, f"--root={options.root}"]
    command += ["--peek-test"] if options.peek_test else []
    launch = local.LAUNCHERS[options.launcher](options)
    return lambda wanted, test: launch(local.jobs(wanted, command, test and not options.peek_test), notice)


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
    with Notice(options.max_seconds).listening() as notice:

        def here(wanted: Sequence[Point], test: bool) -> None:
            runner.carry_out(wanted, found, notice, test, options.peek_test)

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
            left = sweep(found, protocol, here if alone else _launched(options, arguments, notice))
    if prints and left:
        again = [argument for argument in arguments if not argument.startswith("--launcher")]
        command = shlex.join([sys.executable, "-m", "tljax", "sweep", *again])
        with streams.results() as stdout:
            print(f"# and when these have ended: {command}", file=stdout)
        return 0
    show(found, set() if left else protocol.chosen(found))
    return 1 if left or any(point.error for point in found) else 0
