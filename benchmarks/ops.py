"""What each form in `tljax.models.kernels.ops` and `.convolution` gains over the plain one, value and gradient.

    .venv/bin/python benchmarks/ops.py

The two forms run in turn, A B A B; a row gives the medians and their ratio.
"""

import functools
import time
from collections.abc import Callable
from statistics import median

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from tljax import console
from tljax.models.kernels import conv_cpu, ops
from tljax.models.registry import BACKBONES

ROUNDS = 7


def plain_conv(x, kernel, stride=1, padding=((0, 0), (0, 0))):
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_linear(x, kernel, bias):
    return x @ kernel + bias


def plain_gelu(x):
    return jax.nn.gelu(x, approximate=False)


def plain_attention(q, k, v):
    return jax.nn.softmax(q @ k.swapaxes(2, 3) * q.shape[-1] ** -0.5) @ v


def plain_layer_norm(x, scale, bias):
    return nn.LayerNorm(1e-6).apply({"params": {"scale": scale, "bias": bias}}, x)


def layer_norm(x, scale, bias):
    return ops.layer_norm(x, scale, bias, 1e-6)


def plain_max_pool(x):
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def plain_batch_norm(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    variance = jnp.mean(jnp.square(x), axes) - jnp.square(mean)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * scale + bias


def batch_norm(x, scale, bias):
    return conv_cpu.batch_norm(x, scale, bias, 1e-5)[0]


def max_pool(x):
    return conv_cpu.max_pool(x, (1, 1))


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
    ours, conv_cpu.conv = conv_cpu.conv, conv
    try:
        params = jax.jit(model.init)(jax.random.key(0), image[:1])["params"]
        stats = jax.jit(model.init)(jax.random.key(0), image[:1])["batch_stats"]
        loss = lambda p: jnp.sum(model.apply({"params": p, "batch_stats": stats}, image))  # noqa: E731
        program = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    finally:
        conv_cpu.conv = ours
    return lambda: jax.block_until_ready(program(params))


def compare(plain: Callable[[], None], ours: Callable[[], None]) -> tuple[float, float]:
    """Median seconds of each, run in turn."""
    seconds: dict[Callable, list[float]] = {plain: [], ours: []}
    for _ in range(ROUNDS):
        for call, times in seconds.items():
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return median(seconds[plain][1:]), median(seconds[ours][1:])


def main() -> None:
    same = ((1, 1), (1, 1))
    small = functools.partial(conv_cpu.conv, padding=same), functools.partial(plain_conv, padding=same)
    halving = [functools.partial(conv, stride=2, padding=same) for conv in (conv_cpu.conv, plain_conv)]
    cases = {
        "conv 1×1, 28×28×512 → 128": (conv_cpu.conv, plain_conv, normal(16, 28, 28, 512), normal(1, 1, 512, 128)),
        "conv 3×3, 2×2×256": (*small, normal(64, 2, 2, 256), normal(3, 3, 256, 256)),
        "conv 3×3, 4×4×128": (*small, normal(64, 4, 4, 128), normal(3, 3, 128, 128)),
        "linear, 8×197×384 → 1536": (ops.linear, plain_linear, normal(8, 197, 384), normal(384, 1536), normal(1536)),
        "GELU, 8×197×1536": (ops.gelu, plain_gelu, normal(8, 197, 1536)),
        "attention, 8×6×197×64": (ops.attention, plain_attention, *[normal(8, 6, 197, 64)] * 3),
        "LayerNorm, 8×197×384": (layer_norm, plain_layer_norm, normal(8, 197, 384), normal(384), normal(384)),
        "conv 3×3, 14×14×256": (*small, normal(16, 14, 14, 256), normal(3, 3, 256, 256)),
        "conv 3×3 / 2, 56×56×128": (*halving, normal(16, 56, 56, 128), normal(3, 3, 128, 128)),
        "max pool, 112×112×64": (max_pool, plain_max_pool, normal(16, 112, 112, 64)),
        "BatchNorm, 56×56×256": (batch_norm, plain_batch_norm, normal(16, 56, 56, 256), normal(256), normal(256)),
    }
    pairs = {
        name: (with_gradient(plain, *arrays), with_gradient(ours, *arrays))
        for name, (ours, plain, *arrays) in cases.items()
    }
    pairs["ResNet-50, 112 px, batch 16, whole"] = resnet50(plain_conv), resnet50(conv_cpu.conv)
    rows = []
    for name, (plain, ours) in pairs.items():
        a, b = compare(plain, ours)
        rows.append((name, f"{a * 1e3:.1f}", f"{b * 1e3:.1f}", f"{a / b:.2f}"))
    console.table(f"value and gradient, {jax.default_backend()}", ("", "plain, ms", "ours, ms", "plain ÷ ours"), rows)


if __name__ == "__main__":
    main()
