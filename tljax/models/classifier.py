"""A backbone with a linear head on its pooled features."""

from collections.abc import Collection

import flax.linen as nn
from jaxtyping import Array, Float

HEAD_INITS = {"zeros": nn.initializers.zeros, "truncated_normal": nn.initializers.truncated_normal(0.02)}


class Classifier(nn.Module):
    """`head(backbone(x))`.

    Attributes:
        backbone: a module of `tljax.models` that ends in pooled features.
        classes: the number of classes.
        head_init: a name in `HEAD_INITS`: how a new head starts.
        bias: whether the head has one.
    """

    backbone: nn.Module
    classes: int
    head_init: str = "zeros"
    bias: bool = True

    def setup(self):
        self.head = nn.Dense(self.classes, use_bias=self.bias, kernel_init=HEAD_INITS[self.head_init])

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        frozen: Collection[str] = (),
    ) -> Float[Array, "batch classes"]:
        """Logits from normalised images; `train` and `frozen` as in `ResNet.__call__`."""
        return self.head(self.backbone(x, train=train, frozen=frozen))
