"""Assembles a run: the one place where config, data, model, weights and optimizer meet."""

import copy
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from tljax.config.schema import Experiment
from tljax.core.inputs import Inputs
from tljax.core.model import Network, Variables
from tljax.core.programs import CompiledPrograms
from tljax.core.resolve import Resolved, resolve, warnings
from tljax.core.state import TrainState, init_state
from tljax.data import registry
from tljax.data.dataset import Split
from tljax.data.loader import TrainInput
from tljax.data.readers import Reader
from tljax.data.splits import with_own_splits
from tljax.distributed import mesh, processes
from tljax.problems.registry import problem_for
from tljax.tuning import optimizers
from tljax.tuning.masks import Masks, combine, partition
from tljax.tuning.phases import Length, Phase, adapters, phases


def prepare(experiment: Experiment, tokenizer: Path | None = None) -> "Run":
    """Assembles a run that is about to begin, or with the `tokenizer` in its workdir to go on; see `resolve`.

    Its experiment names the splits that the config leaves to the data set.
    """
    problem_for(experiment)  # whose faults are said before data are prepared
    task = registry.load(experiment.task)
    experiment = dataclasses.replace(experiment, task=with_own_splits(task, experiment.task))
    run = Run(experiment, *resolve(experiment, task, tokenizer), tokenizer)
    for warning in warnings(experiment, run.resolved):
        print(f"warning: {warning}", file=sys.stderr)
    return run


class Run:
    """What an experiment assembles to; nothing large is allocated before `init_state`.

    Attributes:
        experiment, resolved: what it was made from.
        problem: what kind of label its examples have, with the config's own loss and metrics.
        inputs: the data.
        network: the classifier.
        layout: the parameters' names and groups.
        phases: what trains when; one for most runs.
        masks: what each phase trains and freezes.
        mesh: the devices.
        programs: the compiled programs.
        cached: whether the batches of a phase start where its frozen prefix ends (`training.feature_cache`).
    """

    def __init__(
        self,
        experiment: Experiment,
        resolved: Resolved,
        splits: dict[str, Split] | None = None,
        tokenizer: Path | None = None,
        devices: Sequence[jax.Device] = (),
    ):
        """Assembles a run.

        Args:
            experiment: the config.
            resolved: what it leaves to the data and the weights.
            splits, tokenizer: as of `Inputs`.
            devices: to run on; all by default.
        """
        self.experiment, self.resolved = experiment, resolved
        self.problem = problem_for(experiment)
        self.cached = False
        self.inputs = Inputs(experiment, resolved, splits, tokenizer)
        self.mesh = mesh.make_mesh(devices, experiment.mesh.fsdp)
        self.network = Network(
            experiment,
            resolved.pretrained,
            resolved.preprocessing,
            resolved.classes,
            adapters(experiment.tuning),
            resolved.input_spec,
        )
        self.layout = self.network.layout
        self.phases = self._phases(experiment)
        self.masks = self._masks(experiment)
        self.programs = CompiledPrograms(self.inputs, self.network, self.mesh, self.masks)

    def _phases(self, experiment: Experiment) -> tuple[Phase, ...]:
        length = Length(self.resolved.steps, self.resolved.train_examples / experiment.task.batch_size, self.layout)
        return phases(experiment.tuning, experiment.optim, length)

    def _masks(self, experiment: Experiment) -> Masks:
        batch_stats = flatten_dict(self.network.abstract.get("batch_stats", {}), sep="/")
        return Masks(experiment, self.layout, self.phases, tuple(batch_stats))

    def with_experiment(self, experiment: Experiment) -> "Run":
        """Returns this run for another experiment that shares its compiled programs.

        Both train the same leaves of the same network on the same data, and differ in nothing but what
        `Experiment.without_traced_hparams` leaves out. Splits that the other leaves unset are this one's.
        """
        run = copy.copy(self)
        experiment = experiment.with_splits(self.experiment.task)
        run.experiment = experiment
        run.network, run.inputs = self.network.with_experiment(experiment), self.inputs.with_experiment(experiment)
        run.phases = tuple(
            dataclasses.replace(phase, peak=other.peak)
            for phase, other in zip(self.phases, self._phases(experiment), strict=True)
        )
        run.masks = run._masks(experiment)
        run.programs = self.programs.shared_with(run.inputs, run.network, run.masks)
        return run

    def phase_at(self, step: int) -> Phase:
        """Returns the phase that step `step` (from 0) trains in."""
        return next(phase for phase in self.phases if step < phase.stop)

    def phase_of(self, state_step: int) -> Phase:
        """Returns the phase whose optimizer a state has after `state_step` steps: that of the last step taken."""
        return self.phase_at(max(state_step - 1, 0))

    def prefix_length(self, phase: Phase) -> int:
        """Returns how many of the backbone's groups a phase's batches have behind them."""
        return self.masks.frozen_prefix(phase) if self.cached else 0

    def evaluation_prefix_length(self, phase: Phase) -> int:
        """Returns how many groups batches of evaluation have behind them: there are no features of mirror images."""
        return 0 if self.experiment.task.flip_test else self.prefix_length(phase)

    def abstract_state(self, step: int = 0) -> TrainState:
        """Returns the shapes, dtypes and shardings of the train state after `step` steps."""
        return self.programs.abstract_state(self.phase_of(step))

    def init_state(self) -> TrainState:
        """Returns the train state at step 0."""
        return self._init_state(self.network.init_variables(), self.phases[0])

    def _init_state(self, variables: Variables, phase: Phase) -> TrainState:
        abstract = self.programs.abstract_state(phase)
        return init_state(variables, phase, abstract, self.experiment, self.network, self.masks.multipliers)

    def enter_phase(self, state: TrainState, phase: Phase) -> TrainState:
        """Returns the train state with which a phase begins; see `phases` for what is carried over."""
        fresh = self._init_state({"params": state.params, "batch_stats": state.batch_stats}, phase)
        opt_state, average = (
            optimizers.carry_over(old, new)
            for old, new in ((state.opt_state, fresh.opt_state), (state.average, fresh.average))
        )
        return state.replace(opt_state=opt_state, average=average)

    def evaluation_variables(self, state: TrainState) -> tuple[Any, Any]:
        """Returns params and batch_stats to evaluate and export: an average's, where the config asks for one."""
        if not state.average:
            return state.params, state.batch_stats
        trainable, _ = partition(state.average["params"], self.phase_of(int(state.step)).multipliers)
        return combine(trainable, state.params), state.average["batch_stats"]

    def frozen_leaves(self, state: TrainState) -> dict[str, jax.Array]:
        """Returns by path the parameters that never train, and the stored statistics that never change."""
        leaves = flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
        return {name.removeprefix("params/"): leaves[name] for name in self.masks.frozen_in(self.phases)}

    def of_groups(self, variables: Variables, stop: int) -> Variables:
        """Returns the variables of the backbone's first `stop` groups."""
        groups = self.layout.groups[:stop]
        return {
            name: {"backbone": {group: leaf for group, leaf in tree["backbone"].items() if group in groups}}
            for name, tree in variables.items()
            if tree
        }

    @property
    def batch_size(self) -> int:
        """Returns the training examples of a step; see `Inputs.batch_size`."""
        return self.inputs.batch_size(self.mesh)

    def train_input(self, read: Reader | None = None) -> TrainInput:
        """Returns the training stream of this run, of what `read` gives; of pictures or tokens by default.

        Raises:
            InputError: the batch cannot be shared by the devices.
        """
        return self.inputs.train_input(self.batch_size, processes.process_info(), read)
