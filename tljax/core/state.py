"""The train state: all that a run carries from step to step, how it begins, and how it lies on the mesh."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from tljax.config.schema import Experiment
from tljax.core.model import Network, Variables
from tljax.distributed.mesh import layouts, place, placed, replicated, spread
from tljax.tuning import optimizers
from tljax.tuning.masks import partition
from tljax.tuning.multipliers import Tree
from tljax.tuning.phases import Phase

_NO_BATCH_NORM = {"batch_stats": {}}


@struct.dataclass
class TrainState:
    """All that a run carries from step to step; the input needs no state, it is a function of `step`.

    Attributes:
        step: steps taken, a scalar int32.
        params, batch_stats: nested dicts of arrays.
        opt_state: of the leaves that train in the phase of the last step.
        average: {params, batch_stats} of those leaves, where `optim.average` is set; else empty.
        anchor: the values that leaves started at, and 0 for new ones, which L2-SP pulls them to; else empty.
        skipped: steps that were not finite and left everything as it was, a scalar int32.
    """

    step: Any
    params: Any
    opt_state: Any
    batch_stats: Any
    average: Any
    anchor: Any
    skipped: Any


def abstract_state(phase: Phase, experiment: Experiment, network: Network, mesh: Mesh, multipliers: Tree) -> TrainState:
    """Returns the shapes, dtypes and shardings of the train state in a phase.

    Args:
        phase: whose optimizer it has.
        experiment, network, mesh: a run's.
        multipliers: the highest that each leaf has in any phase of the run.
    """

    def make(variables: Variables) -> TrainState:
        variables = _with_frozen_dtype(variables, phase, experiment, multipliers)
        return TrainState(**variables, **_beside(variables, phase, experiment, network, multipliers))

    state = jax.eval_shape(make, _NO_BATCH_NORM | network.abstract)
    state = jax.tree.map(lambda leaf: placed(leaf, spread(mesh, leaf.shape)), state)
    if experiment.mesh.frozen == "sharded":
        return state
    replicate = functools.partial(placed, sharding=replicated(mesh))
    return state.replace(params=jax.tree.map(lambda m, leaf: leaf if m else replicate(leaf), multipliers, state.params))


def init_state(
    variables: Variables,
    phase: Phase,
    abstract: TrainState,
    experiment: Experiment,
    network: Network,
    multipliers: Tree,
) -> TrainState:
    """Returns the train state with which a phase begins.

    Args:
        variables: its parameters and batch statistics.
        phase: whose optimizer it has.
        abstract: `abstract_state` of the phase.
        experiment, network: a run's.
        multipliers: the highest that each leaf has in any phase of the run.
    """
    laid = layouts(abstract)
    shardings = {"params": laid.params, "batch_stats": laid.batch_stats}
    variables = _with_frozen_dtype(_NO_BATCH_NORM | variables, phase, experiment, multipliers)
    variables = place(variables, shardings)
    # One program for all that is beside them: an operation by itself would have a program for each shape.
    beside = functools.partial(_beside, phase=phase, experiment=experiment, network=network, multipliers=multipliers)
    shardings = {name: getattr(laid, name) for name in ("step", "opt_state", "average", "anchor", "skipped")}
    return TrainState(**variables, **jax.jit(beside, out_shardings=shardings)(variables))


def _with_frozen_dtype(variables: Variables, phase: Phase, experiment: Experiment, multipliers: Tree) -> Variables:
    """Returns variables whose parameters have `backbone.frozen_dtype`, but for what trains in any phase."""
    dtype = jnp.dtype(experiment.backbone.frozen_dtype)

    def stored(leaf: Any, *trained: float) -> Any:
        return leaf if any(trained) or dtype == jnp.float32 else leaf.astype(dtype)

    return variables | {"params": jax.tree.map(stored, variables["params"], multipliers, phase.multipliers)}


def _beside(
    variables: Variables, phase: Phase, experiment: Experiment, network: Network, multipliers: Tree
) -> dict[str, Any]:
    """Returns what a train state has at its beginning beside the variables, with the optimizer of `phase`."""
    params, config, regularize = variables["params"], experiment.optim, experiment.regularize
    trainable, _ = partition(params, phase.multipliers)
    average, anchor = {}, {}
    # Copies: a step donates the arrays of its state, and none may be donated twice.
    if config.average:
        average = jax.tree.map(jnp.copy, variables | {"params": trainable})
    if regularize.l2_sp or regularize.l2_sp_new:
        # Of all that trains in `phase`, too, which need not be one of the run's.
        ever_trained = jax.tree.map(max, multipliers, phase.multipliers)
        start, is_pretrained = (partition(tree, ever_trained)[0] for tree in (params, network.by_origin(1.0, 0.0)))
        anchor = jax.tree.map(lambda leaf, kept: leaf * kept, start, is_pretrained)
    opt_state = optimizers.optimizer(config, phase.multipliers, phase.since).init(trainable)
    zero = jnp.zeros((), jnp.int32)
    return {"step": zero, "opt_state": opt_state, "average": average, "anchor": anchor, "skipped": jnp.copy(zero)}
