"""FLOPs of a traced function, before any compiler has seen it: of its products and convolutions, on any platform.

    flops.count(jax.jit(f).trace(*arguments).jaxpr)

JAX's own `Lowered.cost_analysis` is there on a CPU alone. What is element by element is left out: some per cent of a
network, and what compilers fuse away.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var


def count(traced: ClosedJaxpr) -> float:
    """Returns the FLOPs that the results need; the body of a loop as often as it runs, of branches the dearest."""
    return _count(traced.jaxpr, [True] * len(traced.jaxpr.outvars))[0]


def _count(jaxpr: Jaxpr, needed: Sequence[bool]) -> tuple[float, list[bool]]:
    """Returns the FLOPs of the results that are needed, and which arguments they need."""
    live = {var for var, need in zip(jaxpr.outvars, needed, strict=True) if need and isinstance(var, Var)}
    total = 0.0
    for equation in reversed(jaxpr.eqns):
        used = [var in live for var in equation.outvars]
        if any(used):
            own, arguments = _of(equation, used)
            total += own
            live.update(
                var for var, need in zip(equation.invars, arguments, strict=True) if need and isinstance(var, Var)
            )
    return total, [var in live for var in jaxpr.invars]


def _of(equation: JaxprEqn, used: list[bool]) -> tuple[float, list[bool]]:
    everything = [True] * len(equation.invars)
    match equation.primitive.name:
        case "dot_general":
            (axes, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in axes), everything
        case "conv_general_dilated":
            return _convolution(equation), everything
        case "dot_product_attention_fwd_wrapper" | "dot_product_attention_bwd_wrapper" as name:
            # cuDNN's two products; backward the gradients of both, and the scores once more.
            (q, k), products = (var.aval for var in equation.invars[:2]), 2 if "fwd" in name else 5
            return 2.0 * products * q.size * k.shape[1], everything
        case "scan" | "while" | "cond" as name:
            counts = [_count(body, [True] * len(body.outvars))[0] for body in _bodies(equation)]
            return (max(counts) if name == "cond" else sum(counts) * equation.params.get("length", 1)), everything
    total, needed = 0.0, everything
    for body in _bodies(equation):
        one_to_one = len(body.outvars) == len(used) and len(body.invars) == len(everything)
        own, arguments = _count(body, used if one_to_one else [True] * len(body.outvars))
        total += own
        needed = arguments if one_to_one else everything
    return total, needed


def _bodies(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for body in value if isinstance(value, tuple | list) else (value,):
            if isinstance(body, ClosedJaxpr | Jaxpr):
                yield body.jaxpr if isinstance(body, ClosedJaxpr) else body


def _convolution(equation: JaxprEqn) -> float:
    """Returns the FLOPs without products with padding and with the holes of a dilated input, which nobody computes."""
    params, (lhs, rhs) = equation.params, (var.aval.shape for var in equation.invars)
    out, numbers = equation.outvars[0].aval.shape, params["dimension_numbers"]
    places = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    steps = zip(
        params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"], strict=True
    )
    met = 1
    for (at_lhs, at_rhs, at_out), (stride, (low, _), holes, spread) in zip(places, steps, strict=True):
        place = stride * np.arange(out[at_out])[:, None] + spread * np.arange(rhs[at_rhs]) - low
        met *= np.count_nonzero((place >= 0) & (place < holes * lhs[at_lhs]) & (place % holes == 0))
    rows = lhs[numbers.lhs_spec[0]] // params["batch_group_count"]
    return 2.0 * rows * rhs[numbers.rhs_spec[0]] * rhs[numbers.rhs_spec[1]] * int(met)
