"""The network of an experiment: backbone, adapters and head; its variables at the start; its forward pass."""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from tljax.config.schema import Experiment
from tljax.core.classifier import HEAD_INITS, Classifier
from tljax.data.input_spec import InputSpec
from tljax.data.preprocessing import Preprocessing
from tljax.errors import InputError
from tljax.peft.config import AdapterConfig, MlpHead, is_adapter_param
from tljax.problems.registry import problem_of
from tljax.tuning.strategies import HEAD, Layout
from tljax.weights.adapt import class_subset, resample_pos_embed
from tljax.weights.catalog import Pretrained
from tljax.weights.pretrained import Shape, module_of, restore, shapes_of

Variables = dict[str, Any]  # params and, with BatchNorm, batch_stats: nested dicts of arrays


class Network:
    """A classifier, and where its parameters come from; nothing large is allocated before `init_variables`.

    Attributes:
        input_spec: what it reads.
        module: backbone and head.
        backbone: the former, for the task's image size.
        adapters: what the run's strategies add.
        outputs: of the head.
        abstract: shapes and dtypes of its variables.
        layout: the parameters' names and groups.

    Raises:
        InputError: the backbone does not take such input or adapters, or a name in the config does not exist.
    """

    def __init__(
        self,
        experiment: Experiment,
        row: Pretrained,
        preprocessing: Preprocessing,
        classes: tuple[str, ...],
        adapters: tuple[AdapterConfig, ...],
        input_spec: InputSpec,
    ):
        _check(experiment, adapters)
        self._experiment, self._row, self._preprocessing, self._classes = experiment, row, preprocessing, classes
        self.adapters = adapters
        module = module_of(row)
        self.input_spec = input_spec
        self.backbone = self.input_spec.fit(module)
        head, noise = experiment.head, experiment.regularize
        # A pretrained head is filled in by `init_variables`.
        init = head.init if head.init in HEAD_INITS else "zeros"
        rates = noise.dropout, noise.drop_path
        self.outputs = problem_of(experiment.task.problem).num_outputs(len(classes))
        self.module = Classifier(self.backbone, self.outputs, init, head.bias, adapters, *rates)
        self._read: dict[str, Any] | None = None
        # Traced once, for the shapes and for `init_variables`. The key is an argument: all seeds have the same program.
        init_all = jax.jit(self._init)
        self.abstract = init_all.eval_shape(jax.random.key(0))
        if strays := self.abstract["params"].get("backbone", {}).keys() - set(self.backbone.groups):
            name = type(self.backbone).__name__
            raise InputError(f"{name} has parameters in {', '.join(sorted(strays))}, which its `groups` do not name")
        self.layout = Layout.from_params(self.abstract["params"], self.backbone.groups, self.backbone.pooled_norm)
        # Compiled, so that of all that `_init` makes only what is new is ever computed.
        self._init_new = (
            jax.jit(lambda key: self._select_new(init_all(key))) if experiment.backbone.weights else init_all
        )

    def with_experiment(self, experiment: Experiment) -> "Network":
        """Returns the same network, started by another seed."""
        other = copy.copy(self)
        other._experiment = experiment
        return other

    @property
    def new(self) -> list[str]:
        """Returns paths of the parameters that the weights do not bring."""
        paths = list(self.layout.group_of)
        if not self._experiment.backbone.weights:
            return paths
        own_head = self._experiment.head.init == "pretrained"
        return [path for path in paths if is_adapter_param(path) or (path.startswith(f"{HEAD}/") and not own_head)]

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Returns `pretrained.shapes` of its backbone, of which nothing need be traced again."""
        leaves = {kind: flatten_dict(tree.get("backbone", {}), sep="/") for kind, tree in self.abstract.items()}
        own = {
            kind: {path: leaf for path, leaf in tree.items() if not is_adapter_param(path)}
            for kind, tree in leaves.items()
        }
        return shapes_of(self.backbone, own)

    def by_origin(self, pretrained: float, new: float) -> Mapping[str, Any]:
        """Returns one value for each parameter that the weights bring, another for those that start anew."""
        fresh = set(self.new)
        return unflatten_dict({path: new if path in fresh else pretrained for path in self.layout.group_of}, sep="/")

    def make_ready(self) -> None:
        """Reads and compiles what `init_variables` needs: in a thread, beside what else there is to do before it."""
        if self._experiment.backbone.weights:
            self._read = self._restored()
        self._init_new.lower(jax.random.key(0)).compile()

    def _restored(self) -> dict[str, Any]:
        return restore(self._row, self.backbone, self._preprocessing.inputs, self.shapes)

    def init_variables(self) -> Variables:
        """Returns the variables at step 0: pretrained, and new what the weights lack, which without weights is all.

        Raises:
            InputError: the weights cannot be had or do not fit, or have no head for these classes.
        """
        key = jax.random.key(self._experiment.seed)
        if not self._experiment.backbone.weights:
            return self._init_new(key)
        pretrained, self._read = self._read or self._restored(), None
        params = {"backbone": pretrained["params"]}
        if self._experiment.head.init == "pretrained":
            params[HEAD] = self._own_head(pretrained)
        params = unflatten_dict(flatten_dict(params, sep="/") | self._init_new(key), sep="/")
        stats = {"batch_stats": {"backbone": pretrained["batch_stats"]}} if "batch_stats" in pretrained else {}
        return {"params": params} | stats

    def resized(self, params: Mapping[str, Any], source: "Network") -> Mapping[str, Any]:
        """Returns parameters of `source`, this network at another image size, fitted as pretrained ones are.

        Args:
            params: of `source`.
            source: the network that they were trained in.

        Raises:
            InputError: the rule of the weights' row is not known.
        """
        grids, own_grids = source.backbone.position_grids, self.backbone.position_grids
        if grids == own_grids:
            return params
        leaves = flatten_dict(params, sep="/")
        for name, grid in own_grids.items():
            path = name.replace("params", "backbone", 1)
            leaf = leaves[path]
            table = resample_pos_embed(np.asarray(leaf, np.float32), grids[name], grid, self._row.pos_embed)
            leaves[path] = jax.device_put(table.astype(leaf.dtype), leaf.sharding)
        return unflatten_dict(leaves, sep="/")

    def forward(
        self,
        variables: Variables,
        x: Any,
        key: jax.Array | None = None,
        batch_norm: Mapping[str, str] = {},
        noisy: Collection[str] = (),
        start: int = 0,
    ) -> tuple[jax.Array, Any]:
        """Returns logits [batch, classes] in float32, and batch statistics.

        Args:
            variables: params and batch_stats.
            x: images [batch, size, size, channels] in grey levels, or what `Tokenizer.pad` gives; or what `features`
                gave at `start`.
            key: of dropout and stochastic depth.
            batch_norm: the groups whose BatchNorm does not rest, and its mode there; none in evaluation.
            noisy: the groups with dropout and stochastic depth; none in evaluation.
            start: how many of the backbone's groups `x` has behind it.
        """
        batch_stats = variables.get("batch_stats", {})
        variables, x = self._cast(variables), x if start else self._entering(x)
        rngs = {} if key is None else {"dropout": key}
        options = {"batch_norm": batch_norm, "noisy": noisy, "remat": self._experiment.remat and bool(noisy)}
        options["start"] = start
        logits, updated = self.module.apply(variables, x, rngs=rngs, mutable=["batch_stats"], **options)
        return logits.astype(jnp.float32), updated.get("batch_stats", batch_stats)

    def features(self, variables: Variables, x: Any, stops: Sequence[int]) -> list[Any]:
        """Returns what the backbone gives in evaluation after its first groups.

        Args:
            variables: params and batch_stats, of these groups at least.
            x: as `forward` takes it at `start=0`.
            stops: after how many groups; rising.
        """
        return self.module.apply(self._cast(variables), self._entering(x), tuple(stops), method="features")

    @property
    def _dtype(self) -> jnp.dtype:
        return jnp.dtype(self._experiment.compute_dtype)

    def _cast(self, variables: Variables) -> Variables:
        params = jax.tree.map(lambda leaf: leaf.astype(self._dtype), variables["params"])
        return {"params": params, "batch_stats": variables.get("batch_stats", {})}

    def _entering(self, x: Any) -> Any:
        """Returns what the stem takes of a batch."""
        return self.input_spec.to_network(x, self._dtype)

    def _init(self, key: jax.Array) -> Variables:
        return self.module.init(key, self.input_spec.example())

    def _select_new(self, variables: Variables) -> dict[str, jax.Array]:
        params = flatten_dict(variables["params"], sep="/")
        return {path: params[path] for path in self.new}

    def _own_head(self, pretrained: Variables) -> dict[str, Any]:
        """Returns the checkpoint's own head for this task's classes."""
        known = self._row.classes
        if "head" not in pretrained and self._row.pool:
            raise InputError("backbone.pool gives other features than the pretrained head reads: use another head.init")
        if "head" not in pretrained or not known:
            raise InputError(f"{self._row.uri} has no head with named classes: use another head.init")
        head = class_subset(pretrained["head"]["kernel"], pretrained["head"].get("bias"), known, self._classes)
        if ("bias" in head) != self._experiment.head.bias:
            raise InputError(f"the pretrained head has a bias: {'bias' in head}; set config.head.bias to the same")
        return head


def _check(experiment: Experiment, adapters: tuple[AdapterConfig, ...]) -> None:
    """Raises InputError where the head would be two things at once."""
    if experiment.head.init == "pretrained" and any(isinstance(adapter, MlpHead) for adapter in adapters):
        raise InputError("head.init=pretrained gives a linear head, tuning.strategy=mlp_head adds a hidden layer")
