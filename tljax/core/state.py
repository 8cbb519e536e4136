"""How the State of a phase begins, and how it lies on the mesh."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tljax.config.schema import Experiment
from tljax.core.model import Network, Variables
from tljax.core.train_step import State
from tljax.distributed import mesh as distributed_mesh
from tljax.tuning import optimizers
from tljax.tuning.multipliers import Tree, partition
from tljax.tuning.phases import Phase

_NONE = {"batch_stats": {}}  # of a network without BatchNorm


@dataclass(frozen=True)
class Beginning:
    """Makes States.

    Attributes:
        experiment, network, mesh: a run's.
        multipliers: the highest that each leaf has in any phase.
    """

    experiment: Experiment
    network: Network
    mesh: Mesh
    multipliers: Tree

    def abstract(self, phase: Phase) -> State:
        """Shapes and dtypes of a State, with how each array lies on the mesh: in every phase the same."""

        def make(variables):
            return State(**variables, **self._beside(variables, phase))

        state = jax.eval_shape(make, _NONE | self.network.abstract)
        state = jax.tree.map(
            lambda leaf: distributed_mesh.placed(leaf, distributed_mesh.spread(self.mesh, leaf.shape)), state
        )
        if self.experiment.mesh.frozen == "sharded":
            return state
        whole = functools.partial(distributed_mesh.placed, sharding=distributed_mesh.replicated(self.mesh))
        params = jax.tree.map(lambda m, leaf: leaf if m else whole(leaf), self.multipliers, state.params)
        return state.replace(params=params)

    def state(self, variables: Variables, phase: Phase, abstract: State) -> State:
        """A State that begins with these variables, laid as `abstract` says.

        What is beside the variables is made there by one program: an operation by itself has one for each shape.
        """
        laid = distributed_mesh.layouts(abstract)
        variables = distributed_mesh.place(_NONE | variables, {"params": laid.params, "batch_stats": laid.batch_stats})
        beside = {name: getattr(laid, name) for name in ("step", "opt_state", "average", "anchor", "skipped")}
        make = jax.jit(functools.partial(self._beside, phase=phase), out_shardings=beside)
        return State(**variables, **make(variables))

    def _beside(self, variables: Variables, phase: Phase) -> dict[str, Any]:
        """What a State has at its beginning beside the variables, with the optimizer of `phase`."""
        params, config, regularize = variables["params"], self.experiment.optim, self.experiment.regularize
        trainable = partition(params, phase.multipliers)[0]
        average, anchor = {}, {}
        # Copies: a step gives its State's arrays away, and none may be given twice.
        if config.average:
            average = jax.tree.map(jnp.copy, variables | {"params": trainable})
        if regularize.l2_sp or regularize.l2_sp_new:
            # Of all that trains in `phase`, too, which need not be one of the run's.
            ever = jax.tree.map(max, self.multipliers, phase.multipliers)
            kept, pretrained = (partition(tree, ever)[0] for tree in (params, self.network.by_origin(1.0, 0.0)))
            anchor = jax.tree.map(lambda leaf, one: leaf * one, kept, pretrained)
        opt_state = optimizers.optimizer(config, phase.multipliers, phase.since).init(trainable)
        zero = jnp.zeros((), jnp.int32)
        return {"step": zero, "opt_state": opt_state, "average": average, "anchor": anchor, "skipped": jnp.copy(zero)}
