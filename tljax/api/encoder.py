"""A pretrained encoder in Python: features, tokens and logits of images or texts, and its pure forward pass."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from tljax.api import session
from tljax.api.inputs import listed, name_of
from tljax.config.schema import BackboneConfig, TaskConfig
from tljax.config.serialization import build
from tljax.config.tuning import TuningConfig
from tljax.core.classifier import Classifier
from tljax.core.resolve import check_length
from tljax.data.input_spec import InputSpec, input_spec
from tljax.data.loader import chunks, padded
from tljax.data.preprocessing import Preprocessing
from tljax.data.transforms.tokenize import Tokenizer
from tljax.errors import InputError
from tljax.models.base import Backbone
from tljax.tuning.multipliers import Tree, multiplier_tree
from tljax.tuning.phases import adapters
from tljax.tuning.strategies import HEAD, Layout
from tljax.weights import pretrained
from tljax.weights.adapt import with_channels
from tljax.weights.catalog import Pretrained

_FLOAT32 = jnp.dtype("float32")


def load_backbone(
    weights: str = "",
    *,
    name: str = "",
    image_size: int = 0,
    channels: int = 0,
    pool: str = "",
    max_tokens: int = 128,
    seed: int = 0,
) -> "Encoder":
    """Loads a pretrained encoder, fitted to an image size.

        backbone = tljax.load_backbone("vit_small_patch14.dinov2", image_size=98)
        features = backbone.features(["a.jpg", "b.png"])  # float32 [2, 384]

    Args:
        weights: a name in the catalogue (`tljax.list_models()`), `hf://ORG/NAME`, or a path; empty draws random ones.
        name: the network, as `config.backbone.name`, where the weights do not say; or `module:name` of your own.
        image_size: pixels along each side; 0 for what the weights expect.
        channels: of each image, as `config.task.channels`; 0 for the weights' own.
        pool: what features are made of, as `config.backbone.pool`; empty for what the weights' own files say.
        max_tokens: of a text; longer ones are cut.
        seed: of random weights.

    Raises:
        InputError: there are no such weights, they do not fit the network, or it takes no such images.
    """
    session.begin()
    config = build(BackboneConfig, {"weights": weights, "name": name, "pool": pool}, "backbone")
    row, task = pretrained.resolve_weights(config), build(TaskConfig, {"max_tokens": max_tokens}, "task")
    spec = _input_spec(row, image_size, channels, max_tokens)
    preprocessing = getattr(spec, "preprocessing", row.preprocessing)
    module = spec.fit(pretrained.module_of(row))
    if weights:
        variables = pretrained.restore(row, module, preprocessing.inputs)
    else:
        variables = module.init(jax.random.key(seed), spec.example())
    arrays = jax.tree.map(jnp.asarray, dict(variables))
    tokenizer = Tokenizer(pretrained.tokenizer(row, "")) if spec.kind == "text" else None
    own = weights or name, module, arrays["params"], arrays.get("batch_stats", {}), arrays.get(HEAD)
    return Encoder(*own, row.classes, preprocessing, row.licence, spec, task, tokenizer)


def _input_spec(row: Pretrained, image_size: int, channels: int, max_tokens: int) -> InputSpec:
    kind, preprocessing = pretrained.reads(row), row.preprocessing
    if kind == "image":
        preprocessing = dataclasses.replace(preprocessing, size=image_size or preprocessing.size)
        preprocessing = with_channels(preprocessing, channels or preprocessing.inputs)
    elif image_size or channels:
        raise InputError(f"{row.uri or row.backbone} reads texts, which have no image_size and no channels")
    else:
        check_length(row, max_tokens)
    return input_spec(kind, preprocessing, max_tokens)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Encoder:
    """A pretrained encoder.

    Attributes:
        name: its weights'.
        module: the Linen network, a `Backbone`.
        params: its parameters, group -> nested dict of float32 arrays.
        batch_stats: the stored statistics of its BatchNorms; empty without any.
        head: `kernel` [features, classes] and `bias` of the checkpoint's own head; None where it has none.
        classes: names of what that head tells apart; empty where the checkpoint does not say.
        preprocessing: how `prepare` treats images, and `apply` normalizes them.
        licence: of the weights, an SPDX identifier.
        spec: what it reads.
        task: how many tokens a text may have.
        tokenizer: of an encoder of texts; else None.
    """

    name: str
    module: Backbone
    params: Mapping[str, Any]
    batch_stats: Mapping[str, Any]
    head: Mapping[str, Any] | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    licence: str
    spec: InputSpec
    task: TaskConfig
    tokenizer: Tokenizer | None

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of its groups of layers, from the input to the output; `params` has them as keys."""
        return self.module.groups

    @property
    def feature_dim(self) -> int:
        """The width of its features."""
        return self.module.feature_dim

    def apply(self, params: Mapping[str, Any], x: Any, *, pool: bool = True) -> Float[Array, "batch ..."]:
        """Returns features [batch, feature_dim]: a pure function, to be jitted, differentiated, vmapped or sharded.

        BatchNorms use their stored statistics. Derivatives are of reverse mode (`jax.grad`, `jax.vjp`): products have
        a backward pass of their own.

        Args:
            params: as `self.params`.
            x: what `prepare` gave: images in grey levels [batch, size, size, channels], which are normalized here; or
                a dict of `input_ids`, `attention_mask` and `token_type_ids`.
            pool: False for what the last group gives: tokens [batch, tokens, width], or a map [batch, height, width,
                channels].
        """
        variables = {"params": params} | ({"batch_stats": self.batch_stats} if self.batch_stats else {})
        outputs = self.module.apply(variables, self.spec.to_network(jax.tree.map(jnp.asarray, x), _FLOAT32), pool=pool)
        return outputs["hidden"] if isinstance(outputs, dict) else outputs

    def prepare(self, inputs: Iterable[Any]) -> Any:
        """Returns images or texts as `apply` takes them, each as in evaluation.

        Args:
            inputs: images (paths, PIL images, uint8 [height, width, channels] of any sizes), or texts (a pair is a
                tuple of two).

        Raises:
            InputError: one of them cannot be read; its place is named.
        """
        examples = [self.spec.prepare(value, name_of(value, place)) for place, value in enumerate(listed(inputs))]
        return self.spec.batch(examples, self.task, self.tokenizer)

    def features(self, inputs: Iterable[Any], batch_size: int = 64) -> Float[np.ndarray, "n features"]:
        """Returns the pooled features of images or texts.

        Args:
            inputs: as `prepare` takes them, as many as you like.
            batch_size: how many are computed at once.
        """
        return self._computed(inputs, batch_size, pool=True)

    def tokens(self, inputs: Iterable[Any], batch_size: int = 64) -> Float[np.ndarray, "n ..."]:
        """Returns what the last group gives: tokens [n, tokens, width], or a map [n, height, width, channels].

        Of texts, tokens after the end of a text are zeros.

        Args:
            inputs: as `prepare` takes them.
            batch_size: how many are computed at once.
        """
        return self._computed(inputs, batch_size, pool=False)

    def logits(self, inputs: Iterable[Any], batch_size: int = 64) -> Float[np.ndarray, "n classes"]:
        """Returns the logits of the checkpoint's own head, of `self.classes`.

        Args:
            inputs: as `prepare` takes them.
            batch_size: how many are computed at once.

        Raises:
            InputError: the checkpoint has none, or none that reads these features.
        """
        if self.head is None:
            raise InputError(f"{self.name} has no head of its own: give with_head(classes), or take its features")
        return self.features(inputs, batch_size) @ self.head["kernel"] + self.head.get("bias", 0)

    def with_head(
        self, classes: int, *, init: str = "zeros", strategy: str = "full", seed: int = 0, **arguments: Any
    ) -> "Classified":
        """Returns the encoder with a new linear head, and what a strategy adds (LoRA's matrices), to be trained.

        Args:
            classes: outputs of the head.
            init: of its kernel, `zeros` or `truncated_normal`.
            strategy: a name, or `module:name`, as `config.tuning.strategy`.
            seed: of what is new.
            arguments: of the strategy, as keys under `config.tuning`.

        Raises:
            InputError: no such strategy, or it does not suit the network.
        """
        tuning = TuningConfig.from_section({"strategy": strategy, **arguments}, "tuning")
        model = Classifier(self.module, classes, init, adapters=adapters(tuning))
        fresh = model.init(jax.random.key(seed), self.spec.example())["params"]
        params = unflatten_dict(flatten_dict(fresh) | flatten_dict({"backbone": self.params}))
        layout = Layout.from_params(params, self.groups, self.module.pooled_norm)
        multipliers = multiplier_tree(tuning.strategy, tuning.arguments, layout, tuning.group_rates)
        return Classified(self, model, params, layout, multipliers)

    def _computed(self, inputs: Iterable[Any], batch_size: int, pool: bool) -> np.ndarray:
        outputs: list[np.ndarray] = []
        for chunk in chunks(listed(inputs), batch_size):
            first = len(outputs) * batch_size
            examples = [self.spec.prepare(value, name_of(value, first + i)) for i, value in enumerate(chunk)]
            batch = self.spec.batch(examples, self.task, self.tokenizer)
            size = batch_size if outputs else 2 ** math.ceil(math.log2(len(chunk)))  # few programs for any number
            outputs.append(np.asarray(self._program(self.params, padded(batch, size), pool=pool))[: len(chunk)])
        if not outputs:
            raise InputError(f"{self.name}: no inputs")
        return np.concatenate(_same_length(outputs))

    @functools.cached_property
    def _program(self) -> Any:
        return jax.jit(self.apply, static_argnames="pool")

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        reads = f"images at {self.preprocessing.size} px" if self.tokenizer is None else "texts"
        return (
            f"Encoder({self.name}: {reads} -> {self.feature_dim} features, {count / 1e6:.1f} M parameters in"
            f" {len(self.groups)} groups, {self.licence})"
        )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Classified:
    """An encoder with a head, for a training loop of your own.

    Attributes:
        encoder: without the head.
        module: the Linen network of both.
        params: `backbone` and `head`.
        layout: the parameters' names and groups.
        multipliers: of the strategy, a learning-rate multiplier for each leaf of `params`; 0 is frozen.
    """

    encoder: Encoder
    module: Classifier
    params: Mapping[str, Any]
    layout: Layout
    multipliers: Tree

    def apply(self, params: Mapping[str, Any], x: Any) -> Float[Array, "batch classes"]:
        """Returns logits in float32: a pure function; BatchNorms use their stored statistics.

        Args:
            params: as `self.params`.
            x: what `Encoder.prepare`, or a batch's `input`, gives.
        """
        stats = self.encoder.batch_stats
        variables = {"params": params} | ({"batch_stats": {"backbone": stats}} if stats else {})
        return self.module.apply(variables, self.encoder.spec.to_network(jax.tree.map(jnp.asarray, x), _FLOAT32))

    def __repr__(self) -> str:
        return f"Classified({self.encoder!r}, {self.module.classes} classes)"


def _same_length(outputs: list[np.ndarray]) -> list[np.ndarray]:
    """Returns batches of texts of different lengths filled up to the longest; others as they are."""
    longest = max(output.shape[1] for output in outputs)
    if outputs[0].ndim == 2 or all(output.shape[1] == longest for output in outputs):
        return outputs
    return [np.pad(output, [(0, 0), (0, longest - output.shape[1]), (0, 0)]) for output in outputs]
