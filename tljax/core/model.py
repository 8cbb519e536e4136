"""The network of an experiment: backbone, additions and head; its variables at the start; its forward pass."""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from tljax.config.schema import Experiment
from tljax.core.classifier import HEAD_INITS, Classifier
from tljax.data.preprocessing import Preprocessing
from tljax.data.transforms import image
from tljax.errors import InputError
from tljax.models.vision.vit import ViT
from tljax.peft.config import Addition, MlpHead, is_added
from tljax.tuning.strategies import HEAD, Layout
from tljax.weights import pretrained as weights_pretrained
from tljax.weights.adapt import class_subset, resample_pos_embed
from tljax.weights.catalog import Pretrained

Variables = dict[str, Any]  # params and, with BatchNorm, batch_stats: nested dicts of arrays


class Network:
    """A classifier, and where its parameters come from; nothing large is allocated before `start`.

    Attributes:
        reads: `image` or `text`.
        backbone: its module, for the task's image size.
        additions: what the run's strategies add.
        abstract: shapes and dtypes of its variables.
        layout: the parameters' names and groups.

    Raises:
        InputError: the backbone does not take such input or additions, or a name in the config does not exist.
    """

    def __init__(
        self,
        experiment: Experiment,
        row: Pretrained,
        preprocessing: Preprocessing,
        classes: tuple[str, ...],
        additions: tuple[Addition, ...],
    ):
        _check(experiment, additions)
        self._experiment, self._row, self._preprocessing, self._classes = experiment, row, preprocessing, classes
        self.additions = additions
        module = weights_pretrained.module_of(row)
        self.reads = weights_pretrained.reads(row)
        self.backbone = module if self.reads == "text" else module.for_image_size(preprocessing.size)
        head, noise = experiment.head, experiment.regularize
        # A pretrained head is filled in by `start`.
        init = head.init if head.init in HEAD_INITS else "zeros"
        rates = noise.dropout, noise.drop_path
        self._model = Classifier(self.backbone, len(classes), init, head.bias, additions, *rates)
        self._read: dict[str, Any] | None = None
        # Traced once, for the shapes and for `start`. The key is an argument: all seeds have the same program.
        whole = jax.jit(self._init)
        self.abstract = whole.eval_shape(jax.random.key(0))
        self.layout = Layout.from_params(self.abstract["params"], self.backbone.groups, self.backbone.pooled_norm)
        # Compiled, so that of all that `_init` makes only what is new is ever computed.
        self._made = jax.jit(lambda key: self._of_new(whole(key))) if experiment.backbone.weights else whole

    def of(self, experiment: Experiment) -> "Network":
        """The same network, started by another seed."""
        other = copy.copy(self)
        other._experiment = experiment
        return other

    @property
    def new(self) -> list[str]:
        """Paths of the parameters that the weights do not bring."""
        paths = list(self.layout.group_of)
        if not self._experiment.backbone.weights:
            return paths
        own_head = self._experiment.head.init == "pretrained"
        return [path for path in paths if is_added(path) or (path.startswith(f"{HEAD}/") and not own_head)]

    @property
    def shapes(self) -> Mapping[str, weights_pretrained.Shape]:
        """`backbone.shapes` of its backbone, of which nothing need be traced again."""
        found = {kind: flatten_dict(tree.get("backbone", {}), sep="/") for kind, tree in self.abstract.items()}
        own = {kind: {path: leaf for path, leaf in tree.items() if not is_added(path)} for kind, tree in found.items()}
        return weights_pretrained.shapes_of(self.backbone, own)

    def by_origin(self, pretrained: float, new: float) -> Mapping[str, Any]:
        """One value for each parameter that the weights bring, another for those that start anew."""
        started = set(self.new)
        return unflatten_dict({path: new if path in started else pretrained for path in self.layout.group_of}, sep="/")

    def make_ready(self) -> None:
        """Reads and compiles what `start` needs: in a thread, beside what else there is to do before it."""
        if self._experiment.backbone.weights:
            self._read = self._restored()
        self._made.lower(jax.random.key(0)).compile()

    def _restored(self) -> dict[str, Any]:
        return weights_pretrained.restore(self._row, self.backbone, self._preprocessing.inputs, self.shapes)

    def start(self) -> Variables:
        """The variables at step 0: pretrained, and new what the weights lack; or all new where the config has none.

        Raises:
            InputError: the weights cannot be had or do not fit, or have no head for these classes.
        """
        key = jax.random.key(self._experiment.seed)
        if not self._experiment.backbone.weights:
            return self._made(key)
        found, self._read = self._read or self._restored(), None
        params = {"backbone": found["params"]}
        if self._experiment.head.init == "pretrained":
            params[HEAD] = self._own_head(found)
        made = self._made(key)
        variables = {"params": unflatten_dict(flatten_dict(params, sep="/") | made, sep="/")}
        return variables | ({"batch_stats": {"backbone": found["batch_stats"]}} if "batch_stats" in found else {})

    def resized(self, params: Mapping[str, Any], source: "Network") -> Mapping[str, Any]:
        """Parameters of `source`, the same network at another image size, at this one's: as pretrained ones become it.

        Raises:
            InputError: the rule of the weights' row is not known.
        """
        if not isinstance(self.backbone, ViT) or self.backbone.grid == source.backbone.grid:
            return params
        leaves, path = flatten_dict(params, sep="/"), weights_pretrained.POS_EMBED.replace("params", "backbone", 1)
        grids = source.backbone.grid, self.backbone.grid
        table = resample_pos_embed(np.asarray(leaves[path]), *grids, self._row.pos_embed)
        leaves[path] = jax.device_put(table, leaves[path].sharding)
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
        """Logits [batch, classes] in float32, and batch statistics.

        Args:
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
        logits, updated = self._model.apply(variables, x, rngs=rngs, mutable=["batch_stats"], **options)
        return logits.astype(jnp.float32), updated.get("batch_stats", batch_stats)

    def features(self, variables: Variables, x: Any, stops: Sequence[int]) -> list[Any]:
        """What the backbone gives in evaluation after its first groups, as many as each of the rising `stops` says."""
        return self._model.apply(self._cast(variables), self._entering(x), tuple(stops), method="features")

    @property
    def _dtype(self) -> jnp.dtype:
        return jnp.dtype(self._experiment.compute_dtype)

    def _cast(self, variables: Variables) -> Variables:
        params = jax.tree.map(lambda leaf: leaf.astype(self._dtype), variables["params"])
        return {"params": params, "batch_stats": variables.get("batch_stats", {})}

    def _entering(self, x: Any) -> Any:
        """What the stem takes of a batch."""
        return image.normalize(x, self._preprocessing).astype(self._dtype) if self.reads == "image" else x

    def _init(self, key: jax.Array) -> Variables:
        return self._model.init(key, self._example())

    def _example(self) -> Any:
        if self.reads == "text":
            tokens = jnp.ones((1, 2), jnp.int32)
            return {"input_ids": tokens, "attention_mask": tokens, "token_type_ids": 0 * tokens}
        size = self._preprocessing.size
        return jnp.zeros((1, size, size, self._preprocessing.inputs))

    def _of_new(self, made: Variables) -> dict[str, jax.Array]:
        params = flatten_dict(made["params"], sep="/")
        return {path: params[path] for path in self.new}

    def _own_head(self, pretrained: Variables) -> dict[str, Any]:
        """The checkpoint's own head for this task's classes."""
        known = self._row.classes
        if "head" not in pretrained and self._row.pool:
            raise InputError("backbone.pool gives other features than the pretrained head reads: use another head.init")
        if "head" not in pretrained or not known:
            raise InputError(f"{self._row.uri} has no head with named classes: use another head.init")
        found = class_subset(pretrained["head"]["kernel"], pretrained["head"].get("bias"), known, self._classes)
        if ("bias" in found) != self._experiment.head.bias:
            raise InputError(f"the pretrained head has a bias: {'bias' in found}; set config.head.bias to the same")
        return found


def _check(experiment: Experiment, additions: tuple[Addition, ...]) -> None:
    """Raises InputError where the head would be two things at once."""
    if experiment.head.init == "pretrained" and any(isinstance(addition, MlpHead) for addition in additions):
        raise InputError("head.init=pretrained gives a linear head, tuning.strategy=mlp_head adds a hidden layer")
