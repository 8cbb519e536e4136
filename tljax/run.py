"""Assembles a run: the one place where config, data, model, weights and optimizer meet."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax import backbone, optim, sharding, tuning
from tljax.config import Experiment, Preprocessing
from tljax.data import images, tasks
from tljax.data.pipeline import TrainInput
from tljax.errors import InputError
from tljax.models.bert import Bert
from tljax.models.classifier import HEAD_INITS, Classifier
from tljax.step import State, eval_step, train_step
from tljax.weights import Pretrained
from tljax.weights.surgery import class_subset, with_channels


@dataclass(frozen=True)
class Resolved:
    """What a config leaves to the data and the weights; stored in the workdir, so that later verbs need neither.

    Attributes:
        pretrained: where the weights come from, and which network they fill.
        preprocessing: the weights' own, at the task's image size and number of channels.
        classes: names, in label order.
        steps: the run's length.
        data: the fingerprint of the data set.
    """

    pretrained: Pretrained
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    steps: int
    data: str


def resolve(experiment: Experiment) -> Resolved:
    """Looks at the catalogue and the data set; reads no weights.

    Raises:
        InputError: anything in the config names a thing that does not exist.
    """
    row = backbone.resolve(experiment.backbone)
    preprocessing = row.preprocessing
    if experiment.task.image_size:
        preprocessing = dataclasses.replace(preprocessing, size=experiment.task.image_size)
    if experiment.task.channels:
        preprocessing = with_channels(preprocessing, experiment.task.channels)
    task = tasks.load(experiment.task.dataset)
    for slicing in (experiment.task.validation, experiment.task.test):
        if slicing:
            task.split(slicing)
    steps = experiment.total_steps(len(task.split(experiment.task.train)))
    return Resolved(row, preprocessing, task.classes, steps, task.fingerprint)


class Run:
    """An experiment, ready to compile and start; nothing large is allocated before `init_state`.

    Attributes:
        experiment, resolved: what it was made from.
        model: the classifier.
        layout, multipliers, frozen: the parameters' names and groups, the strategy's tree, the groups that rest.
        tx, schedule: the optimizer.
        mesh: the devices.
        abstract_state: shapes, dtypes and shardings of the State.
    """

    def __init__(self, experiment: Experiment, resolved: Resolved):
        self.experiment, self.resolved = experiment, resolved
        self.mesh = sharding.make_mesh()
        self.size, self.channels = resolved.preprocessing.size, resolved.preprocessing.inputs
        module = backbone.module_of(resolved.pretrained)
        if isinstance(module, Bert):
            raise InputError(f"{resolved.pretrained.backbone} reads text, and {experiment.task.dataset} holds images")
        self.backbone = module.for_image_size(self.size)
        head = experiment.head
        if head.init not in {*HEAD_INITS, "pretrained"}:
            raise InputError(f"no head.init {head.init!r}; there are: {', '.join(HEAD_INITS)}, pretrained")
        # A pretrained head is filled in by `init_state`.
        init = head.init if head.init in HEAD_INITS else "zeros"
        self.model = Classifier(self.backbone, len(resolved.classes), init, head.bias)
        variables = jax.eval_shape(self._init)
        self.layout = tuning.Layout.of(variables["params"], self.backbone.groups)
        strategy = experiment.tuning
        self.multipliers = tuning.multipliers(strategy.strategy, strategy.arguments, self.layout)
        self.frozen = tuning.frozen_groups(self.layout, self.multipliers)
        self.schedule = optim.schedule(experiment.optim, resolved.steps)
        self.tx = optim.optimizer(experiment.optim, self.multipliers, resolved.steps)
        abstract = jax.eval_shape(self._state, variables)
        placed = functools.partial(_placed, sharding=sharding.replicated(self.mesh))
        self.abstract_state: State = jax.tree.map(placed, abstract)

    def init_state(self) -> State:
        """The State at step 0: pretrained backbone, new head; or all new where the config has no weights."""
        if self.experiment.backbone.weights:
            pretrained = backbone.restore(self.resolved.pretrained, self.backbone, self.channels)
            variables = {"params": {"backbone": pretrained["params"], tuning.HEAD: self._head(pretrained)}}
            if "batch_stats" in pretrained:
                variables["batch_stats"] = {"backbone": pretrained["batch_stats"]}
        else:
            variables = jax.jit(self._init)()
        return jax.device_put(self._state(variables), sharding.replicated(self.mesh))

    @property
    def batch_size(self) -> int:
        """Training examples per step.

        Raises:
            InputError: the devices here cannot share them evenly. Only training asks: evaluation pads.
        """
        return sharding.check_batch(self.experiment.task.batch_size, self.mesh, "task.batch_size")

    def _head(self, pretrained: dict[str, Any]) -> dict[str, Any]:
        """A new head, or the checkpoint's own for this task's classes."""
        if self.experiment.head.init != "pretrained":
            return jax.jit(lambda: self._init()["params"][tuning.HEAD])()  # only the head is ever computed
        known = self.resolved.pretrained.classes
        if "head" not in pretrained or not known:
            raise InputError(f"{self.resolved.pretrained.uri} has no head with named classes: use another head.init")
        found = class_subset(pretrained["head"]["kernel"], pretrained["head"].get("bias"), known, self.resolved.classes)
        if ("bias" in found) != self.experiment.head.bias:
            raise InputError(f"the pretrained head has a bias: {'bias' in found}; set config.head.bias to the same")
        return found

    def train_input(self, task: tasks.Task) -> TrainInput:
        """The training stream of this run.

        Raises:
            InputError: an augmentation does not exist, or the batch cannot be shared by the devices.
        """
        config = self.experiment.task
        preprocessing = self.resolved.preprocessing
        return TrainInput(
            task.split(config.train), preprocessing, config.augment, self.batch_size, self.experiment.seed
        )

    def lower_train_step(self, multipliers: tuning.Tree | None = None) -> jax.stages.Lowered:
        """The training step, traced; with other `multipliers` and their optimizer if given, as for comparison."""
        if multipliers is None:
            multipliers, tx, frozen, abstract = self.multipliers, self.tx, self.frozen, self.abstract_state
        else:
            tx = optim.optimizer(self.experiment.optim, multipliers, self.resolved.steps)
            frozen = tuning.frozen_groups(self.layout, multipliers)
            opt_state = jax.eval_shape(tx.init, tuning.select(self.abstract_state.params, multipliers))
            abstract = self.abstract_state.replace(opt_state=opt_state)
        step = functools.partial(
            train_step, forward=functools.partial(self.forward, frozen=frozen), tx=tx, multipliers=multipliers
        )
        replicated, split = sharding.replicated(self.mesh), sharding.split(self.mesh)
        jitted = jax.jit(step, donate_argnums=0, in_shardings=(replicated, split), out_shardings=replicated)
        return jitted.lower(abstract, self._abstract_batch(self.batch_size))

    @functools.cached_property
    def train_step(self) -> jax.stages.Compiled:
        """(State, batch) -> State, metrics; compiled, the old State donated."""
        return self.lower_train_step().compile()

    @functools.cache  # noqa: B019 (a Run lives as long as the process)
    def eval_step(self, batch_size: int) -> jax.stages.Compiled:
        """(params, batch_stats, images [batch_size, …]) -> logits; compiled."""
        replicated, split = sharding.replicated(self.mesh), sharding.split(self.mesh)
        jitted = jax.jit(
            functools.partial(eval_step, forward=self.forward),
            in_shardings=(replicated, replicated, split),
            out_shardings=split,
        )
        state, batch = self.abstract_state, self._abstract_batch(batch_size)
        return jitted.lower(state.params, state.batch_stats, batch["image"]).compile()

    def forward(self, params, batch_stats, image, *, train: bool, frozen=()):
        """Logits, and the batch statistics that training leaves behind."""
        x = images.normalise(image, self.resolved.preprocessing)
        variables = {"params": params, "batch_stats": batch_stats}
        if not train:
            return self.model.apply(variables, x), batch_stats
        logits, updated = self.model.apply(variables, x, train=True, frozen=tuple(frozen), mutable=["batch_stats"])
        return logits, updated.get("batch_stats", batch_stats)

    def _init(self):
        image = jnp.zeros((1, self.size, self.size, self.channels))
        return self.model.init(jax.random.key(self.experiment.seed), image)

    def _state(self, variables) -> State:
        params = variables["params"]
        opt_state = self.tx.init(tuning.select(params, self.multipliers))
        return State(jnp.zeros((), jnp.int32), params, opt_state, variables.get("batch_stats", {}))

    def _abstract_batch(self, batch_size: int):
        place = functools.partial(_placed, sharding=sharding.split(self.mesh))
        shapes = {
            "image": jax.ShapeDtypeStruct((batch_size, self.size, self.size, self.channels), np.uint8),
            "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
            "mask": jax.ShapeDtypeStruct((batch_size,), np.float32),
        }
        return jax.tree.map(place, shapes)


def _placed(leaf, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
