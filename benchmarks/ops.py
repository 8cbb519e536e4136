"""What each form in `tljax.models.ops` gains over the plain one, value and gradient, on this machine.

    .venv/bin/python benchmarks/ops.py

The two forms run in turn, A B A B; a row gives the medians and their ratio.
"""

import functools
import time
from collections.abc import Callable
from statistics import median

import jax
import jax.numpy as jnp
from jax import lax

from tljax import console
from tljax.models import BACKBONES, ops

ROUNDS = 7


def plain_conv(x, kernel, stride=1, padding=((0, 0), (0, 0))):
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_linear(x, kernel, bias):
    return x @ kernel + bias


def plain_gelu(x):
    return jax.nn.gelu(x, approximate=False)


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape) * 0.05


def with_gradient(function: Callable, *arguments: jax.Array) -> Callable[[], None]:
    """A call that computes the function and its gradient in every argument, compiled and warm."""
    program = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(function(*a))), range(len(arguments))))
    program = program.lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def resnet50(conv: Callable) -> Callable[[], None]:
    """Value and gradient of a ResNet-50's features at 112 px, batch 16, with `conv` for every convolution."""
    model, image = BACKBONES["resnet50"], normal(16, 112, 112, 3)
    ours, ops.conv = ops.conv, conv
    try:
        params = jax.jit(model.init)(jax.random.key(0), image[:1])["params"]
        stats = jax.jit(model.init)(jax.random.key(0), image[:1])["batch_stats"]
        loss = lambda p: jnp.sum(model.apply({"params": p, "batch_stats": stats}, image))  # noqa: E731
        program = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    finally:
        ops.conv = ours
    return lambda: jax.block_until_ready(program(params))


def compare(plain: Callable[[], None], ours: Callable[[], None]) -> tuple[float, float]:
    """Median seconds of each, run in turn."""
    seconds: dict[Callable, list[float]] = {plain: [], ours: []}
    for _ in range(ROUNDS):
        for call, found in seconds.items():
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return median(seconds[plain][1:]), median(seconds[ours][1:])


def main() -> None:
    same = ((1, 1), (1, 1))
    small = functools.partial(ops.conv, padding=same), functools.partial(plain_conv, padding=same)
    cases = {
        "conv 1×1, 28×28×512 → 128": (ops.conv, plain_conv, normal(16, 28, 28, 512), normal(1, 1, 512, 128)),
        "conv 3×3, 2×2×256": (*small, normal(64, 2, 2, 256), normal(3, 3, 256, 256)),
        "conv 3×3, 4×4×128": (*small, normal(64, 4, 4, 128), normal(3, 3, 128, 128)),
        "linear, 8×197×384 → 1536": (ops.linear, plain_linear, normal(8, 197, 384), normal(384, 1536), normal(1536)),
        "GELU, 8×197×1536": (ops.gelu, plain_gelu, normal(8, 197, 1536)),
    }
    pairs = {
        name: (with_gradient(plain, *arrays), with_gradient(ours, *arrays))
        for name, (ours, plain, *arrays) in cases.items()
    }
    pairs["ResNet-50, 112 px, batch 16, whole"] = resnet50(plain_conv), resnet50(ops.conv)
    rows = []
    for name, (plain, ours) in pairs.items():
        a, b = compare(plain, ours)
        rows.append((name, f"{a * 1e3:.1f}", f"{b * 1e3:.1f}", f"{a / b:.2f}"))
    console.table(f"value and gradient, {jax.default_backend()}", ("", "plain, ms", "ours, ms", "plain ÷ ours"), rows)


if __name__ == "__main__":
    main()
