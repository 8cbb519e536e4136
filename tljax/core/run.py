"""Assembles a run: the one place where config, data, model, weights and optimizer meet."""

import copy
import dataclasses
import functools
import sys
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from tljax.config.ranges import INT32
from tljax.config.schema import Experiment
from tljax.core.inputs import Inputs
from tljax.core.model import Network, Variables
from tljax.core.resolve import Resolved, resolve, warnings
from tljax.core.state import Beginning
from tljax.core.train_step import (
    Forward,
    Rules,
    State,
    TracedHparams,
    TrainStep,
    eval_step,
    gradients,
    joined,
    parted,
    train_step,
)
from tljax.data import registry
from tljax.data.dataset import Split
from tljax.data.loader import TrainInput
from tljax.data.readers import Reader
from tljax.distributed import mesh, processes
from tljax.errors import InputError
from tljax.io import compilation_cache
from tljax.tuning import optimizers
from tljax.tuning.multipliers import Tree, combine, partition
from tljax.tuning.phases import Length, Phase, additions, phases


def prepare(experiment: Experiment, tokenizer: Path | None = None) -> "Run":
    """A run that is about to begin, or with the `tokenizer` in its workdir to go on; see `resolve`."""
    task = registry.load(experiment.task)
    run = Run(experiment, *resolve(experiment, task, tokenizer), tokenizer)
    for warning in warnings(experiment, run.resolved):
        print(f"warning: {warning}", file=sys.stderr)
    return run


class Run:
    """An experiment, ready to compile and start; nothing large is allocated before `init_state`.

    Attributes:
        experiment, resolved: what it was made from.
        network: the classifier.
        layout: the parameters' names and groups.
        phases: what trains when; one for most runs.
        cached: whether the batches of a phase start where its frozen prefix ends (`features`).
        mesh: the devices.
        inputs: the data.
    """

    def __init__(
        self,
        experiment: Experiment,
        resolved: Resolved,
        splits: dict[str, Split] | None = None,
        tokenizer: Path | None = None,
    ):
        self.experiment, self.resolved = experiment, resolved
        self._made: dict[Hashable, Any] = {}
        self.cached = False
        self.inputs = Inputs(experiment, resolved, splits, tokenizer)
        self.mesh = mesh.make_mesh(fsdp=experiment.mesh.fsdp)
        self.network = Network(
            experiment, resolved.pretrained, resolved.preprocessing, resolved.classes, additions(experiment.tuning)
        )
        self.layout = self.network.layout
        length = Length(resolved.steps, resolved.train_examples / experiment.task.batch_size, self.layout)
        self.phases = phases(experiment.tuning, experiment.optim, length)

    def of(self, experiment: Experiment) -> "Run":
        """The run of an experiment that trains the same leaves of the same network on the same data.

        The two may differ in what `Experiment.without_traced_hparams` leaves out. They share their compiled programs.
        """
        other = copy.copy(self)
        other.experiment = experiment
        other.network, other.inputs = self.network.of(experiment), self.inputs.of(experiment)
        length = Length(self.resolved.steps, self.resolved.train_examples / experiment.task.batch_size, self.layout)
        other.phases = tuple(
            dataclasses.replace(mine, peak=own.peak)
            for mine, own in zip(self.phases, phases(experiment.tuning, experiment.optim, length), strict=True)
        )
        return other

    def phase_at(self, step: int) -> Phase:
        """The phase that step `step` (from 0) trains in."""
        return next(phase for phase in self.phases if step < phase.stop)

    def phase_of(self, state_step: int) -> Phase:
        """The phase whose optimizer a State holds after `state_step` steps: that of the last step taken."""
        return self.phase_at(max(state_step - 1, 0))

    def prefix(self, phase: Phase) -> int:
        """How many leading groups of the backbone compute the same in every step of a phase: its frozen prefix."""
        if self.network.abstract.get("batch_stats"):
            moving = self.experiment.optim.average and phase.start  # towards what an earlier phase left
            if moving or self.experiment.batch_norm.frozen_groups != "frozen":
                return 0
        groups = self.layout.groups[:-1]
        return next((i for i, group in enumerate(groups) if group not in phase.frozen), len(groups))

    def start(self, phase: Phase) -> int:
        """How many of them a phase's batches have behind them."""
        return self.prefix(phase) if self.cached else 0

    def evaluation_start(self, phase: Phase) -> int:
        """The same of evaluation: there are no features of mirror images."""
        return 0 if self.experiment.task.flip_test else self.start(phase)

    @property
    def multipliers(self) -> Tree:
        """The highest multiplier that each leaf has in any phase; 0 where it never trains."""
        return jax.tree.map(lambda *found: max(found), *(phase.multipliers for phase in self.phases))

    @property
    def _beginning(self) -> Beginning:
        return Beginning(self.experiment, self.network, self.mesh, self.multipliers)

    def abstract_state(self, step: int = 0) -> State:
        """Shapes, dtypes and shardings of the State after `step` steps."""
        return self.abstract(self.phase_of(step))

    def abstract(self, phase: Phase) -> State:
        """The same of a State in a phase."""
        return self.once(("state", self._key(phase)), lambda: self._beginning.abstract(phase))

    def frozen_leaves(self, state: State) -> dict[str, jax.Array]:
        """Parameters that never train, and stored statistics that the run's modes never move, by path."""
        leaves = flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
        return {name.removeprefix("params/"): leaves[name] for name in self._resting(self.phases)}

    def unmoved(self, step: int = 0) -> frozenset[str]:
        """Names (as `checkpoint.named`) of the leaves of a State that after `step` steps are still what they were.

        A leaf that is among them after 0 steps is not yet moved in the first phase, and may move later.
        """
        begun = [phase for phase in self.phases if phase.start < max(step, 1)]
        found, state = self._resting(begun), self.abstract_state()
        if state.average:  # whose steps towards a value that rests are 0
            found |= {f"average/{name}" for name in found if name.startswith("batch_stats/")}
        if state.anchor:
            found |= {f"anchor/{path}" for path, value in flatten_dict(self.multipliers, sep="/").items() if value}
        return frozenset(found)

    def _resting(self, phases: Sequence[Phase]) -> set[str]:
        """Names of the parameters that train in none of these phases, and of the statistics that none moves."""
        trained = [flatten_dict(phase.multipliers, sep="/") for phase in phases]
        frozen = {f"params/{path}" for path in self.layout.group_of if not any(found[path] for found in trained)}
        modes = self.experiment.batch_norm

        def rests(group: str) -> bool:
            used = (modes.frozen_groups if group in phase.frozen else modes.trained_groups for phase in phases)
            return "update_stats" not in used

        stats = flatten_dict(self.network.abstract.get("batch_stats", {}), sep="/")
        return frozen | {f"batch_stats/{path}" for path in stats if rests(path.split("/")[1])}

    def init_state(self) -> State:
        """The State at step 0."""
        return self._begun(self.network.start(), self.phases[0])

    def _begun(self, variables: Variables, phase: Phase) -> State:
        return self._beginning.state(variables, phase, self.abstract(phase))

    def enter(self, state: State, phase: Phase) -> State:
        """The State with which a phase begins; see `phases` for what is carried over."""
        fresh = self._begun({"params": state.params, "batch_stats": state.batch_stats}, phase)
        opt_state, average = (
            optimizers.carry_over(old, new)
            for old, new in ((state.opt_state, fresh.opt_state), (state.average, fresh.average))
        )
        return state.replace(opt_state=opt_state, average=average)

    def evaluated(self, state: State) -> tuple[Any, Any]:
        """The parameters and batch statistics to evaluate and export: an average's, where the config asks for one."""
        if not state.average:
            return state.params, state.batch_stats
        multipliers = self.phase_of(int(state.step)).multipliers
        trained = partition(state.average["params"], multipliers)[0]
        return combine(trained, state.params), state.average["batch_stats"]

    @property
    def batch_size(self) -> int:
        """Training examples per step.

        Raises:
            InputError: the devices here cannot share them evenly, or would have more values of them at a time than are
                counted in 32 bits. Only training asks: evaluation pads.
        """
        parts, size = self.experiment.optim.accumulate, self.experiment.task.batch_size
        expected = self.resolved.preprocessing
        values = self.resolved.length or expected.size * expected.size * expected.inputs
        most = INT32 // values * self.mesh.size * parts
        if size > most:
            raise InputError(
                f"task.batch_size={size} is too large: {most} have {INT32} values on each device; use fewer, or more"
                " optim.accumulate"
            )
        return mesh.check_batch(size, self.mesh, "task.batch_size", parts)

    def train_input(self, read: Reader | None = None) -> TrainInput:
        """The training stream of this run, of what `read` gives; of pictures or tokens by default.

        Raises:
            InputError: the batch cannot be shared by the devices.
        """
        return self.inputs.train_input(self.batch_size, processes.part(), read)

    def trace_train_step(self, phase: Phase, length: int = 0) -> jax.stages.Traced:
        """The training step of a phase, traced; `length`: tokens of each text, 0 for the longest, or of images."""
        replicated, split = mesh.replicated(self.mesh), mesh.split(self.mesh)
        leaves, form = jax.tree.flatten(self.abstract(phase))
        rests = self._rests(phase)
        moving, resting = parted(leaves, rests)
        layouts = mesh.layouts(moving), mesh.layouts(resting)

        def step(moving, resting, batch, traced_hparams):
            state = form.unflatten(joined(moving, resting, rests))
            state, found = train_step(state, batch, self._rules(phase, traced_hparams))
            return parted(jax.tree.leaves(state), rests)[0], found

        jitted = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(*layouts, split, replicated),
            out_shardings=(layouts[0], replicated),
            keep_unused=True,  # with the feature cache the backbone: it takes memory, and is counted
        )
        batch = self.abstract_batch(self.batch_size, length, self.start(phase))
        return jitted.trace(moving, resting, batch, self._traced_hparams(phase))

    def _rests(self, phase: Phase) -> tuple[bool, ...]:
        """Of each leaf of a State, whether the steps of a phase leave it as it is."""
        names = self._resting([phase])
        leaves = jax.tree_util.tree_leaves_with_path(self.abstract(phase))
        paths = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
        return tuple(path in names or path.startswith("anchor/") for path in paths)

    def trace_gradients(self, phase: Phase) -> jax.stages.Traced:
        """What a training step of a phase computes before its optimizer, traced."""

        def found(state, batch, traced_hparams):
            return gradients(state, batch, self._rules(phase, traced_hparams))

        batch = self.abstract_batch(self.batch_size, 0, self.start(phase))
        return jax.jit(found).trace(self.abstract(phase), batch, self._traced_hparams(phase))

    def train_step(self, phase: Phase, length: int = 0, lowered: jax.stages.Lowered | None = None) -> TrainStep:
        """(State, batch) -> State, metrics; compiled, of the `lowered` where it is there."""
        # A CPU's compiler takes away the barriers that hold recomputation back, unless told not to.
        on_cpu = self.experiment.remat and jax.default_backend() == "cpu"
        options = compilation_cache.KEEP_BARRIERS if on_cpu else None

        def make():
            return (lowered or self.trace_train_step(phase, length).lower()).compile(compiler_options=options)

        key, hparams = ("train", self._key(phase), self._tokens(length), self.cached), self._traced_hparams(phase)
        laid = functools.partial(mesh.place, hparams, mesh.replicated(self.mesh))
        return self.once((*key, *hparams.values()), lambda: TrainStep(self.once(key, make), laid(), self._rests(phase)))

    def _key(self, phase: Phase) -> Hashable:
        """What names a phase among the programs that runs `of` several experiments share."""
        return self.phases.index(phase) if phase in self.phases else phase

    def eval_step(
        self, batch_size: int, length: int = 0, start: int = 0, lowered: jax.stages.Lowered | None = None
    ) -> jax.stages.Compiled:
        """(params, batch_stats, input of `batch_size` rows with `start` groups behind them) -> logits; compiled."""
        return self.once(
            ("eval", batch_size, self._tokens(length), start),
            lambda: (lowered or self.trace_eval_step(batch_size, length, start).lower()).compile(),
        )

    def trace_prefix(self, stop: int, length: int = 0) -> jax.stages.Traced:
        """The first `stop` groups, traced with an example for each device."""

        def make() -> jax.stages.Traced:
            program = jax.jit(functools.partial(self.network.features, stops=(stop,)))
            return program.trace(self.network.abstract, self.abstract_batch(self.mesh.size, length)["input"])

        return self.once(("traced prefix", stop, self._tokens(length)), make)

    def _tokens(self, length: int) -> int:
        """Of the texts of a program that is asked for with this `length`; 0 of images."""
        return length or self.resolved.length

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was made before under this key, if it was, by this run or by one that it is `of`.

        Kept as long as these are, for a process may come by many of them.
        """
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def trace_eval_step(self, batch_size: int, length: int = 0, start: int = 0) -> jax.stages.Traced:
        """The same, traced."""
        replicated, split = mesh.replicated(self.mesh), mesh.split(self.mesh)
        state, batch = self.abstract_state(), self.abstract_batch(batch_size, length, start)
        jitted = jax.jit(
            functools.partial(eval_step, forward=self._forward(None, start), flip=self.experiment.task.flip_test),
            in_shardings=(mesh.layouts(state.params), mesh.layouts(state.batch_stats), split),
            # What one process computes, all of them count.
            out_shardings=split if processes.part()[1] == 1 else replicated,
            keep_unused=True,  # as a training step's
        )
        return jitted.trace(state.params, state.batch_stats, batch["input"])

    def of_groups(self, variables: Variables, stop: int) -> Variables:
        """The variables of the backbone's first `stop` groups."""
        groups = self.layout.groups[:stop]
        return {
            name: {"backbone": {group: leaf for group, leaf in tree["backbone"].items() if group in groups}}
            for name, tree in variables.items()
            if tree
        }

    def _forward(self, phase: Phase | None, start: int) -> Forward:
        """The network as it computes in training in a phase, or in evaluation, from its group `start` on."""
        modes, batch_norm, trained = self.experiment.batch_norm, {}, []
        if phase is not None:
            trained = [group for group in self.layout.groups if group not in phase.frozen]
            batch_norm = dict.fromkeys(phase.frozen, modes.frozen_groups) | dict.fromkeys(trained, modes.trained_groups)

        def forward(params, batch_stats, x, key=None):
            variables = {"params": mesh.whole(params, self.mesh), "batch_stats": batch_stats}
            return self.network.forward(variables, x, key, batch_norm, tuple(trained), start)

        return forward

    def _traced_hparams(self, phase: Phase) -> TracedHparams:
        """What a compiled step is given, so that runs which differ in it have one program."""
        config = self.experiment
        found = {"learning_rate": phase.peak, "weight_decay": config.optim.weight_decay}
        if config.regularize.label_smoothing:
            found["label_smoothing"] = config.regularize.label_smoothing
        traced_hparams = {name: np.float32(value) for name, value in found.items()}
        return traced_hparams | {"seed": np.uint32(config.seed % 2**32)}

    def _rules(self, phase: Phase, traced_hparams: TracedHparams) -> Rules:
        experiment = self.experiment
        return Rules(
            forward=self._forward(phase, self.start(phase)),
            tx=optimizers.optimizer(experiment.optim, phase.multipliers, phase.since, traced_hparams["weight_decay"]),
            schedule=lambda step: traced_hparams["learning_rate"] * phase.shape(step),
            multipliers=phase.multipliers,
            optim=experiment.optim,
            regularize=experiment.regularize,
            smoothing=traced_hparams.get("label_smoothing", 0.0),
            pull=self.network.by_origin(experiment.regularize.l2_sp, experiment.regularize.l2_sp_new),
            average_from=round(experiment.optim.average_start * self.resolved.steps),
            seed=traced_hparams["seed"],
            problem=experiment.task.problem,
            class_weights=self._class_weights(),
        )

    def _class_weights(self) -> jax.Array | None:
        """Returns the weights for `Rules.class_weights`, which a loss has where a label can be of several classes."""
        regularize, weights = self.experiment.regularize, self.resolved.class_weights
        has_several = regularize.label_smoothing or regularize.mixup or regularize.cutmix
        return jnp.array(weights, jnp.float32) if weights and has_several else None

    def abstract_batch(self, batch_size: int, length: int = 0, start: int = 0) -> Any:
        """Shapes, dtypes and shardings of a batch whose input has `start` groups behind it."""

        def place(shape, dtype):
            return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=mesh.split(self.mesh))

        if self.network.reads == "text":
            tokens = place((self._tokens(length),), np.int32)
            x = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), tokens)
        else:
            size = self.resolved.preprocessing.size
            x = place((size, size, self.resolved.preprocessing.inputs), np.uint8)
        if start:
            (x,) = self.trace_prefix(start, length).out_info
            x = jax.tree.map(lambda leaf: place(leaf.shape[1:], leaf.dtype), x)
        single = self.experiment.task.problem == "single_label"
        label = place((), np.int32) if single else place((len(self.resolved.classes),), np.float32)
        return {"input": x, "label": label, "mask": place((), np.float32), "weight": place((), np.float32)}
