"""A backbone with a linear head on its pooled features."""

from collections.abc import Collection

import flax.linen as nn
from jaxtyping import Array, Float


class Classifier(nn.Module):
    """`head(backbone(x))`; the head starts at zero, so that the first prediction is uniform.

    Attributes:
        backbone: a module of `tljax.models` that ends in pooled features.
        classes: the number of classes.
    """

    backbone: nn.Module
    classes: int

    def setup(self):
        self.head = nn.Dense(self.classes, kernel_init=nn.initializers.zeros)

    def __call__(
        self,
        x: Float[Array, "batch height width 3"],
        *,
        train: bool = False,
        frozen: Collection[str] = (),
    ) -> Float[Array, "batch classes"]:
        """Logits from normalised images; `train` and `frozen` as in `ResNet.__call__`."""
        return self.head(self.backbone(x, train=train, frozen=frozen))
