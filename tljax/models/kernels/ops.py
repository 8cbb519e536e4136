"""Arithmetic that XLA does not write well by itself, each with its plain form in `tests/models/test_ops.py`.

A network has an operation many times over; under `jax.jit`, each is traced and differentiated once for a shape.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


def platform() -> str:
    """Returns `cpu`, `gpu` or `tpu` for what is being traced: by it alone, forms for a CPU are chosen or not."""
    return jax.default_backend()


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns exact GELU, x·Φ(x) (1606.08415), through erf: the library's erfc form is slow on a CPU.

    Its own rule keeps `x` alone for the gradient; JAX's keeps Φ(x) too, a second array of the MLP's width.
    """
    return x * _normal_cdf(x)


def _normal_cdf(x):
    return 0.5 + 0.5 * lax.erf(x * 0.7071067811865476)


def _gelu_backward(x, dy):
    density = jnp.exp(-0.5 * x * x) * 0.3989422804014327
    return (dy * (_normal_cdf(x) + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)
gelu = jax.jit(gelu)


@jax.custom_vjp
def matmul(x: Float[Array, "rows inputs"], kernel: Float[Array, "inputs outputs"]) -> Float[Array, "rows outputs"]:
    """Returns `x @ kernel`, with its gradients written so that no operand must be transposed in memory.

    JAX's own gradient in the kernel is the transpose of a product, and XLA's CPU compiler then computes the output's
    gradient a second time to store it transposed.
    """
    return product(x, kernel, 1, 0)


def product(a: Float[Array, "_ _"], b: Float[Array, "_ _"], axis_a: int, axis_b: int) -> Float[Array, "rows columns"]:
    """Returns the product of `a` and `b` over `axis_a` and `axis_b`, rounded to their dtype once, at its end."""
    # Asked for bfloat16, a CPU computes in float32 after converting both operands: twice the time of this.
    exact = jnp.promote_types(a.dtype, jnp.float32)
    dimensions = ((axis_a,), (axis_b,)), ((), ())
    return lax.dot_general(a, b, dimensions, preferred_element_type=exact).astype(a.dtype)


def _matmul_forward(x, kernel):
    return matmul(x, kernel), (x, kernel)


def _matmul_backward(kept, dy):
    x, kernel = kept
    return product(dy, kernel, 1, 1), product(x, dy, 0, 0)


matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def unrounded_matmul(
    x: Float[Array, "rows inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "rows outputs"]:
    """Returns `x @ kernel` in float32 where the operands are bfloat16; the gradients' products are of bfloat16s."""
    return lax.dot_general(x, kernel, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _unrounded_matmul_backward(kept, dy):
    return _matmul_backward(kept, dy.astype(kept[0].dtype))


unrounded_matmul.defvjp(lambda x, kernel: (unrounded_matmul(x, kernel), (x, kernel)), _unrounded_matmul_backward)


@jax.jit
def linear(
    x: Float[Array, "*batch inputs"],
    kernel: Float[Array, "inputs outputs"],
    bias: Float[Array, " outputs"] | None = None,
) -> Float[Array, "*batch outputs"]:
    """Returns `x @ kernel + bias`, by way of a flattened 2-D `x`, which the CPU's matrix product is fast on."""
    flat = matmul(x.reshape(-1, x.shape[-1]), kernel)
    if bias is not None:
        flat = flat + bias
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*batch width"], scale: Float[Array, " width"], bias: Float[Array, " width"], eps: float
) -> Float[Array, "*batch width"]:
    """Normalizes the last axis (1607.06450); statistics are float32 whatever `x` is.

    Its own rule keeps `x` and two numbers of each row, where JAX's keeps their product with `scale`, spread over `x`.

    Args:
        x: any array.
        scale, bias: of the normalized `x`.
        eps: added to the variance.
    """
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x, scale, bias, eps):
    exact = x.astype(jnp.float32)
    mean = jnp.mean(exact, -1, keepdims=True)
    variance = jnp.maximum(jnp.mean(jnp.square(exact), -1, keepdims=True) - jnp.square(mean), 0)
    inverse = lax.rsqrt(variance + eps)
    return ((exact - mean) * inverse * scale + bias).astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(eps, kept, dy):
    x, mean, inverse, scale = kept
    rows, dy = tuple(range(x.ndim - 1)), dy.astype(jnp.float32)
    normalized = (x.astype(jnp.float32) - mean) * inverse
    scaled = dy * scale
    along = jnp.mean(scaled * normalized, -1, keepdims=True)
    dx = inverse * (scaled - jnp.mean(scaled, -1, keepdims=True) - normalized * along)
    dscale, dbias = jnp.sum(dy * normalized, rows), jnp.sum(dy, rows)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
layer_norm = jax.jit(layer_norm, static_argnums=3)


def attention(
    q: Float[Array, "batch heads queries depth"],
    k: Float[Array, "batch heads keys depth"],
    v: Float[Array, "batch heads keys depth"],
    mask: Bool[Array, "batch keys"] | Bool[Array, "batch 1 queries keys"] | None = None,
    bias: Float[Array, "*batch heads queries keys"] | None = None,
) -> Float[Array, "batch heads queries depth"]:
    """Returns scaled dot-product attention (1706.03762).

    Args:
        q, k, v: queries, keys and values, by head.
        mask: true at keys to attend to, of a text or of each query; where it names none, and without it, all are.
        bias: added to the scores, which are scaled.
    """
    if bias is not None or (mask is not None and mask.ndim == 4):
        return _plain_attention(q, k, v, mask, bias)
    if platform() == "gpu":
        return _gpu_attention(q, k, v, mask)
    return _attended(q * q.shape[-1] ** -0.5, k, v, mask)


def _plain_attention(q, k, v, mask, bias):
    """Attention as it is written, with JAX's own gradient."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    scores = scores if bias is None else scores + bias
    if mask is not None:
        scores = jnp.where(mask if mask.ndim == 4 else mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def _gpu_attention(q, k, v, mask):
    """Calls cuDNN's fused kernel, which keeps the scores out of memory, where it takes `q`; else as XLA writes it."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    if _has_kernel(q):
        return _cudnn_attention(q, k, v, mask).transpose(0, 2, 1, 3)
    seen = None if mask is None else mask[:, None, None]
    return jax.nn.dot_product_attention(q, k, v, mask=seen).transpose(0, 2, 1, 3)


def _cudnn_attention(q, k, v, mask):
    """Calls the kernel with one more token, not attended to, where their number is odd, which it does not take."""
    queries, keys = q.shape[1], k.shape[1]
    if mask is not None:
        # Of padding through and through: the kernel's own weights would sum to more than 1 in the gradient.
        has_tokens = jnp.any(mask, axis=1, keepdims=True)
        q, mask = jnp.where(has_tokens[..., None, None], q, 0), mask | ~has_tokens
    elif keys % 2:
        mask = jnp.ones((1, keys), bool)
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, keys % 2)))[:, None, None]
        mask = jnp.broadcast_to(mask, (len(mask), 1, q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")[:, :queries]


def _has_kernel(q: Float[Array, "batch queries heads depth"]) -> bool:
    """Tells whether cuDNN's attention takes such queries: of 16 bits, on an Ampere (capability 8.0) or later."""
    depth, (major, *_) = q.shape[3], str(getattr(jax.local_devices()[0], "compute_capability", "0")).split(".")
    return major.isdecimal() and int(major) >= 8 and q.dtype.itemsize == 2 and depth % 8 == 0 and depth <= 128


@jax.custom_vjp
def _attended(q, k, v, mask):
    """Attention of scaled queries, divided by the softmax's sum after the product and not before.

    The array of all scores, the largest of a transformer on a CPU, is so passed over once less; and once less in the
    gradient, where the sum over keys of a weight times its gradient is that of y·dy over the depth (2205.14135).
    """
    return _attended_forward(q, k, v, mask)[0]


def _attended_forward(q, k, v, mask):
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k)
    if mask is not None:
        # Not -inf, which would make a row that is padding through and through NaN.
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = jnp.einsum("bhqk,bhkd->bhqd", weights, v) / total
    return y, (q, k, v, mask, weights, total, y)


def _attended_backward(kept, dy):
    q, k, v, mask, weights, total, y = kept
    dy = dy / total
    dscores = weights * (jnp.einsum("bhqd,bhkd->bhqk", dy, v) - jnp.sum(dy * y, axis=-1, keepdims=True))
    if mask is not None:
        dscores = jnp.where(mask[:, None, None], dscores, 0)
    dq, dk = jnp.einsum("bhqk,bhkd->bhqd", dscores, k), jnp.einsum("bhqk,bhqd->bhkd", dscores, q)
    return dq, dk, jnp.einsum("bhqk,bhqd->bhkd", weights, dy), None


_attended.defvjp(_attended_forward, _attended_backward)
_attended = jax.jit(_attended)
