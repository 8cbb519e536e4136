"""Assembles a run: the one place where config, data, model, weights and optimizer meet."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from tljax import backbone, optim, sharding, tuning
from tljax.additions import MlpHead, is_added
from tljax.config import Experiment, Preprocessing
from tljax.data import images, tasks
from tljax.data.pipeline import TrainInput
from tljax.errors import InputError
from tljax.models import BATCH_NORM_MODES
from tljax.models.bert import Bert
from tljax.models.classifier import HEAD_INITS, Classifier
from tljax.phases import Length, Phase, additions, phases
from tljax.step import Rules, State, eval_step, train_step
from tljax.strategies import HEAD, Layout
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
        train_examples: in the training split.
        data: the fingerprint of the data set.
    """

    pretrained: Pretrained
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    steps: int
    train_examples: int
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
    count = len(task.split(experiment.task.train))
    return Resolved(row, preprocessing, task.classes, experiment.total_steps(count), count, task.fingerprint)


class Run:
    """An experiment, ready to compile and start; nothing large is allocated before `init_state`.

    Attributes:
        experiment, resolved: what it was made from.
        model: the classifier.
        layout: the parameters' names and groups.
        phases: what trains when; one for most runs.
        mesh: the devices.
    """

    def __init__(self, experiment: Experiment, resolved: Resolved):
        self.experiment, self.resolved = experiment, resolved
        self.mesh = sharding.make_mesh()
        self.size, self.channels = resolved.preprocessing.size, resolved.preprocessing.inputs
        module = backbone.module_of(resolved.pretrained)
        if isinstance(module, Bert):
            raise InputError(f"{resolved.pretrained.backbone} reads text, and {experiment.task.dataset} holds images")
        self.backbone = module.for_image_size(self.size)
        self.model = self._classifier()
        self._variables = jax.eval_shape(self._init)
        self.layout = Layout.of(self._variables["params"], self.backbone.groups, self.backbone.pooled_norm)
        length = Length(resolved.steps, resolved.train_examples / experiment.task.batch_size, self.layout)
        self.phases = phases(experiment.tuning, experiment.optim, length)
        _check_names(experiment)
        self._optimizer(self.phases[0])  # which checks its settings

    def _classifier(self) -> Classifier:
        head, noise = self.experiment.head, self.experiment.regularise
        if head.init not in {*HEAD_INITS, "pretrained"}:
            raise InputError(f"no head.init {head.init!r}; there are: {', '.join(HEAD_INITS)}, pretrained")
        # A pretrained head is filled in by `init_state`.
        init = head.init if head.init in HEAD_INITS else "zeros"
        added = additions(self.experiment.tuning)
        if head.init == "pretrained" and any(isinstance(one, MlpHead) for one in added):
            raise InputError("head.init=pretrained gives a linear head, tuning.strategy=mlp_head adds a hidden layer")
        classes = len(self.resolved.classes)
        return Classifier(self.backbone, classes, init, head.bias, added, noise.dropout, noise.drop_path)

    def phase_at(self, step: int) -> Phase:
        """The phase that step `step` (from 0) trains in."""
        return next(phase for phase in self.phases if step < phase.stop)

    def phase_of(self, state_step: int) -> Phase:
        """The phase whose optimizer a State holds after `state_step` steps: that of the last step taken."""
        return self.phase_at(max(state_step - 1, 0))

    @property
    def multipliers(self) -> tuning.Tree:
        """The highest multiplier that each leaf has in any phase; 0 where it never trains."""
        return jax.tree.map(lambda *found: max(found), *(phase.multipliers for phase in self.phases))

    @functools.cache  # noqa: B019 (a Run lives as long as the process)
    def abstract_state(self, step: int = 0) -> State:
        """Shapes, dtypes and shardings of the State after `step` steps."""
        return self.abstract(self.phase_of(step))

    def abstract(self, phase: Phase) -> State:
        """The same of a State in a phase."""
        abstract = jax.eval_shape(functools.partial(self._state, phase=phase), self._variables)
        return jax.tree.map(functools.partial(_placed, sharding=sharding.replicated(self.mesh)), abstract)

    def frozen_leaves(self, state: State) -> dict[str, jax.Array]:
        """Parameters that never train, and stored statistics that the run's modes never move, by path."""
        multipliers = flatten_dict(self.multipliers, sep="/")
        found = {path: leaf for path, leaf in flatten_dict(state.params, sep="/").items() if not multipliers[path]}
        modes, never = self.experiment.batch_norm, frozenset.intersection(*(phase.frozen for phase in self.phases))
        for path, leaf in flatten_dict(state.batch_stats, sep="/").items():
            mode = modes.frozen_groups if path.split("/")[1] in never else modes.trained_groups
            if mode != "update_stats":
                found[f"batch_stats/{path}"] = leaf
        return found

    def init_state(self) -> State:
        """The State at step 0: pretrained, and new what the weights lack; or all new where the config has none."""
        variables = self._pretrained() if self.experiment.backbone.weights else jax.jit(self._init)()
        return jax.device_put(self._state(variables, self.phases[0]), sharding.replicated(self.mesh))

    def enter(self, state: State, phase: Phase) -> State:
        """The State with which a phase begins; see `phases` for what is carried over."""
        fresh = self._state({"params": state.params, "batch_stats": state.batch_stats}, phase)
        opt_state, average = (
            optim.carry_over(old, new)
            for old, new in ((state.opt_state, fresh.opt_state), (state.average, fresh.average))
        )
        entered = state.replace(opt_state=opt_state, average=average)
        return jax.device_put(entered, sharding.replicated(self.mesh))

    def evaluated(self, state: State) -> tuple[Any, Any]:
        """The parameters and batch statistics to evaluate and export: an average's, where the config asks for one."""
        if not state.average:
            return state.params, state.batch_stats
        multipliers = self.phase_of(int(state.step)).multipliers
        return tuning.merge(state.average["params"], state.params, multipliers), state.average["batch_stats"]

    @property
    def batch_size(self) -> int:
        """Training examples per step.

        Raises:
            InputError: the devices here cannot share them evenly. Only training asks: evaluation pads.
        """
        parts = self.experiment.optim.accumulate
        if parts < 1:
            raise InputError(f"optim.accumulate must be at least 1, not {parts}")
        return sharding.check_batch(self.experiment.task.batch_size, self.mesh, "task.batch_size", parts)

    def _pretrained(self) -> dict[str, Any]:
        """Variables with the weights' own arrays, and new ones where they have none."""
        found = backbone.restore(self.resolved.pretrained, self.backbone, self.channels)
        params = {"backbone": found["params"]}
        if self.experiment.head.init == "pretrained":
            params[HEAD] = self._pretrained_head(found)
        known = flatten_dict(params, sep="/")
        wanted = [path for path in flatten_dict(self._variables["params"], sep="/") if path not in known]
        # Compiled, so that of all that `_init` makes only what is wanted is ever computed.
        made = jax.jit(lambda: {path: flatten_dict(self._init()["params"], sep="/")[path] for path in wanted})()
        variables = {"params": unflatten_dict(known | made, sep="/")}
        return variables | ({"batch_stats": {"backbone": found["batch_stats"]}} if "batch_stats" in found else {})

    def _pretrained_head(self, pretrained: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint's own head for this task's classes."""
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

    def lower_train_step(self, phase: Phase) -> jax.stages.Lowered:
        """The training step of a phase, traced."""
        step = functools.partial(train_step, rules=self._rules(phase))
        replicated, split = sharding.replicated(self.mesh), sharding.split(self.mesh)
        jitted = jax.jit(step, donate_argnums=0, in_shardings=(replicated, split), out_shardings=replicated)
        return jitted.lower(self.abstract(phase), self._abstract_batch(self.batch_size))

    @functools.cache  # noqa: B019
    def train_step(self, phase: Phase) -> jax.stages.Compiled:
        """(State, batch) -> State, metrics; compiled, the old State donated."""
        # A CPU's compiler takes away the barriers that hold recomputation back, unless told not to.
        on_cpu = self.experiment.remat and jax.default_backend() == "cpu"
        options = {"xla_disable_hlo_passes": "cse_barrier_expander"} if on_cpu else None
        return self.lower_train_step(phase).compile(compiler_options=options)

    @functools.cache  # noqa: B019
    def eval_step(self, batch_size: int) -> jax.stages.Compiled:
        """(params, batch_stats, images [batch_size, …]) -> logits; compiled."""
        replicated, split = sharding.replicated(self.mesh), sharding.split(self.mesh)
        jitted = jax.jit(
            functools.partial(eval_step, forward=self.forward),
            in_shardings=(replicated, replicated, split),
            out_shardings=split,
        )
        state, batch = self.abstract_state(), self._abstract_batch(batch_size)
        return jitted.lower(state.params, state.batch_stats, batch["image"]).compile()

    def forward(self, params, batch_stats, image, key=None, *, phase: Phase | None = None):
        """Logits, and the batch statistics that training leaves behind; evaluation without a `phase`."""
        dtype = jnp.dtype(self.experiment.compute_dtype)
        x = images.normalise(image, self.resolved.preprocessing).astype(dtype)
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        if phase is None:
            return self.model.apply({"params": params, "batch_stats": batch_stats}, x), batch_stats
        trained = [group for group in self.layout.groups if group not in phase.frozen]
        modes = self.experiment.batch_norm
        batch_norm = dict.fromkeys(phase.frozen, modes.frozen_groups) | dict.fromkeys(trained, modes.trained_groups)
        variables, rngs = {"params": params, "batch_stats": batch_stats}, {"dropout": key}
        options = {"batch_norm": batch_norm, "noisy": tuple(trained), "remat": self.experiment.remat}
        logits, updated = self.model.apply(variables, x, rngs=rngs, mutable=["batch_stats"], **options)
        return logits.astype(jnp.float32), updated.get("batch_stats", batch_stats)

    def _init(self):
        image = jnp.zeros((1, self.size, self.size, self.channels))
        return self.model.init(jax.random.key(self.experiment.seed), image)

    def _optimizer(self, phase: Phase) -> optax.GradientTransformation:
        return optim.optimizer(self.experiment.optim, phase.multipliers, phase.since)

    def _rules(self, phase: Phase) -> Rules:
        experiment = self.experiment
        return Rules(
            forward=functools.partial(self.forward, phase=phase),
            tx=self._optimizer(phase),
            schedule=phase.schedule,
            multipliers=phase.multipliers,
            optim=experiment.optim,
            regularise=experiment.regularise,
            pull=self._by_origin(experiment.regularise.l2_sp, experiment.regularise.l2_sp_new),
            average_from=round(experiment.optim.average_start * self.resolved.steps),
            seed=experiment.seed,
        )

    def _by_origin(self, pretrained: float, new: float) -> tuning.Tree:
        """One value for each leaf that the weights bring, another for those that start anew."""
        experiment = self.experiment

        def value(path: str) -> float:
            own_head = experiment.head.init == "pretrained" and path.startswith(f"{HEAD}/")
            brought = experiment.backbone.weights and not is_added(path) and not path.startswith(f"{HEAD}/")
            return pretrained if brought or own_head else new

        paths = flatten_dict(self._variables["params"], sep="/")
        return unflatten_dict({path: value(path) for path in paths}, sep="/")

    def _state(self, variables, phase: Phase) -> State:
        """A State at its beginning, with the optimizer of `phase`."""
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        trainable = tuning.select(params, phase.multipliers)
        average, anchor, regularise = {}, {}, self.experiment.regularise
        # Copies: a step gives its State's arrays away, and none may be given twice.
        if self.experiment.optim.average:
            average = jax.tree.map(jnp.copy, {"params": trainable, "batch_stats": batch_stats})
        if regularise.l2_sp or regularise.l2_sp_new:
            ever = tuning.select(params, self.multipliers)
            anchor = jax.tree.map(
                lambda w, one: w * one, ever, tuning.select(self._by_origin(1.0, 0.0), self.multipliers)
            )
        zero = jnp.zeros((), jnp.int32)
        opt_state = self._optimizer(phase).init(trainable)
        return State(zero, params, opt_state, batch_stats, average, anchor, jnp.copy(zero))

    def _abstract_batch(self, batch_size: int):
        place = functools.partial(_placed, sharding=sharding.split(self.mesh))
        shapes = {
            "image": jax.ShapeDtypeStruct((batch_size, self.size, self.size, self.channels), np.uint8),
            "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
            "mask": jax.ShapeDtypeStruct((batch_size,), np.float32),
        }
        return jax.tree.map(place, shapes)


def _check_names(experiment: Experiment) -> None:
    """Raises InputError for a BatchNorm mode or a type that does not exist, or a rate that is none."""
    for key, mode in vars(experiment.batch_norm).items():
        if mode not in BATCH_NORM_MODES:
            raise InputError(f"no batch_norm.{key} {mode!r}; there are: {', '.join(BATCH_NORM_MODES)}")
    if experiment.compute_dtype not in ("float32", "bfloat16"):
        raise InputError(f"no compute_dtype {experiment.compute_dtype!r}; there are: float32, bfloat16")
    for key, value in vars(experiment.regularise).items():
        if value < 0 or (value >= 1 and not key.startswith("l2_sp")):
            raise InputError(f"regularise.{key} must be at least 0{'' if 'l2' in key else ' and below 1'}, not {value}")


def _placed(leaf, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
