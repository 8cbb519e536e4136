"""Carries points of a sweep out in this process: what they have in common is computed once."""

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tljax import console
from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import Experiment
from tljax.core.run import Run, prepare
from tljax.core.train_step import State
from tljax.distributed.preemption import PreemptionSignal
from tljax.errors import InputError
from tljax.evals import linear_probe
from tljax.io.lock import Lost, Taken
from tljax.profiling.summary import plan
from tljax.sweeps.trial import Trial, common, side_by_side
from tljax.training import feature_cache
from tljax.training.trainer import base_of, conclude, digest_of, train_run

HELD = ("test",)  # until it is known which settings are chosen
_LOOK = 1.0  # seconds between two looks at a point that another process is at


def carry_out(
    wanted: Sequence[Trial],
    among: Sequence[Trial],
    preemption: PreemptionSignal | None = None,
    test: bool = False,
    peeked: bool = False,
) -> None:
    """Trains the points that are not finished, the test split held back; with `test`, has all evaluated on it, too.

    Points that share a frozen prefix share its features, tapped at all of their boundaries in one pass; linear probes
    that differ in numbers only train side by side (`heads`). Each ends as if it had been trained by itself. One that
    fails leaves `error.json`, and the others go on; one that another process is at is waited for.

    Args:
        among: the whole sweep. By it is decided whether features pay and which heads make up a program, so that a
            result does not depend on what else was left to do.
        peeked: the results say that test was looked at before a choice.

    Raises:
        Stopped: told to; the same call goes on.
    """
    preemption = preemption or PreemptionSignal()
    while True:
        work = _Pass(among, preemption, test, peeked)
        work.over(point for point in wanted if point.left(test))
        if not work.taken:
            return
        console.console.print(f"waiting for points that another process is at: {len(work.taken)}")
        while all(Workdir(point.folder).writer for point in work.taken):
            preemption.raise_if_set()
            time.sleep(_LOOK)


@dataclass
class _Pass:
    """One go at each of some points.

    Attributes:
        taken: points that another process was at.
    """

    among: Sequence[Trial]
    preemption: PreemptionSignal
    test: bool
    peeked: bool
    taken: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = Counter(common(point.experiment) for point in self.among)

    def over(self, found: Iterable[Trial]) -> None:
        groups: dict[Experiment, list[Trial]] = {}
        for point in found:
            groups.setdefault(common(point.experiment), []).append(point)
        for group in groups.values():
            prepared, cached = self._features(group)
            trained = [point for point in group if point.result]
            fresh = [point for point in group if point not in trained]
            alone, together = _parted(fresh, self.among) if cached else (fresh, [])
            alike: dict[Experiment, list[Trial]] = {}
            for point in [*alone, *trained]:
                alike.setdefault(point.experiment.without_traced_hparams(), []).append(point)
            for members in alike.values():
                self._one_after_another(members, prepared)
            for wanted, mates in together:
                self._side_by_side(wanted, mates, prepared)

    def _features(self, group: Sequence[Trial]) -> tuple[dict[Experiment, Run], bool]:
        """Makes the features that points share; returns runs that were prepared for it, and whether there are any."""
        prepared: dict[Experiment, Run] = {}
        stops: set[int] = set()
        for experiment in {point.experiment.tuning: point.experiment for point in reversed(group)}.values():
            with contextlib.suppress(InputError):  # which the point meets again by itself
                prepared[experiment] = run = prepare(experiment)
                run.cached, _ = feature_cache.choice(run, self.runs[common(experiment)])
                stops |= set(feature_cache.stops(run, run.phases[0]))
        if not stops:
            return prepared, False
        run = next(run for run in prepared.values() if run.cached)
        state, training = run.init_state(), any(point.result is None for point in group)
        with contextlib.suppress(InputError):
            for name, split in run.inputs.splits.items():
                if self.test if name in HELD else training:
                    is_train = name == "train"
                    feature_cache.computed(
                        run, state, split, sorted(stops), training=is_train, halt=self.preemption.raise_if_set
                    )
        return prepared, True

    def _one_after_another(self, alike: Sequence[Trial], prepared: dict[Experiment, Run]) -> None:
        """Carries points out that differ in numbers only, with the programs of the first."""
        first: list[Run] = []

        def carry_out(point: Trial) -> None:
            if not first:
                first.append(prepared.pop(point.experiment, None) or prepare(point.experiment))
            self._carried_out(first[0].of(point.experiment), point)

        for point in alike:
            with contextlib.ExitStack() as stack:
                if self._mine(stack, point):
                    _tried(point, functools.partial(carry_out, point))

    def _mine(self, stack: contextlib.ExitStack, point: Trial) -> bool:
        """Whether the point is this process's to carry out, from now to the end of the stack."""
        try:
            stack.enter_context(Workdir(point.folder).locked())
        except Taken:
            self.taken.append(point)
            return False
        return point.left(self.test)  # for another process may just have done it

    def _carried_out(self, run: Run, point: Trial) -> None:
        """`train`, or what it has held back, in a workdir that is this process's own."""
        folder = Workdir(point.folder)
        if folder.result:
            conclude(run, folder, self.preemption)
            return
        run.batch_size  # noqa: B018 (which the devices here may not be able to share)
        _start(run, folder)
        runs = self.runs[common(point.experiment)]
        train_run(run, folder, self.preemption, runs, () if self.test else HELD, self.peeked)

    def _side_by_side(self, wanted: Sequence[Trial], mates: Sequence[Trial], prepared: dict[Experiment, Run]) -> None:
        """Trains linear probes together, and leaves those that are wanted as runs of their own."""
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            mine = [point for point in wanted if self._mine(stack, point)]
            if not mine:
                return
            try:
                run = prepared.pop(mine[0].experiment, None) or prepare(mine[0].experiment)
                run.cached, state = True, run.init_state()
                fitted = self._fitted(run, state, mates)
                planned, seconds = plan(run), (time.monotonic() - began) / len(mates)
            except InputError:  # which the one that it is about meets by itself, and the others do not
                for point in mine:
                    _tried(point, functools.partial(self._carried_out_alone, point))
                return
            for point in mine:
                head = fitted[mates.index(point)]
                _tried(point, functools.partial(self._finish, run, state, planned, point, head, seconds))

    def _carried_out_alone(self, point: Trial) -> None:
        self._carried_out(prepare(point.experiment), point)

    def _fitted(self, run: Run, state: State, mates: Sequence[Trial]) -> list[linear_probe.Head]:
        console.console.print(f"{len(mates)} linear probes side by side")
        split, (start,) = run.inputs.splits["train"], feature_cache.stops(run, run.phases[0])
        found = feature_cache.computed(run, state, split, [start], training=True, halt=self.preemption.raise_if_set)[
            start
        ]
        experiments = [point.experiment for point in mates]
        return linear_probe.fit(experiments, found.array(), run.train_input(found), len(run.resolved.classes))

    def _finish(
        self, run: Run, state: State, planned: dict[str, Any], point: Trial, head: linear_probe.Head, seconds: float
    ) -> None:
        """Leaves a head as `train` leaves a run at its last step, and has `train` find out how good it is."""
        if head.failed:
            raise InputError("the loss was not finite at some step: lower optim.learning_rate, or set optim.clip_norm")
        mine, state = run.of(point.experiment), head.in_state(state)
        folder, step = Workdir(point.folder), int(state.step)
        _start(mine, folder)
        folder.save_plan(planned | {"frozen_digest": digest_of(mine, state)})
        with folder.checkpoints(point.experiment, writer=True) as checkpoints:
            checkpoints.keep_base(base_of(mine, state))
            checkpoints.save(state, mine.unmoved(step))
            checkpoints.wait()
        if not folder.metrics:  # which a process that was killed here has left
            folder.append({"step": step, "split": "train", "seconds": seconds, "input_seconds": 0.0})
        folder.flush()
        self._carried_out(mine, point)


def _parted(fresh: Sequence[Trial], among: Sequence[Trial]) -> tuple[list[Trial], list[tuple[list, list]]]:
    """The points that train by themselves; and those that train side by side, with all that are of their program."""
    alone, together = [], []
    for mates in side_by_side(among):
        wanted = [point for point in mates if point in fresh]
        if len(mates) == 1:
            alone += wanted
        elif wanted:
            together.append((wanted, mates))
    return alone, together


def _start(run: Run, folder: Workdir) -> None:
    folder.start(run.experiment, run.resolved, run.inputs.tokenizer if run.network.reads == "text" else None)


def _tried(point: Trial, carry_out: Callable[[], None]) -> None:
    """Carries a point out; why it fails is printed, and kept in its workdir."""
    console.console.print(f"{point.setting}, seed {point.experiment.seed}: {point.folder}")
    try:
        with console.quiet():
            carry_out()
    except Lost as error:  # what is there now is another's, and not failed
        console.console.print(str(error))
    except Exception as error:  # another point may well do, whatever it was
        Workdir(point.folder).fail(error)
        console.console.print(f"failed: {error}")
