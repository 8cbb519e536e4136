"""Many linear heads at once on cached features: what differs only in numbers trains side by side.

    heads = linear_probe.fit(experiments, features, run.train_input(), classes)
    heads[0].params["kernel"]  # [features, classes], as its own `train` run would end with

Each head takes the steps of its own run: `step.train_step` under `vmap`, with a linear forward. The batches of a
seed's heads are the same, so that a step is one product of a batch with all of their kernels.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from tljax.config.schema import Experiment
from tljax.config.serialization import to_dict
from tljax.core.classifier import HEAD_INITS, init_head
from tljax.core.state import TrainState
from tljax.core.train_step import StepSpec, train_step
from tljax.data.loader import TrainInput
from tljax.distributed.mesh import cores, make_mesh, place, replicated, split
from tljax.errors import InputError
from tljax.io import compilation_cache
from tljax.models.kernels import ops
from tljax.problems.registry import problem_for
from tljax.tuning import optimizers

Params = dict[str, Float[np.ndarray, "..."]]  # kernel [features, classes], and bias [classes] if there is one

# Parameters that train at once. On a CPU they, their moments and gradients shall stay in its caches.
_BYTES = {"cpu": 3 << 19}
_BYTES_ELSEWHERE = 1 << 28


@dataclass(frozen=True, eq=False)
class Head:
    """A trained head.

    Attributes:
        experiment: what it was asked to be.
        params: at the last step; an average's, where the config asks for one.
        state: after the last step, as `Run` has it but for the backbone.
        validation, test: what `Problem.summarize` says; empty where it was not computed.
    """

    experiment: Experiment
    params: Params
    state: TrainState
    validation: dict[str, Any] = dataclasses.field(default_factory=dict)
    test: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether `train` would have stopped with an error."""
        return bool(self.state.skipped) and self.experiment.optim.on_nonfinite == "stop"

    def in_state(self, beside: TrainState) -> TrainState:
        """Returns a run's state at its end: the head's, with the backbone of `beside`, the run's at its beginning."""
        head, average = self.state, beside.average
        if average:
            average = average | {"params": _laid(head.average["params"], average["params"])}
        return beside.replace(
            step=_laid(head.step, beside.step),
            params=beside.params | {"head": _laid(head.params["head"], beside.params["head"])},
            opt_state=_laid(head.opt_state, beside.opt_state),
            average=average,
            skipped=_laid(head.skipped, beside.skipped),
        )


def together(a: Experiment, b: Experiment) -> bool:
    """Returns whether two experiments are linear probes that can train side by side.

    They may differ in `seed`, `optim.learning_rate`, `optim.weight_decay` and `regularize.label_smoothing`, and in
    what changes no number: `input`, `checkpoint`, `log_every`, `eval_every` and `task.eval_batch_size`.
    """
    return not _hindrance(a) and not _hindrance(b) and _shared(a) == _shared(b)


def fit(
    experiments: Sequence[Experiment],
    features: Float[np.ndarray, "*views n features"],
    stream: TrainInput,
    classes: int,
    *,
    bytes_at_once: int = 0,
) -> list[Head]:
    """Returns a trained head for each experiment, in order.

    Args:
        experiments: linear probes that can train `together`.
        features: of the training split; of V fixed views of each example, epoch e trains on view e mod V.
        stream: gives the order of examples, their labels, as the network learns them, and their weights; its seed
            is replaced by each experiment's.
        classes: outputs of a head.
        bytes_at_once: of parameters that train at the same time, on each device or core of a CPU; 0 for a default. It
            changes nothing but time and memory, of which training takes some five times as much.

    Raises:
        InputError: an experiment is not such a probe, differs from the first in another key, or has a setting out of
            range.
    """
    _check(experiments)
    mesh = make_mesh()
    like, width = experiments[0], features.shape[-1]
    steps = like.total_steps(len(stream.labels))
    lanes, budget = _lanes(mesh), bytes_at_once or _BYTES.get(jax.default_backend(), _BYTES_ELSEWHERE)
    chunks, size = _chunks(experiments, budget // (4 * width * classes), lanes, mesh.size)
    views = features.reshape(-1, *features.shape[-2:])
    data = {"input": views.reshape(-1, width), "label": stream.labels, "weight": stream.weights}
    if stream.class_weights and any(experiment.regularize.label_smoothing for experiment in experiments):
        data["class_weights"] = np.array(stream.class_weights, np.float32)
    data = place(data, replicated(mesh))
    numbers = _numbers(experiments)
    advance = _advance(_compiled_for(like), steps, mesh, alone=lanes == 1 or len(chunks) == 1)

    @functools.lru_cache(lanes)
    def order(seed: int) -> jax.Array:
        epoch, example = np.moveaxis(dataclasses.replace(stream, seed=seed).order(steps), -1, 0)
        return place(epoch % len(views) * views.shape[1] + example, replicated(mesh))

    def trained(chunk: list[int]) -> Any:
        seed, filled = experiments[chunk[0]].seed, chunk + chunk[-1:] * (size - len(chunk))
        start = _start(like, steps, init_head(seed, width, classes, like.head.init, like.head.bias))
        states = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (size, *leaf.shape)), start)
        laid = place((states, {name: values[filled] for name, values in numbers.items()}), split(mesh))
        return _on_host(advance(*laid, order(seed), data), mesh)

    heads: list[Any] = [None] * len(experiments)
    with ThreadPoolExecutor(lanes) as pool:
        for chunk, ended in zip(chunks, pool.map(trained, chunks), strict=True):
            for row, i in enumerate(chunk):
                state = jax.tree.map(lambda leaf, row=row: leaf[row].T, ended)
                evaluated = state.average["params"] if like.optim.average else state.params
                heads[i] = Head(experiments[i], evaluated["head"], state)
    return heads


def setting(experiment: Experiment) -> dict[str, float]:
    """Returns the numbers, but for the seed, in which heads that train together may differ."""
    return {
        "learning_rate": experiment.optim.learning_rate,
        "weight_decay": experiment.optim.weight_decay,
        "label_smoothing": experiment.regularize.label_smoothing,
    }


def _shared(experiment: Experiment) -> Experiment:
    """Returns the experiment with one value for all that `together` lets differ."""
    shared = experiment.without_traced_hparams()
    return dataclasses.replace(shared, regularize=dataclasses.replace(shared.regularize, label_smoothing=0.0))


def _hindrance(experiment: Experiment) -> str:
    """Returns why an experiment cannot be a head on cached features; empty if it can."""
    if experiment.tuning.strategy != "linear_probe" or experiment.tuning.group_rates:
        return "tuning.strategy is not linear_probe, or has group_rates"
    if experiment.head.init not in HEAD_INITS:
        return f"head.init is {experiment.head.init}"
    for key in ("dropout", "mixup", "cutmix"):
        if getattr(experiment.regularize, key):
            return f"regularize.{key} changes features in training"
    return ""


def _check(experiments: Sequence[Experiment]) -> None:
    if not experiments:
        raise InputError("no experiments to train heads for")
    shared = _shared(experiments[0])
    for number, experiment in enumerate(experiments):
        if hindrance := _hindrance(experiment):
            raise InputError(f"experiment {number} is no head on cached features: {hindrance}; train it by itself")
        if _shared(experiment) != shared:
            raise InputError(
                f"experiment {number} differs from the first in more than seed, optim.learning_rate,"
                " optim.weight_decay and regularize.label_smoothing: train it by itself"
            )
        Experiment.from_config(to_dict(experiment))  # which checks its ranges


def _lanes(mesh: Mesh) -> int:
    """Returns how many chunks train at once: one a core of a CPU, as a head's products are too small to share."""
    return cores() if jax.default_backend() == "cpu" and mesh.size == 1 else 1


def _chunks(experiments: Sequence[Experiment], most: int, lanes: int, devices: int) -> tuple[list[list[int]], int]:
    """Returns the places of the experiments that train at once, each time of one seed, and to how many to fill up."""
    groups: dict[int, list[int]] = {}
    for i, experiment in enumerate(experiments):
        groups.setdefault(experiment.seed, []).append(i)
    share = -(-len(experiments) // (lanes * devices))  # beyond which a core would have nothing to do
    size = _chunk_size(max(map(len, groups.values())), min(most, share), devices)
    parts = (members[first : first + size] for members in groups.values() for first in range(0, len(members), size))
    return list(parts), size


def _chunk_size(heads: int, most: int, devices: int) -> int:
    """Returns how many heads train at once: a multiple of the devices, alike in each chunk, few to fill up the last."""
    most = max(most, 1) * devices
    fewest = -(-heads // most)
    sizes = (-(-heads // (chunks * devices)) * devices for chunks in range(fewest, fewest + fewest // 2 + 1))
    return min(sizes, key=lambda size: (-(-heads // size) * size, -size))


def _numbers(experiments: Sequence[Experiment]) -> dict[str, np.ndarray]:
    """Returns the numbers in which the experiments differ, float32 [experiments], and the learning rate."""
    numbers = {
        name: np.array([setting(experiment)[name] for experiment in experiments], np.float32)
        for name in setting(experiments[0])
    }
    return {name: values for name, values in numbers.items() if name == "learning_rate" or np.ptp(values)}


def _compiled_for(like: Experiment) -> Experiment:
    """Returns the experiment without what no program depends on."""
    rates = dataclasses.replace(like.optim, learning_rate=1.0)
    return dataclasses.replace(_shared(like), optim=rates, regularize=like.regularize)


@functools.lru_cache(maxsize=8)  # for a search of many parts, and one that is repeated
def _advance(like: Experiment, steps: int, mesh: Mesh, alone: bool) -> Callable[..., Any]:
    """Returns the program (states, numbers, rows [steps, batch], data) -> the states after the last step.

    Examples of `data` come by row of `input`: with views, one after another. A program that is not `alone` leaves
    other cores to others.
    """

    def head_step(state, numbers, batch, class_weights):
        return train_step(state, batch, _rules(like, steps, numbers, class_weights))[0]

    def all_steps(states, numbers, rows, data):
        def step(states, places):
            examples = places % len(data["label"])
            batch = {"input": data["input"][places], "label": data["label"][examples]}
            batch |= {"mask": jnp.ones(len(places)), "weight": data["weight"][examples]}
            take = functools.partial(head_step, class_weights=data.get("class_weights"))
            return jax.vmap(take, in_axes=(0, 0, None))(states, numbers, batch), None

        return jax.lax.scan(step, states, rows)[0]

    heads, whole = split(mesh).spec, PartitionSpec()
    # Unchecked: the loop's constants are no device's own, and become so.
    sharded = jax.shard_map(
        all_steps, mesh=mesh, in_specs=(heads, heads, whole, whole), out_specs=heads, check_vma=False
    )
    options = (
        compilation_cache.wide_vectors() | compilation_cache.KEEP_BARRIERS if jax.default_backend() == "cpu" else {}
    )
    options |= {} if alone else {"xla_cpu_multi_thread_eigen": False}
    return jax.jit(sharded, donate_argnums=0, compiler_options=options)


def _rules(
    like: Experiment,
    steps: int,
    numbers: dict[str, Float[Array, ""]],
    class_weights: Float[Array, " classes"] | None = None,
) -> StepSpec:
    """Returns what a step needs as `Run` has it, but with numbers that are traced."""
    config, multipliers = like.optim, _everywhere(like, 1.0)
    unit = optimizers.schedule(config.schedule, 1.0, config.warmup_of(steps), steps, config.schedule_args)
    return StepSpec(
        forward=functools.partial(forward, dtype=jnp.dtype(like.compute_dtype)),
        optimizer=optimizers.optimizer(config, multipliers, weight_decay=numbers.get("weight_decay")),
        schedule=lambda step: numbers["learning_rate"] * unit(step),
        trainable_mask=multipliers,
        optim=config,
        regularize=like.regularize,
        smoothing=numbers.get("label_smoothing", like.regularize.label_smoothing),
        pull=_everywhere(like, like.regularize.l2_sp_new),
        average_from=round(config.average_start * steps),
        seed=like.seed,
        problem=problem_for(like),
        class_weights=class_weights,
    )


def _everywhere(like: Experiment, value: float) -> dict[str, dict[str, float]]:
    return {"head": dict.fromkeys(("kernel", "bias") if like.head.bias else ("kernel",), value)}


def _start(like: Experiment, steps: int, head: dict[str, Float[Array, "..."]]) -> TrainState:
    """Returns a head's state at step 0, as `Run` makes it, with the kernel transposed."""
    params = {"head": {name: leaf.T for name, leaf in head.items()}}
    regularize, zero = like.regularize, jnp.zeros((), jnp.int32)
    average = {"params": params, "batch_stats": {}} if like.optim.average else {}
    anchor = jax.tree.map(jnp.zeros_like, params) if regularize.l2_sp or regularize.l2_sp_new else {}
    opt_state = optimizers.optimizer(like.optim, _everywhere(like, 1.0)).init(params)
    return TrainState(zero, params, opt_state, {}, average, anchor, zero)


def forward(params, batch_stats, x, key=None, *, dtype):
    """Returns the logits of a head whose kernel is [classes, features].

    So stacked, [heads, classes, features], the kernels are one matrix, and so are the products with a batch and their
    gradients, with nothing transposed between two steps.

    Args:
        params, batch_stats: of the head, and none.
        x: features [batch, features].
        key: of nothing that a head does.
        dtype: to compute in.
    """
    head = jax.tree.map(lambda leaf: leaf.astype(dtype), params["head"])
    if dtype == jnp.float32:
        logits = jax.lax.dot_general(head["kernel"], x.astype(dtype), (((1,), (1,)), ((), ())))
    else:
        logits = ops.unrounded_matmul(head["kernel"], x.astype(dtype).T)
    if "bias" in head:
        logits = logits + head["bias"][:, None]
    # Without it, XLA's CPU compiler gives the softmax's maximum to the product's library, which is slow at it.
    logits = jax.lax.optimization_barrier(logits)
    return logits.T.astype(jnp.float32), batch_stats


def _on_host(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays as every process has them whole."""
    return jax.tree.map(np.asarray, jax.device_put(tree, replicated(mesh)))


def _laid(tree: Any, like: Any) -> Any:
    """Returns the leaves of a tree in the places, and on the devices, of those of another."""
    places, structure = jax.tree.flatten(like)
    leaves = jax.tree.leaves(tree)
    return jax.tree.unflatten(
        structure, [jax.device_put(leaf, place.sharding) for leaf, place in zip(leaves, places, strict=True)]
    )
