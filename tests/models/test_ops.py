"""Each operation against its plain form, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from tljax.models import ops


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same(fast, plain, *operands):
    np.testing.assert_allclose(fast(*operands), plain(*operands), atol=2e-5, rtol=1e-5)
    weights = random(*jax.eval_shape(plain, *operands).shape, seed=9)
    arguments = tuple(range(len(operands)))
    grads = [jax.grad(lambda *o, f=f: jnp.sum(f(*o) * weights), arguments)(*operands) for f in (fast, plain)]
    for found, wanted in zip(*grads, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=1e-4)


def test_gelu_is_the_exact_one():
    x = jnp.linspace(-6, 6, 101)
    assert_same(ops.gelu, lambda x: jax.nn.gelu(x, approximate=False), x)


def test_attention():
    q, k, v = (random(2, 3, 5, 4, seed=seed) for seed in range(3))

    def plain(q, k, v, mask=None):
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        seen = None if mask is None else mask[:, None, None]
        return jax.nn.dot_product_attention(q, k, v, mask=seen).transpose(0, 2, 1, 3)

    assert_same(ops.attention, plain, 5 * q, 5 * k, v)
    # The second text is padding through and through, as the last rows of a batch may be.
    for mask in ([[True, True, False, True, False], [True] * 5], [[True] * 5, [False] * 5]):
        seen = jnp.array(mask)
        assert_same(lambda q, k, v: ops.attention(q, k, v, seen), lambda q, k, v: plain(q, k, v, seen), 5 * q, 5 * k, v)  # noqa: B023


def test_linear():
    assert_same(ops.linear, lambda x, w, b: x @ w + b, random(2, 3, 4), random(4, 5, seed=1), random(5, seed=2))


def test_linear_in_bfloat16_rounds_once():
    x, w = random(3, 7, 40), random(40, 5, seed=1)
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    exact = lambda x, w: (x.astype(jnp.float32) @ w.astype(jnp.float32)).astype(jnp.bfloat16)  # noqa: E731
    np.testing.assert_array_equal(ops.linear(x, w), exact(x, w))
    grads = [
        jax.grad(lambda *o, f=f: jnp.sum(f(*o).astype(jnp.float32) ** 2), (0, 1))(x, w) for f in (ops.linear, exact)
    ]
    for found, wanted in zip(*grads, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), wanted.astype(jnp.float32), rtol=1e-2, atol=1e-2)


def test_layer_norm():
    def plain(x, scale, bias):
        mean, variance = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 1e-6) * scale + bias

    x, scale, bias = random(2, 3, 24) + 0.5, random(24, seed=1), random(24, seed=2)
    assert_same(lambda *o: ops.layer_norm(*o, 1e-6), plain, x, scale, bias)
    half = ops.layer_norm(x.astype(jnp.bfloat16), scale, bias, 1e-6)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), plain(x, scale, bias), atol=0.03)


def test_attention_as_a_gpu_computes_it_gives_the_same(monkeypatch):
    q, k, v = (random(2, 3, 5, 4, seed=seed) for seed in range(3))
    mask = jnp.array([[True] * 5, [True, True, False, True, False]])
    for seen in (None, mask):
        plain = ops.attention(q, k, v, seen)
        with monkeypatch.context() as patch:
            patch.setattr(ops, "platform", lambda: "gpu")
            np.testing.assert_allclose(ops.attention(q, k, v, seen), plain, atol=1e-6)
