"""How a backbone runs one of its groups."""

from typing import Any

import flax.linen as nn


def run(layer: nn.Module, x: Any, *rest: Any, remat: bool) -> Any:
    """`layer(x, *rest)`; with `remat`, the backward pass keeps `x` alone and computes the inside again (1604.06174).

    Each group is a `jax.checkpoint` of its own, so that one is recomputed as its gradient is due. One around the whole
    forward pass, with a policy that saves what groups give, saves nothing: XLA recomputes all of them at once. XLA's
    CPU compiler takes the barriers away that hold the recomputation back, unless it is compiled with
    `compiler_options={"xla_disable_hlo_passes": "cse_barrier_expander"}`.
    """
    if not remat:
        return layer(x, *rest)
    return nn.remat(lambda layer, x: layer(x, *rest))(layer, x)
