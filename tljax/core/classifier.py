"""A backbone with a head on its pooled features, and with what a strategy adds."""

from collections.abc import Collection, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tljax.models.base import Backbone
from tljax.models.kernels import ops
from tljax.peft.config import AdapterConfig, MlpHead
from tljax.peft.interceptors import apply_adapters, drop

HEAD_INITS = {"zeros": nn.initializers.zeros, "truncated_normal": nn.initializers.truncated_normal(0.02)}


def _dot_general(x, kernel, dimensions, precision=None):
    """Returns the product of a layer that gives logits, in float32, also of operands in bfloat16."""
    if x.dtype == jnp.float32:
        return jax.lax.dot_general(x, kernel, dimensions, precision=precision)
    return ops.unrounded_matmul(x, kernel)


class _TwoLayers(nn.Module):
    hidden: int
    classes: int
    bias: bool
    head_init: str

    @nn.compact
    def __call__(self, x):
        x = ops.gelu(nn.Dense(self.hidden, name="hidden")(x))
        initial = HEAD_INITS[self.head_init]
        return nn.Dense(self.classes, self.bias, kernel_init=initial, dot_general=_dot_general, name="out")(x)


class Classifier(nn.Module):
    """A backbone and a head on its features, `head(backbone(x))`.

    Attributes:
        backbone: a network that ends in pooled features.
        classes: the number of classes.
        head_init: a name in `HEAD_INITS`: how a new head, or its last layer, starts.
        bias: whether that layer has one.
        adapters: what the backbone, or the head, has besides its own layers.
        dropout: the rate at which branch ends and pooled features are silenced; see `apply_adapters`.
        drop_path: the rate of stochastic depth in the last block.
    """

    backbone: Backbone
    classes: int
    head_init: str = "zeros"
    bias: bool = True
    adapters: tuple[AdapterConfig, ...] = ()
    dropout: float = 0.0
    drop_path: float = 0.0

    def setup(self):
        """Makes the head."""
        hidden = [adapter.hidden for adapter in self.adapters if isinstance(adapter, MlpHead)]
        if hidden:
            self.head = _TwoLayers(hidden[0], self.classes, self.bias, self.head_init)
        else:
            initial = HEAD_INITS[self.head_init]
            self.head = nn.Dense(self.classes, self.bias, kernel_init=initial, dot_general=_dot_general)

    def __call__(
        self,
        x: Float[Array, "batch ..."] | Mapping[str, Array],
        *,
        start: int = 0,
        batch_norm: Mapping[str, str] = {},
        noisy: Collection[str] = (),
        remat: bool = False,
    ) -> Float[Array, "batch classes"]:
        """Returns logits, in float32.

        Args:
            x: what `Backbone.input_spec` says, images normalized; or what `features` gave at `start`.
            start: how many of the backbone's groups it has behind it.
            batch_norm, remat: as in `Backbone.__call__`.
            noisy: groups, and `head`, in which dropout, LoRA's dropout and stochastic depth act; the others compute
                what they compute in evaluation, to the bit. Needs `rngs={"dropout": key}`.

        Raises:
            InputError: the backbone cannot take an adapter; see `apply_adapters`.
        """
        rates = {"dropout": self.dropout, "drop_path": self.drop_path}
        with apply_adapters(self.backbone, self.adapters, whole=not start, noisy=noisy, **rates):
            x = self.backbone(x, start=start, batch_norm=batch_norm, remat=remat)
        if "head" in noisy and self.dropout:
            x = drop(self.make_rng("dropout"), x, self.dropout)
        return self.head(x)

    def features(
        self, x: Float[Array, "batch height width channels"] | Mapping[str, Array], stops: Sequence[int]
    ) -> list:
        """Returns what the backbone gives in evaluation after as many groups as each of the rising `stops` says.

        Each is what `__call__` takes at that `start`; after all groups, the pooled features [batch, feature_dim].
        """
        outputs = []
        with apply_adapters(self.backbone, self.adapters, whole=False):
            for start, stop in zip((0, *stops), stops, strict=False):
                x = self.backbone(x, start=start, stop=stop)
                outputs.append(x)
        return outputs


class _Features(Backbone):
    """A stand-in for a backbone, whose input is features."""

    @nn.compact
    def __call__(self, x, start, batch_norm, remat):
        return x


def init_head(
    seed: int, features: int, classes: int, head_init: str = "zeros", bias: bool = True
) -> dict[str, Float[Array, "..."]]:
    """Returns the `kernel` [features, classes] and `bias` of a linear head as `Classifier` starts it on any backbone.

    Args:
        seed: of the initialization.
        features: the backbone's `feature_dim`.
        classes: the number of classes.
        head_init: a name in `HEAD_INITS`.
        bias: whether it has a bias.
    """
    model = Classifier(_Features(), classes, head_init, bias)
    return model.init(jax.random.key(seed), jnp.zeros((1, features)))["params"]["head"]
