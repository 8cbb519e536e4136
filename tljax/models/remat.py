"""How a backbone runs one of its groups."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import flax.linen as nn
import jax

_by_itself = ContextVar("by_itself", default=False)


@contextlib.contextmanager
def each_by_itself() -> Iterator[None]:
    """Has every group be traced by itself: for where a module's path decides what it computes."""
    before = _by_itself.set(True)
    try:
        yield
    finally:
        _by_itself.reset(before)


def run(layer: nn.Module, x: Any, *rest: Any, remat: bool) -> Any:
    """`layer(x, *rest)`; with `remat`, the backward pass keeps `x` alone and computes the inside again (1604.06174).

    Each group is a `jax.checkpoint` of its own, so that one is recomputed as its gradient is due. One around the whole
    forward pass, with a policy that saves what groups give, saves nothing: XLA recomputes all of them at once. XLA's
    CPU compiler takes the barriers away that hold the recomputation back, unless it is told `compiled.KEEP_BARRIERS`.
    """
    if not remat:
        return _called(layer, x, *rest)
    return nn.remat(lambda layer, x: _called(layer, x, *rest))(layer, x)


def _called(layer: nn.Module, x: Any, *rest: Any) -> Any:
    """Where a program is made, of groups that are alike, as a transformer's blocks are, one is traced for all."""
    made = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(x))
    if _by_itself.get() or not made or layer.is_initializing() or set(layer.variables) != {"params"}:
        return layer(x, *rest)
    return _traced_once(layer.clone(name=None, parent=None), layer.variables, x, rest)


@partial(jax.jit, static_argnums=(0, 3))
def _traced_once(layer, variables, x, rest):
    return layer.apply(variables, x, *rest)
