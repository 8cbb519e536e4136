"""A backbone of your own, which reads weights under names of your own: a stem and residual blocks of convolutions.

--config.backbone.name=my_backbone:SmallConvNet --config.backbone.weights=weights.safetensors
"""

import flax.linen as nn

from tljax import Backbone
from tljax.weights.mapping import CONV, ParamMapping, Table


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return x + nn.relu(nn.Conv(self.width, (3, 3), name="conv")(x))


class SmallConvNet(Backbone):
    width: int = 8

    groups = ("stem", "block_0", "block_1")
    residual_branches = r"block_\d+/conv"

    @property
    def feature_dim(self):
        return self.width

    def setup(self):
        self.stem = nn.Conv(self.width, (4, 4), strides=(4, 4))
        self.block_0, self.block_1 = Block(self.width), Block(self.width)

    @property
    def weight_mappings(self):
        names = {"embed": "stem", "body.0": "block_0/conv", "body.1": "block_1/conv"}
        kernels = [ParamMapping(f"{name}.weight", f"params/{path}/kernel", CONV) for name, path in names.items()]
        biases = [ParamMapping(f"{name}.bias", f"params/{path}/bias") for name, path in names.items()]
        return {"my_library": Table((*kernels, *biases))}
