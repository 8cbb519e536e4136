"""Arithmetic that XLA does not write well by itself, each with its plain form in `tests/models/test_ops.py`."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: of what is being traced. The one place where the forms for a CPU are chosen or not."""
    return jax.default_backend()


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact GELU, x·Φ(x) (1606.08415), through erf: the library's erfc form is slow on a CPU.

    Its own rule keeps `x` alone for the gradient; JAX's keeps Φ(x) too, a second array of the MLP's width.
    """
    return x * _normal_cdf(x)


def _normal_cdf(x):
    return 0.5 + 0.5 * lax.erf(x * 0.7071067811865476)


def _gelu_backward(x, dy):
    density = jnp.exp(-0.5 * x * x) * 0.3989422804014327
    return (dy * (_normal_cdf(x) + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def softmax(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Softmax over the last axis. Its own rule keeps the result alone for the gradient; JAX's, the exponentials too."""
    exponentials = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
    return exponentials / jnp.sum(exponentials, axis=-1, keepdims=True)


def _softmax_forward(x):
    y = softmax(x)
    return y, y


def _softmax_backward(y, dy):
    return (y * (dy - jnp.sum(dy * y, axis=-1, keepdims=True)),)


softmax.defvjp(_softmax_forward, _softmax_backward)


@jax.custom_vjp
def matmul(x: Float[Array, "rows inputs"], kernel: Float[Array, "inputs outputs"]) -> Float[Array, "rows outputs"]:
    """`x @ kernel`, with its gradients written so that no operand must be transposed in memory.

    JAX's own gradient in the kernel is the transpose of a product, and XLA's CPU compiler then computes the output's
    gradient a second time to store it transposed.
    """
    return _product(x, kernel, 1, 0)


def _product(a, b, axis_a, axis_b):
    """The product over these axes, rounded to the operands' own dtype once, at its end."""
    # Asked for bfloat16, a CPU computes in float32 after converting both operands: twice the time of this.
    exact = jnp.promote_types(a.dtype, jnp.float32)
    dimensions = ((axis_a,), (axis_b,)), ((), ())
    return lax.dot_general(a, b, dimensions, preferred_element_type=exact).astype(a.dtype)


def _matmul_forward(x, kernel):
    return matmul(x, kernel), (x, kernel)


def _matmul_backward(kept, dy):
    x, kernel = kept
    return _product(dy, kernel, 1, 1), _product(x, dy, 0, 0)


matmul.defvjp(_matmul_forward, _matmul_backward)


def linear(
    x: Float[Array, "*batch inputs"],
    kernel: Float[Array, "inputs outputs"],
    bias: Float[Array, " outputs"] | None = None,
) -> Float[Array, "*batch outputs"]:
    """`x @ kernel + bias` on a flattened 2-D operand, which the CPU's matrix product wants."""
    flat = matmul(x.reshape(-1, x.shape[-1]), kernel)
    if bias is not None:
        flat = flat + bias
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def attention(
    q: Float[Array, "batch heads queries depth"],
    k: Float[Array, "batch heads keys depth"],
    v: Float[Array, "batch heads keys depth"],
    mask: Bool[Array, "batch keys"] | None = None,
) -> Float[Array, "batch heads queries depth"]:
    """Scaled dot-product attention (1706.03762) to the keys that `mask` names; to all if it names none, or is None."""
    if platform() == "gpu":  # where one fused kernel keeps the scores out of memory
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        seen = None if mask is None else mask[:, None, None]
        return jax.nn.dot_product_attention(q, k, v, mask=seen).transpose(0, 2, 1, 3)
    q = q * q.shape[-1] ** -0.5
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k)
    if mask is not None:
        # Not -inf, which would make a row that is padding through and through NaN.
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bhqk,bhkd->bhqd", softmax(scores), v)
