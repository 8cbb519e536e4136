"""Each operation against its plain form, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tljax.models import ops


def _random(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def _plain_conv(x, kernel, stride, padding):
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _assert_same(fast, plain, *operands):
    np.testing.assert_allclose(fast(*operands), plain(*operands), atol=2e-5, rtol=1e-5)
    weights = _random(*jax.eval_shape(plain, *operands).shape, seed=9)
    arguments = tuple(range(len(operands)))
    grads = [jax.grad(lambda *o, f=f: jnp.sum(f(*o) * weights), arguments)(*operands) for f in (fast, plain)]
    for found, wanted in zip(*grads, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_conv(side, kernel, stride):
    pad = ((kernel // 2, kernel // 2),) * 2
    _assert_same(
        lambda x, k: ops.conv(x, k, stride, pad),
        lambda x, k: _plain_conv(x, k, stride, pad),
        _random(2, side, side + side % 2, 3),
        _random(kernel, kernel, 3, 5, seed=1),
    )


def test_conv_with_uneven_padding_on_a_small_map():
    pad = ((1, 0), (0, 2))
    x, kernel = _random(2, 3, 4, 3), _random(2, 3, 3, 5, seed=1)
    np.testing.assert_allclose(ops.conv(x, kernel, 1, pad), _plain_conv(x, kernel, 1, pad), atol=1e-5)


def test_gelu_is_the_exact_one():
    x = jnp.linspace(-6, 6, 101)
    _assert_same(ops.gelu, lambda x: jax.nn.gelu(x, approximate=False), x)


def test_attention():
    q, k, v = (_random(2, 3, 5, 4, seed=seed) for seed in range(3))

    def plain(q, k, v):
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        return jax.nn.dot_product_attention(q, k, v).transpose(0, 2, 1, 3)

    _assert_same(ops.attention, plain, q, k, v)


def test_linear():
    _assert_same(ops.linear, lambda x, w, b: x @ w + b, _random(2, 3, 4), _random(4, 5, seed=1), _random(5, seed=2))
