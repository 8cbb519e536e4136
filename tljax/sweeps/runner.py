"""Runs trials of a sweep in this process: what they have in common is computed once."""

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
from tljax.core.state import TrainState
from tljax.distributed.preemption import PreemptionSignal
from tljax.errors import InputError
from tljax.evals import linear_probe
from tljax.io.lock import Lost, Taken
from tljax.profiling.summary import plan
from tljax.sweeps.trial import Trial, common, side_by_side
from tljax.training import feature_cache
from tljax.training.trainer import base_of, conclude, digest_of, train_run

HELD = ("test",)  # until it is known which settings are chosen
_LOOK = 1.0  # seconds between two looks at a trial that another process runs


def run_trials(
    trials: Sequence[Trial],
    sweep: Sequence[Trial],
    signal: PreemptionSignal | None = None,
    evaluate_test: bool = False,
    peeked: bool = False,
) -> None:
    """Trains the trials that are not finished, the test split held back, or evaluates them on it, too.

    Trials that share a frozen prefix share its features, tapped at all of their boundaries in one pass; linear probes
    that differ in numbers only train side by side (`linear_probe`). Each ends as if it had been trained by itself. One
    that fails leaves `error.json`, and the others go on; one that another process runs is waited for.

    Args:
        trials: to be run.
        sweep: all trials of the sweep. By it is decided whether features pay and which heads make up a program, so
            that a result does not depend on what else was left to do.
        signal: says when to stop before the end.
        evaluate_test: whether all are evaluated on the test split, too.
        peeked: whether the results say that test was looked at before a choice.

    Raises:
        Stopped: by the signal; the same call goes on.
    """
    signal = signal or PreemptionSignal()
    while True:
        runner = TrialRunner(sweep, signal, evaluate_test, peeked)
        runner.run(trial for trial in trials if trial.left(evaluate_test))
        if not runner.taken:
            return
        console.console.print(f"waiting for trials that another process runs: {len(runner.taken)}")
        while all(Workdir(trial.folder).writer for trial in runner.taken):
            signal.raise_if_set()
            time.sleep(_LOOK)


@dataclass
class TrialRunner:
    """Tries each of several trials once.

    Attributes:
        sweep, signal, evaluate_test, peeked: as of `run_trials`.
        taken: trials that another process was running.
    """

    sweep: Sequence[Trial]
    signal: PreemptionSignal
    evaluate_test: bool
    peeked: bool
    taken: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = Counter(common(trial.experiment) for trial in self.sweep)

    def run(self, trials: Iterable[Trial]) -> None:
        """Runs trials, those together that share something."""
        groups: dict[Experiment, list[Trial]] = {}
        for trial in trials:
            groups.setdefault(common(trial.experiment), []).append(trial)
        for group in groups.values():
            prepared, cached = self._compute_features(group)
            trained = [trial for trial in group if trial.result]
            fresh = [trial for trial in group if trial not in trained]
            alone, together = _split_by_program(fresh, self.sweep) if cached else (fresh, [])
            alike: dict[Experiment, list[Trial]] = {}
            for trial in [*alone, *trained]:
                alike.setdefault(trial.experiment.without_traced_hparams(), []).append(trial)
            for members in alike.values():
                self._run_in_turn(members, prepared)
            for members, mates in together:
                self._run_side_by_side(members, mates, prepared)

    def _compute_features(self, group: Sequence[Trial]) -> tuple[dict[Experiment, Run], bool]:
        """Computes the features that trials share; returns runs prepared for it, and whether there are any."""
        prepared: dict[Experiment, Run] = {}
        stops: set[int] = set()
        for experiment in {trial.experiment.tuning: trial.experiment for trial in reversed(group)}.values():
            with contextlib.suppress(InputError):  # which the trial meets again by itself
                prepared[experiment] = run = prepare(experiment)
                run.cached, _ = feature_cache.choice(run, self.runs[common(experiment)])
                stops |= set(feature_cache.stops(run, run.phases[0]))
        if not stops:
            return prepared, False
        run = next(run for run in prepared.values() if run.cached)
        state, training = run.init_state(), any(trial.result is None for trial in group)
        with contextlib.suppress(InputError):
            for name, split in run.inputs.splits.items():
                if self.evaluate_test if name in HELD else training:
                    is_train = name == "train"
                    feature_cache.computed(
                        run, state, split, sorted(stops), training=is_train, halt=self.signal.raise_if_set
                    )
        return prepared, True

    def _run_in_turn(self, trials: Sequence[Trial], prepared: dict[Experiment, Run]) -> None:
        """Runs trials that differ in numbers only, with the programs of the first."""
        first: list[Run] = []

        def run_next(trial: Trial) -> None:
            if not first:
                first.append(prepared.pop(trial.experiment, None) or prepare(trial.experiment))
            self._run_locked(first[0].with_experiment(trial.experiment), trial)

        for trial in trials:
            with contextlib.ExitStack() as stack:
                if self._lock(stack, trial):
                    _try(trial, functools.partial(run_next, trial))

    def _lock(self, stack: contextlib.ExitStack, trial: Trial) -> bool:
        """Returns whether this process is to run the trial; its workdir is then locked to the end of the stack."""
        try:
            stack.enter_context(Workdir(trial.folder).locked())
        except Taken:
            self.taken.append(trial)
            return False
        return trial.left(self.evaluate_test)  # for another process may just have done it

    def _run_locked(self, run: Run, trial: Trial) -> None:
        """Trains a trial, or evaluates what it has held back, in a workdir that this process has locked."""
        folder = Workdir(trial.folder)
        if folder.result:
            conclude(run, folder, self.signal)
            return
        run.batch_size  # noqa: B018 (which the devices here may not be able to share)
        _start(run, folder)
        runs = self.runs[common(trial.experiment)]
        train_run(run, folder, self.signal, runs, () if self.evaluate_test else HELD, self.peeked)

    def _run_side_by_side(
        self, trials: Sequence[Trial], mates: Sequence[Trial], prepared: dict[Experiment, Run]
    ) -> None:
        """Trains the linear probes of a program, and leaves those of `trials` as runs of their own."""
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            locked = [trial for trial in trials if self._lock(stack, trial)]
            if not locked:
                return
            try:
                run = prepared.pop(locked[0].experiment, None) or prepare(locked[0].experiment)
                run.cached, state = True, run.init_state()
                heads = self._fit_heads(run, state, mates)
                planned, seconds = plan(run), (time.monotonic() - began) / len(mates)
            except InputError:  # which the trial that it is about meets by itself, and the others do not
                for trial in locked:
                    _try(trial, functools.partial(self._run_alone, trial))
                return
            for trial in locked:
                head = heads[mates.index(trial)]
                _try(trial, functools.partial(self._finish, run, state, planned, trial, head, seconds))

    def _run_alone(self, trial: Trial) -> None:
        self._run_locked(prepare(trial.experiment), trial)

    def _fit_heads(self, run: Run, state: TrainState, mates: Sequence[Trial]) -> list[linear_probe.Head]:
        console.console.print(f"{len(mates)} linear probes side by side")
        split, (start,) = run.inputs.splits["train"], feature_cache.stops(run, run.phases[0])
        features = feature_cache.computed(run, state, split, [start], training=True, halt=self.signal.raise_if_set)
        experiments, inputs = [trial.experiment for trial in mates], features[start]
        return linear_probe.fit(experiments, inputs.array(), run.train_input(inputs), run.network.outputs)

    def _finish(
        self,
        run: Run,
        state: TrainState,
        planned: dict[str, Any],
        trial: Trial,
        head: linear_probe.Head,
        seconds: float,
    ) -> None:
        """Leaves a head as `train` leaves a run at its last step, and has `train` evaluate it."""
        if head.failed:
            raise InputError("the loss was not finite at some step: lower optim.learning_rate, or set optim.clip_norm")
        run, state = run.with_experiment(trial.experiment), head.in_state(state)
        folder, step = Workdir(trial.folder), int(state.step)
        _start(run, folder)
        folder.save_plan(planned | {"frozen_digest": digest_of(run, state)})
        with folder.checkpoints(trial.experiment, writer=True) as checkpoints:
            checkpoints.keep_base(base_of(run, state))
            checkpoints.save(state, run.masks.frozen_names(step))
            checkpoints.wait()
        if not folder.metrics:  # which a process that was killed here has left
            folder.append({"step": step, "split": "train", "seconds": seconds, "input_seconds": 0.0})
        folder.flush()
        self._run_locked(run, trial)


def _split_by_program(
    trials: Sequence[Trial], sweep: Sequence[Trial]
) -> tuple[list[Trial], list[tuple[list[Trial], list[Trial]]]]:
    """Returns the trials that train by themselves; and those that share a program, with all of the sweep's in it."""
    alone, together = [], []
    for mates in side_by_side(sweep):
        members = [trial for trial in mates if trial in trials]
        if len(mates) == 1:
            alone += members
        elif members:
            together.append((members, mates))
    return alone, together


def _start(run: Run, folder: Workdir) -> None:
    folder.start(run.experiment, run.resolved, run.inputs.tokenizer)


def _try(trial: Trial, run: Callable[[], None]) -> None:
    """Runs a trial; why it fails is printed, and kept in its workdir."""
    label = f"{trial.setting}, seed {trial.experiment.seed}"
    console.console.print(f"{label}: {console.shown_path(trial.folder)}")
    try:
        with console.waiting(label), console.quiet():
            run()
    except Lost as error:  # what is there now is another's, and not failed
        console.console.print(str(error))
    except Exception as error:  # another trial may well do, whatever it was
        Workdir(trial.folder).fail(error)
        console.console.print(f"failed: {error}")
