"""The compiled programs of a run: its training steps, its evaluation and its frozen prefixes."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tljax import console
from tljax.core.inputs import Inputs
from tljax.core.model import Network
from tljax.core.state import TrainState, abstract_state
from tljax.core.train_step import Forward, StepSpec, TracedHparams, TrainStep, eval_step, gradients, train_step
from tljax.distributed import processes
from tljax.distributed.mesh import layouts, place, replicated, split, whole
from tljax.io import compilation_cache
from tljax.problems.registry import problem_for
from tljax.tuning import optimizers
from tljax.tuning.masks import Masks, combine_leaves, partition_leaves
from tljax.tuning.phases import Phase


class CompiledPrograms:
    """Traces and compiles the programs of a run, each once.

    Lengths are tokens of each text, 0 for the longest, or of images. A `start` is how many of the backbone's groups
    the input has behind it: with the feature cache, those of the frozen prefix.
    """

    def __init__(
        self, inputs: Inputs, network: Network, mesh: Mesh, masks: Masks, cache: dict[Hashable, Any] | None = None
    ):
        """Makes the programs of a run with these parts.

        Args:
            inputs, network, mesh, masks: a run's.
            cache: the programs of another run, to be shared.
        """
        self._experiment, self._resolved, self._inputs = inputs.experiment, inputs.resolved, inputs
        self._network, self._mesh, self._masks = network, mesh, masks
        self._problem = problem_for(inputs.experiment)
        self._cache: dict[Hashable, Any] = {} if cache is None else cache

    def shared_with(self, inputs: Inputs, network: Network, masks: Masks) -> "CompiledPrograms":
        """Returns these programs for a run with other parts that differ in numbers only.

        Args:
            inputs, network, masks: the other run's.
        """
        return CompiledPrograms(inputs, network, self._mesh, masks, self._cache)

    def get_or_compile(self, key: Hashable, compile_fn: Callable[[], Any]) -> Any:
        """Returns the program for `key`, compiling it on first use.

        It is kept as long as the runs that share it, for a process may come by many of them.
        """
        if key not in self._cache:
            with console.waiting("compiling"):
                self._cache[key] = compile_fn()
        return self._cache[key]

    def abstract_state(self, phase: Phase) -> TrainState:
        """Returns the shapes, dtypes and shardings of the train state in a phase."""
        parts = self._experiment, self._network, self._mesh, self._masks.multipliers
        return self.get_or_compile(("state", self._key(phase)), lambda: abstract_state(phase, *parts))

    def abstract_batch(self, batch_size: int, length: int = 0, start: int = 0) -> Any:
        """Returns the shapes, dtypes and shardings of a batch.

        Args:
            batch_size: its rows, over all devices.
            length, start: as of the class.
        """

        def placed(shape, dtype):
            return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=split(self._mesh))

        x = jax.tree.map(lambda leaf: placed(leaf.shape, leaf.dtype), self._resolved.input_spec.abstract(length))
        if start:
            (x,) = self.trace_prefix(start, length).out_info
            x = jax.tree.map(lambda leaf: placed(leaf.shape[1:], leaf.dtype), x)
        label = placed(*self._problem.label_spec(len(self._resolved.classes)))
        return {"input": x, "label": label, "mask": placed((), np.float32), "weight": placed((), np.float32)}

    def trace_train_step(self, phase: Phase, length: int = 0, start: int = 0) -> jax.stages.Traced:
        """Traces the training step of a phase.

        Args:
            phase: one of the run's, or made of one.
            length, start: as of the class.
        """
        everywhere, by_row = replicated(self._mesh), split(self._mesh)
        abstract = self.abstract_state(phase)
        mask = self._masks.frozen_mask(phase, abstract)
        leaves, treedef = jax.tree.flatten(abstract)
        frozen, changing = partition_leaves(leaves, mask)
        laid = layouts(changing), layouts(frozen)

        def step(changing, frozen, batch, numbers):
            state = treedef.unflatten(combine_leaves(frozen, changing, mask))
            state, metrics = train_step(state, batch, self._spec(phase, numbers, start))
            return partition_leaves(jax.tree.leaves(state), mask)[1], metrics

        jitted = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(*laid, by_row, everywhere),
            out_shardings=(laid[0], everywhere),
            keep_unused=True,  # with the feature cache the backbone: it takes memory, and is counted
        )
        batch = self.abstract_batch(self._inputs.batch_size(self._mesh), length, start)
        return jitted.trace(changing, frozen, batch, self._traced_hparams(phase))

    def train_step(
        self, phase: Phase, length: int = 0, start: int = 0, lowered: jax.stages.Lowered | None = None
    ) -> TrainStep:
        """Compiles the training step of a phase: (train state, batch) -> train state, metrics.

        Args:
            phase: one of the run's, or made of one.
            length, start: as of the class.
            lowered: of `trace_train_step`, where it is there already.
        """
        # A CPU's compiler takes away the barriers that hold recomputation back, unless told not to.
        on_cpu = self._experiment.remat and jax.default_backend() == "cpu"
        options = compilation_cache.KEEP_BARRIERS if on_cpu else None

        def compile_fn() -> jax.stages.Compiled:
            program = lowered or self.trace_train_step(phase, length, start).lower()
            return program.compile(compiler_options=options)

        def bind() -> TrainStep:
            placed_numbers = place(numbers, replicated(self._mesh))
            mask = self._masks.frozen_mask(phase, self.abstract_state(phase))
            return TrainStep(self.get_or_compile(key, compile_fn), placed_numbers, mask)

        key, numbers = ("train", self._key(phase), self._tokens(length), start), self._traced_hparams(phase)
        return self.get_or_compile((*key, *numbers.values()), bind)

    def trace_gradients(self, phase: Phase, start: int = 0) -> jax.stages.Traced:
        """Traces what a training step of a phase computes before its optimizer."""

        def step(state, batch, numbers):
            return gradients(state, batch, self._spec(phase, numbers, start))

        batch = self.abstract_batch(self._inputs.batch_size(self._mesh), 0, start)
        return jax.jit(step).trace(self.abstract_state(phase), batch, self._traced_hparams(phase))

    def trace_eval_step(self, batch_size: int, length: int = 0, start: int = 0) -> jax.stages.Traced:
        """Traces the evaluation step for `batch_size` rows.

        Args:
            batch_size: rows of a batch, over all devices.
            length, start: as of the class.
        """
        everywhere, by_row = replicated(self._mesh), split(self._mesh)
        state = self.abstract_state(self._masks.phases[0])
        batch = self.abstract_batch(batch_size, length, start)
        jitted = jax.jit(
            functools.partial(eval_step, forward=self._forward(None, start), flip=self._experiment.task.flip_test),
            in_shardings=(layouts(state.params), layouts(state.batch_stats), by_row),
            # What one process computes, all of them count.
            out_shardings=by_row if processes.process_info()[1] == 1 else everywhere,
            keep_unused=True,  # as a training step's
        )
        return jitted.trace(state.params, state.batch_stats, batch["input"])

    def eval_step(
        self, batch_size: int, length: int = 0, start: int = 0, lowered: jax.stages.Lowered | None = None
    ) -> jax.stages.Compiled:
        """Compiles the evaluation step: (params, batch_stats, input) -> logits.

        Args:
            batch_size: rows of a batch, over all devices.
            length, start: as of the class.
            lowered: of `trace_eval_step`, where it is there already.
        """
        return self.get_or_compile(
            ("eval", batch_size, self._tokens(length), start),
            lambda: (lowered or self.trace_eval_step(batch_size, length, start).lower()).compile(),
        )

    def trace_prefix(self, stop: int, length: int = 0) -> jax.stages.Traced:
        """Traces the first `stop` groups of the backbone, with an example for each device."""

        def trace() -> jax.stages.Traced:
            program = jax.jit(functools.partial(self._network.features, stops=(stop,)))
            return program.trace(self._network.abstract, self.abstract_batch(self._mesh.size, length)["input"])

        return self.get_or_compile(("traced prefix", stop, self._tokens(length)), trace)

    def _key(self, phase: Phase) -> Hashable:
        """Returns what names a phase among the programs that several runs share."""
        phases = self._masks.phases
        return phases.index(phase) if phase in phases else phase

    def _tokens(self, length: int) -> int:
        """Returns the tokens of the texts of a program that is asked for with this length; 0 of images."""
        return length or self._resolved.length

    def _forward(self, phase: Phase | None, start: int) -> Forward:
        """Returns the network as it computes in training in a phase, or in evaluation, from its group `start` on."""
        modes, batch_norm, trained = self._experiment.batch_norm, {}, []
        if phase is not None:
            trained = [group for group in self._masks.layout.groups if group not in phase.frozen]
            batch_norm = dict.fromkeys(phase.frozen, modes.frozen_groups) | dict.fromkeys(trained, modes.trained_groups)

        def forward(params, batch_stats, x, key=None):
            variables = {"params": whole(params, self._mesh), "batch_stats": batch_stats}
            return self._network.forward(variables, x, key, batch_norm, tuple(trained), start)

        return forward

    def _traced_hparams(self, phase: Phase) -> TracedHparams:
        """Returns what a compiled step is given, so that runs which differ in it have one program."""
        config = self._experiment
        values = {"learning_rate": phase.peak, "weight_decay": config.optim.weight_decay}
        if config.regularize.label_smoothing:
            values["label_smoothing"] = config.regularize.label_smoothing
        numbers = {name: np.float32(value) for name, value in values.items()}
        return numbers | {"seed": np.uint32(config.seed % 2**32)}

    def _spec(self, phase: Phase, numbers: TracedHparams, start: int) -> StepSpec:
        experiment = self._experiment
        return StepSpec(
            forward=self._forward(phase, start),
            optimizer=optimizers.optimizer(experiment.optim, phase.multipliers, phase.since, numbers["weight_decay"]),
            schedule=lambda step: numbers["learning_rate"] * phase.shape(step),
            trainable_mask=phase.multipliers,
            optim=experiment.optim,
            regularize=experiment.regularize,
            smoothing=numbers.get("label_smoothing", 0.0),
            pull=self._network.by_origin(experiment.regularize.l2_sp, experiment.regularize.l2_sp_new),
            average_from=round(experiment.optim.average_start * self._resolved.steps),
            seed=numbers["seed"],
            problem=self._problem,
            class_weights=self._class_weights(),
        )

    def _class_weights(self) -> jax.Array | None:
        """Returns `StepSpec.class_weights`, which a loss has where a label can be of several classes."""
        regularize, weights = self._experiment.regularize, self._resolved.class_weights
        has_several = regularize.label_smoothing or regularize.mixup or regularize.cutmix
        return jnp.array(weights, jnp.float32) if weights and has_several else None
