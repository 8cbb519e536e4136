"""How a backbone runs one of its groups."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import flax.linen as nn
import jax

_traces_each = ContextVar("traces_each", default=False)


@contextlib.contextmanager
def trace_each_group() -> Iterator[None]:
    """Traces every group by itself inside, alike or not: for where a module's path decides what it computes."""
    before = _traces_each.set(True)
    try:
        yield
    finally:
        _traces_each.reset(before)


def run_group(layer: nn.Module, x: Any, *rest: Any, remat: bool) -> Any:
    """Returns `layer(x, *rest)`; with `remat`, its backward pass keeps `x` alone and computes the inside again.

    That is gradient checkpointing (1604.06174).

    Each group is a `jax.checkpoint` of its own, so that one is recomputed as its gradient is due. One around the whole
    forward pass, with a policy that saves what groups give, saves nothing: XLA recomputes all of them at once. XLA's
    CPU compiler takes away the barriers that hold the recomputation back, unless `compilation_cache.KEEP_BARRIERS`.

    Args:
        layer: the group.
        x: what the group before it gave, a tree of arrays.
        rest: its other arguments, hashable.
        remat: whether to compute the inside again.
    """
    if not remat:
        return _called(layer, x, *rest)
    return nn.remat(lambda layer, x: _called(layer, x, *rest))(layer, x)


def _called(layer: nn.Module, x: Any, *rest: Any) -> Any:
    """Calls a group; while tracing, groups that are alike, as a transformer's blocks are, are traced once for all."""
    is_tracing = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(x))
    if _traces_each.get() or not is_tracing or layer.is_initializing() or set(layer.variables) != {"params"}:
        return layer(x, *rest)
    return _traced_once(layer.clone(name=None, parent=None), layer.variables, x, rest)


@partial(jax.jit, static_argnums=(0, 3))
def _traced_once(layer, variables, x, rest):
    return layer.apply(variables, x, *rest)
