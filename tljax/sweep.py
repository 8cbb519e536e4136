"""`sweep`: many runs of a config that differ in some keys; what they have in common is computed once."""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import runpy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tljax import console, features, heads, selection
from tljax.config import Experiment
from tljax.errors import InputError
from tljax.fields import to_dict, with_values
from tljax.flags import config_file, parse_experiment
from tljax.metrics import JUDGED
from tljax.plan import plan
from tljax.run import Run, prepare
from tljax.step import State
from tljax.stopping import Notice
from tljax.train import base_of, digest_of, train, train_run
from tljax.workdir import Workdir


@dataclass(frozen=True, eq=False)
class Point:
    """One run of a sweep.

    Attributes:
        overrides: value by dotted key, of what it has otherwise than the config.
        experiment: all that determines it.
        folder: its workdir, named by its content.
    """

    overrides: Mapping[str, Any]
    experiment: Experiment
    folder: Path

    @property
    def result(self) -> dict[str, Any] | None:
        return Workdir(self.folder).result

    @property
    def setting(self) -> str:
        """The overrides in words, but for the seed."""
        return ", ".join(f"{key.split('.')[-1]}={value}" for key, value in self.overrides.items() if key != "seed")


def points(experiment: Experiment, overrides: Iterable[Mapping[str, Any]], root: Path) -> list[Point]:
    """The runs of a sweep; all are checked before one begins.

    Args:
        experiment: the config.
        overrides: of each run, value by dotted key (`tuning.strategy`). A strategy takes the config's arguments along
            only if it is the config's.
        root: the folder of their workdirs.

    Raises:
        InputError: a key that does not exist, a value of another type, or one run twice.
    """
    found: dict[str, Point] = {}
    for one in overrides:
        values = to_dict(experiment)
        if one.get("tuning.strategy", experiment.tuning.strategy) != experiment.tuning.strategy:
            values["tuning"] = {"group_rates": experiment.tuning.group_rates}
        made = Experiment.from_config(with_values(values, one))
        name = hashlib.sha256(json.dumps(_content(made), sort_keys=True).encode()).hexdigest()[:10]
        if name in found:
            raise InputError(f"the sweep has one run twice: {dict(one)} and {dict(found[name].overrides)}")
        found[name] = Point(dict(one), made, root / f"{made.tuning.strategy}-{name}")
    if not found:
        raise InputError("the sweep yields no run")
    return list(found.values())


def _content(experiment: Experiment) -> dict[str, Any]:
    """What a run's result depends on."""
    return {key: value for key, value in to_dict(experiment).items() if key not in ("input", "checkpoint", "mesh")}


def sweep(found: Sequence[Point], notice: Notice | None = None) -> list[Point]:
    """Carries out the runs that are not finished; returns those that ended with an error, which is printed.

    Runs that share a frozen prefix share its features, tapped at all of their boundaries in one pass; linear probes
    that differ in numbers only train side by side (`heads`). Each ends as if it had been trained by itself.

    Raises:
        Stopped: told to; the same call goes on.
    """
    notice, failed = notice or Notice(), []
    groups: dict[Experiment, list[Point]] = {}
    for point in found:
        if not point.result:
            groups.setdefault(_common(point.experiment), []).append(point)
    for group in groups.values():
        alone, probes = _parted(group, notice)
        alike: dict[Experiment, list[Point]] = {}
        for point in alone:
            alike.setdefault(point.experiment.numberless(), []).append(point)
        for members in alike.values():
            failed += _one_after_another(members, notice, len(group))
        for mates in probes:
            failed += _side_by_side(mates, notice)
    return failed


def _common(experiment: Experiment) -> Experiment:
    """What a frozen prefix, and the examples that it sees, depend on."""
    task = dataclasses.replace(
        experiment.task, batch_size=1, eval_batch_size=1, balance="", class_weights=(), flip_test=False
    )
    return Experiment(
        seed=experiment.seed if task.varies or not experiment.backbone.weights else 0,
        compute_dtype=experiment.compute_dtype,
        cache=experiment.cache,
        backbone=experiment.backbone,
        task=task,
    )


def _parted(group: Sequence[Point], notice: Notice) -> tuple[list[Point], list[list[Point]]]:
    """Those that train by themselves, and those that train side by side; the features that they share are made."""
    run, stops = None, set()
    for tuning in dict.fromkeys(point.experiment.tuning for point in group):
        with contextlib.suppress(InputError):  # which the point meets again by itself
            run = prepare(next(point.experiment for point in group if point.experiment.tuning == tuning))
            run.cached, _ = features.choice(run, len(group))
            stops |= set(features.stops(run, run.phases[0]))
    if not stops:
        return list(group), []
    state = run.init_state()
    for name, split in run.inputs.splits.items():
        features.computed(run, state, split, sorted(stops), training=name == "train", halt=notice.raises)
    probes: list[list[Point]] = []
    for point in group:
        mates = next((mates for mates in probes if heads.together(mates[0].experiment, point.experiment)), None)
        if mates is None:
            probes.append([point])
        else:
            mates.append(point)
    return [one for mates in probes if len(mates) == 1 for one in mates], [mates for mates in probes if len(mates) > 1]


def _tried(point: Point, carry_out: Callable[[], Any]) -> list[Point]:
    """The point, if it failed, and why is printed; else nothing."""
    console.console.print(f"{point.setting}, seed {point.experiment.seed}: {point.folder}")
    try:
        with console.quiet():
            carry_out()
    except InputError as error:
        console.console.print(f"failed: {error}")
        return [point]
    return []


def _one_after_another(alike: Sequence[Point], notice: Notice, runs: int) -> list[Point]:
    """Trains runs that differ in numbers only, with the programs of the first; returns those that failed."""
    prepared: list[Run] = []

    def carry_out(point: Point) -> None:
        if not prepared:
            prepared.append(prepare(point.experiment))
        train(point.experiment, point.folder, notice, runs, prepared[0].of(point.experiment))

    return [failed for point in alike for failed in _tried(point, functools.partial(carry_out, point))]


def _side_by_side(mates: Sequence[Point], notice: Notice) -> list[Point]:
    """Trains linear probes together, and leaves each as a run of its own; returns those that failed."""
    run, began = prepare(mates[0].experiment), time.monotonic()
    run.cached, state = True, run.init_state()
    console.console.print(f"{len(mates)} linear probes side by side")
    train_split, (start,) = run.inputs.splits["train"], features.stops(run, run.phases[0])
    found = features.computed(run, state, train_split, [start], training=True, halt=notice.raises)[start]
    stream = run.train_input(found)
    fitted = heads.fit([point.experiment for point in mates], found.array(), stream, len(run.resolved.classes))
    planned, seconds = plan(run), (time.monotonic() - began) / len(mates)
    failed = []
    for point, head in zip(mates, fitted, strict=True):
        failed += _tried(point, functools.partial(_finish, run, state, planned, point, head, seconds, notice))
    return failed


def _finish(
    run: Run, state: State, planned: dict[str, Any], point: Point, head: heads.Head, seconds: float, notice: Notice
) -> None:
    """Leaves a head as `train` leaves a run at its last step, and has `train` find out how good it is."""
    if head.failed:
        raise InputError("the loss was not finite at some step: lower optim.learning_rate, or set optim.clip_norm")
    mine = run.of(point.experiment)
    state = head.in_state(state)
    folder, step = Workdir(point.folder), int(state.step)
    with folder.locked():
        folder.start(point.experiment, run.resolved, run.inputs.tokenizer if run.network.reads == "text" else None)
        folder.save_plan(planned | {"frozen_digest": digest_of(mine, state)})
        with folder.checkpoints(point.experiment, writer=True) as checkpoints:
            checkpoints.keep_base(base_of(mine, state))
            checkpoints.save(state, mine.unmoved(step))
            checkpoints.wait()
        folder.append({"step": step, "split": "train", "seconds": seconds, "input_seconds": 0.0})
        folder.flush()
        train_run(mine, folder, notice)


def show(found: Sequence[Point]) -> None:
    """A table: a row per setting, with the mean over its seeds, and a star at each strategy's best."""
    metric = JUDGED[found[0].experiment.task.problem].best
    settings: dict[str, list[Point]] = {}
    for point in found:
        settings.setdefault(point.setting, []).append(point)
    chosen, rows = list(selection.chosen(found).values()), []
    for setting, members in settings.items():
        done = [point for point in members if point.result]
        cells = [_mean(done, name, metric) for name in ("validation", "test")]
        seconds = f"{sum(point.result['wall_seconds'] for point in done):.0f}"
        rows.append((setting + (" *" if done in chosen else ""), f"{len(done)} of {len(members)}", *cells, seconds))
    console.table("sweep", ("setting", "runs", f"validation {metric}", f"test {metric}", "s"), rows)


def _mean(done: Sequence[Point], split: str, metric: str) -> str:
    values = [point.result["splits"][split][metric] for point in done if split in point.result["splits"]]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}" if values else ""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m tljax sweep", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="required: the folder of the runs' workdirs")
    told = "stop with all saved before so many seconds are over, with exit status 75; the same command goes on"
    parser.add_argument("--max-seconds", type=float, default=0, metavar="S", help=told)
    experiment, options = parse_experiment(parser, arguments)
    file, arg = config_file(arguments)
    overrides = runpy.run_path(file).get("sweep")
    if overrides is None:
        raise InputError(f"{file} has no function sweep(), which yields the keys of each run: {{'seed': 1}}, …")
    takes = inspect.signature(overrides).parameters
    found = points(experiment, overrides(arg) if takes and arg else overrides(), options.root)
    with Notice(options.max_seconds).listening() as notice:
        failed = sweep(found, notice)
    show(found)
    return 1 if failed else 0
