"""Each operation against its plain form, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.models.kernels import ops

pytestmark = pytest.mark.optimized


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same(fast, plain, *operands):
    fast, plain = jax.jit(fast), jax.jit(plain)
    np.testing.assert_allclose(fast(*operands), plain(*operands), atol=2e-5, rtol=1e-5)
    weights = random(*jax.eval_shape(plain, *operands).shape, seed=9)
    arguments = tuple(range(len(operands)))
    grads = [jax.jit(jax.grad(lambda *o, f=f: jnp.sum(f(*o) * weights), arguments))(*operands) for f in (fast, plain)]
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


@pytest.mark.parametrize("kernel", [False, True])
def test_attention_as_a_gpu_computes_it_gives_the_same(monkeypatch, kernel):
    plain, asked = jax.nn.dot_product_attention, []

    def cudnn(q, k, v, implementation="xla", **told):
        asked.append((implementation, q.shape[1] % 2, k.shape[1] % 2))
        return plain(q, k, v, **told)

    # Of fewer queries than keys, too, as a network's last block has them.
    for queries, keys in ((5, 5), (1, 5), (4, 4)):
        q, k, v = (random(2, 3, tokens, 8, seed=seed) for seed, tokens in enumerate((queries, keys, keys)))
        padded = jnp.array([[True] * keys, [True, True, False, True, False][:keys]])
        for seen in (None, padded, padded & jnp.array([[True], [False]])):
            with monkeypatch.context() as patch:
                patch.setattr(ops, "platform", lambda: "gpu")
                patch.setattr(ops, "_has_kernel", lambda q: kernel)
                patch.setattr(jax.nn, "dot_product_attention", cudnn)
                found = jax.vjp(lambda *o: ops.attention(*o, seen), q, k, v)  # noqa: B023
            wanted = jax.vjp(lambda *o: ops.attention(*o, seen), q, k, v)  # noqa: B023
            dy = random(*q.shape, seed=3)
            for one, other in zip((found[0], *found[1](dy)), (wanted[0], *wanted[1](dy)), strict=True):
                np.testing.assert_allclose(one, other, atol=2e-6)
    assert set(asked) == ({("cudnn", 0, 0)} if kernel else {("xla", 0, 0), ("xla", 1, 1)})


@pytest.mark.parametrize("tokens", [(128, 128), (197, 197), (1, 197)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16(tokens, masked):
    """On a GPU, cuDNN's kernel: the plain form in float32 is met to what bfloat16 rounds."""
    q, k, v, dy = (random(3, 4, tokens[place], 64, seed=seed) for seed, place in enumerate((0, 1, 1, 0)))
    seen = jnp.arange(tokens[1]) < jnp.array([[tokens[1]], [3], [0]]) if masked else None

    @jax.jit  # of arguments: the compiler would take half a minute to compute with constants
    def with_gradients(q, k, v, dy):
        y, back = jax.vjp(lambda *o: ops.attention(*o, seen), q, k, v)
        return y, *back(dy)

    with jax.default_matmul_precision("highest"):
        wanted = with_gradients(q, k, v, dy)
    for one, other in zip(with_gradients(*(x.astype(jnp.bfloat16) for x in (q, k, v, dy))), wanted, strict=True):
        assert one.dtype == jnp.bfloat16
        assert jnp.max(jnp.abs(one.astype(jnp.float32) - other)) < 0.02 * jnp.max(jnp.abs(other))


def test_attention_with_a_bias_or_a_mask_of_each_query_is_what_it_says():
    q, k, v = (jax.random.normal(jax.random.key(seed), (2, 3, 5, 4)) for seed in range(3))
    mask = jnp.array([[True, False, True, True, False], [True] * 5])
    plain = ops.attention(q, k, v, mask)
    of_each = jnp.broadcast_to(mask[:, None, None], (2, 1, 5, 5))
    np.testing.assert_allclose(ops.attention(q, k, v, of_each), plain, atol=1e-6)
    np.testing.assert_allclose(ops.attention(q, k, v, mask, jnp.zeros((3, 5, 5))), plain, atol=1e-6)
    bias = jnp.zeros((3, 5, 5)).at[:, :, 2].set(100.0)  # which leaves one key
    np.testing.assert_allclose(ops.attention(q, k, v, None, bias), jnp.broadcast_to(v[:, :, 2:3], v.shape), atol=1e-5)
