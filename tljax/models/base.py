"""The protocol of a backbone: what a network of yours, or one of ours, tells the rest of the program of itself.

    class SmallConvNet(Backbone):
        width: int = 16
        groups = ("stem", "block_0")

        @property
        def feature_dim(self):
            return self.width

        def setup(self):
            self.stem, self.block_0 = nn.Conv(self.width, (3, 3)), nn.Conv(self.width, (3, 3))

`--config.backbone.name=my_networks:SmallConvNet` trains it. That much is needed; all else has a default, or is named by
the feature that asks for it when it is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.errors import InputError
from tljax.models.remat import run_group


@dataclass(frozen=True)
class BackboneInput:
    """The inputs that a backbone takes.

    Attributes:
        kind: `image` ([batch, size, size, channels], normalized), `text` (a dict of `input_ids`, `attention_mask` and
            `token_type_ids`, each [batch, tokens]) or `features` ([batch, width]).
        size: pixels of an image (down, across); None where the network takes images of any size.
        channels: of an image.
        max_tokens: of a text; None where it may have any number.
        width: of features.
    """

    kind: Literal["image", "text", "features"]
    size: tuple[int, int] | None = None
    channels: int = 3
    max_tokens: int | None = None
    width: int = 0

    def abstract(self, channels: int | None = None) -> Any:
        """Returns shapes and dtypes of a batch of one example, from which the parameters' shapes follow.

        Args:
            channels: of an image, where it has others than the spec's.
        """
        if self.kind == "text":
            tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
            return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), tokens)
        if self.kind == "features":
            return jax.ShapeDtypeStruct((1, self.width), jnp.float32)
        channels = self.channels if channels is None else channels
        return jax.ShapeDtypeStruct((1, *(self.size or _ANY_SIZE), channels), jnp.float32)


_ANY_SIZE = 64, 64  # of an image for a network that takes all sizes: the parameters' shapes do not depend on it


class Backbone(nn.Module):
    """A network from a batch of inputs to features [batch, feature_dim], in ordered groups of layers.

    Without a default: `groups`, `feature_dim`, and a layer for each group. `residual_branches`, `adapter_targets`,
    `mlp_branches` and `prompt_width` are asked for by the strategies that need them, and `weight_mappings` by files of
    weights. Attributes must be hashable: tuples, not lists.
    """

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups in order; the parameters of each live under its name, `params/<group>/…`.

        Blocks, of which strategies count, are called `block_0`, `block_1` …; no group is called `head`.
        """
        self._lacks("groups", "the ordered names of its layers, as ('stem', 'block_0', 'norm')")

    @property
    def feature_dim(self) -> int:
        """The width of the features that a head reads."""
        self._lacks("feature_dim", "the width of its features, which a head reads")

    @property
    def input_spec(self) -> BackboneInput:
        """The inputs that it takes; by default color images of any size."""
        return BackboneInput("image")

    def resized(self, image_size: int) -> "Backbone":
        """Returns the network for square images of another size; by default itself, if it takes them.

        Raises:
            InputError: it takes no such images.
        """
        size = self.input_spec.size
        if size not in (None, (image_size, image_size)):
            takes = f"{type(self).__name__} takes images of {size[0]} x {size[1]} pixels and has no `resized`"
            raise InputError(f"{takes} for {image_size}: set task.image_size={size[0]}")
        return self

    # Forward pass.

    def layers(self) -> Sequence[Callable[..., Any]]:
        """Returns the module of each group, in order; by default the attributes of `setup` with their names."""
        for group in self.groups:
            if not hasattr(self, group):
                self._lacks(group, "a layer that `setup` makes for this of its groups")
        return [getattr(self, group) for group in self.groups]

    def run_groups(
        self,
        x: Any,
        start: int = 0,
        stop: int | None = None,
        *,
        pools: bool = False,
        batch_norm: Mapping[str, str] = {},
        remat: bool = False,
    ) -> Any:
        """Returns what `groups[start:stop]` make of `x`; by default each layer of what the one before it gave.

        Args:
            x: inputs, or what `groups[:start]` gave; any tree of arrays [batch, …].
            start: the first group to run.
            stop: the group to stop before; the whole network by default.
            pools: whether `pooled` follows, so that what it does not read need not be computed.
            batch_norm: group -> how its BatchNorms work, one of `BATCH_NORM_MODES`; the others are `frozen`.
            remat: whether a backward pass keeps only what groups give, and computes their inside again.
        """
        for layer in self.layers()[start:stop]:
            x = run_group(layer, x, remat=remat)
        return x

    def pooled(self, x: Any) -> Float[Array, "batch features"]:
        """Returns features of what the last group gave; by default its mean over all axes between first and last."""
        return jnp.mean(x, axis=tuple(range(1, x.ndim - 1))) if x.ndim > 2 else x

    def __call__(
        self,
        x: Any,
        *,
        start: int = 0,
        stop: int | None = None,
        pool: bool = True,
        batch_norm: Mapping[str, str] = {},
        remat: bool = False,
    ) -> Any:
        """Runs `groups[start:stop]`, and pools at the end; in two calls, one after the other, as in one.

        Args:
            x: inputs as `input_spec` says, or what `groups[:start]` gave.
            start: the first group to run.
            stop: the group to stop before; the whole network by default.
            pool: whether the end is pooled.
            batch_norm: group -> its mode, one of `BATCH_NORM_MODES`; groups that it does not name are `frozen`. Other
                modes need `mutable=["batch_stats"]`. PyTorch's train mode is `update_stats`, except that it records
                the unbiased variance; this is, as Flax's, the one that normalizes.
            remat: whether a backward pass keeps only what groups give, and computes their inside again.

        Returns:
            Pooled features [batch, feature_dim] at the end; else, and without `pool` there too, what `groups[stop - 1]`
            gave.
        """
        names = self.groups[start:stop]
        if not names:
            return x
        pools = pool and names[-1] == self.groups[-1]
        x = self.run_groups(x, start, stop, pools=pools, batch_norm=batch_norm, remat=remat)
        return self.pooled(x) if pools else x

    # What strategies need.

    @property
    def pooled_norm(self) -> bool:
        """Whether the final norm stands after the pooling, and so with the head."""
        return False

    @property
    def residual_branches(self) -> str:
        """A regex of the modules that end a residual branch, where adapters, dropout and drop_path act."""
        self._lacks("residual_branches", r"a regex of modules that end a residual branch, as r'block_\d+/mlp'")

    @property
    def mlp_branches(self) -> str:
        """A regex of the MLPs beside which AdaptFormer's adapters go; empty for a network without."""
        return ""

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        """Regexes of the layers that LoRA adapts where `tuning.targets` names none."""
        self._lacks("adapter_targets", "regexes of the layers that LoRA adapts; or give tuning.targets")

    @property
    def standardizes_weights(self) -> bool:
        """Whether it standardizes its kernels (1903.10520), into which LoRA could then not be merged."""
        return False

    @property
    def prompt_width(self) -> int:
        """The width of the tokens between its blocks, among which prompts go; 0 for a network without tokens.

        They are [batch, tokens, width], or a dict of that, `hidden`, and `attention_mask`, which a block may be given
        more with; prompts follow the first.
        """
        return 0

    @property
    def prompt_init(self) -> Callable[[jax.Array, tuple[int, ...]], jax.Array]:
        """The initializer of prompts, normal with a standard deviation of 0.02 unless a paper says otherwise."""
        return nn.initializers.normal(0.02)

    # What pretrained weights need.

    @property
    def weight_mappings(self) -> Mapping[str, Any]:
        """A `tljax.weights.mapping.Table` for each library whose names a file of weights may have."""
        self._lacks("weight_mappings", "tables that convert backbone.weights to its parameters")

    @property
    def pretrained_heads(self) -> tuple[str, ...]:
        """Paths of the heads that its checkpoints may have; a file may lack them."""
        return ("head",)

    @property
    def pools(self) -> Mapping[str, str]:
        """The value of its attribute `pool` for each that `backbone.pool` may have."""
        return {}

    def pool_attributes(self, pool: str) -> dict[str, Any]:
        """Returns the attributes of a network that is to pool by this value of `pool`."""
        return {"pool": pool}

    @property
    def position_grids(self) -> Mapping[str, tuple[int, int]]:
        """Path of each table of position embeddings -> its grid (down, across), resampled for another image size.

        One of [rows, heads] has attention biases of displacements, and the grid is the window.
        """
        return {}

    @property
    def input_kernel(self) -> str:
        """Path of the kernel [down, across, channels, out] that reads the image, for other channels; or empty."""
        return ""

    def trained_by(self, library: str) -> Mapping[str, Any]:
        """Returns the attributes in which the network differs in the code of the library that trained the weights."""
        return {}

    def _lacks(self, member: str, what: str) -> NoReturn:
        raise InputError(f"{type(self).__name__} has no {member} ({what}): see tljax.models.base.Backbone")


def attributes(module: Backbone) -> dict[str, Any]:
    """Returns the fields that a network was built from, without the two that Linen adds."""
    return {name: getattr(module, name) for name in module.__dataclass_fields__ if name not in ("parent", "name")}
