"""Each operation of a convolutional network against its plain form, value and gradient."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.models.test_ops import assert_same, random
from tljax.models.kernels import conv_cpu, grouped_cpu, ops

pytestmark = pytest.mark.optimized


def _plain_conv(x, kernel, stride, padding):
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_conv(side, kernel, stride):
    pad = ((kernel // 2, kernel // 2),) * 2
    assert_same(
        lambda x, k: conv_cpu.conv(x, k, stride, pad),
        lambda x, k: _plain_conv(x, k, stride, pad),
        random(2, side, side + side % 2, 3),
        random(kernel, kernel, 3, 5, seed=1),
    )


@pytest.mark.parametrize("side", [6, 7, 9])
def test_conv_of_many_channels(side):
    pad = ((1, 1), (1, 1))
    assert_same(
        lambda x, k: conv_cpu.conv(x, k, 1, pad),
        lambda x, k: _plain_conv(x, k, 1, pad),
        random(2, side, side + 1, 32),
        random(3, 3, 32, 36, seed=1) / 17,
    )


@pytest.mark.parametrize("side", [8, 11])
def test_conv_of_patches_apart(side):
    pad = ((0, 0), (0, 0))
    assert_same(
        lambda x, k: conv_cpu.conv(x, k, 4, pad),
        lambda x, k: _plain_conv(x, k, 4, pad),
        random(2, side, side + 2, 3),
        random(4, 4, 3, 5, seed=1),
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_grouped_conv(stride, monkeypatch):
    """Of four groups, of which two and two are one convolution."""
    monkeypatch.setattr(grouped_cpu, "_CHANNELS", 4)

    def plain(x, k):
        layout = ("NHWC", "HWIO", "NHWC")
        pad = ((1, 1), (1, 1))
        return lax.conv_general_dilated(x, k, (stride,) * 2, pad, dimension_numbers=layout, feature_group_count=4)

    assert_same(
        lambda x, k: grouped_cpu.grouped_conv(x, k, stride, ((1, 1), (1, 1))),
        plain,
        random(2, 7, 8, 8),
        random(3, 3, 2, 12, seed=1),
    )


def test_conv_with_uneven_padding_on_a_small_map():
    pad = ((1, 0), (0, 2))
    x, kernel = random(2, 3, 4, 3), random(2, 3, 3, 5, seed=1)
    np.testing.assert_allclose(conv_cpu.conv(x, kernel, 1, pad), _plain_conv(x, kernel, 1, pad), atol=1e-5)


@pytest.mark.parametrize("padding", [(1, 1), (0, 1), (0, 0)])
@pytest.mark.parametrize("side", [5, 6, 9, 10])
def test_max_pool(side, padding):
    # Small integers, so that many windows have their maximum twice.
    x = jnp.round(random(2, side, side + 3, 3))
    assert_same(
        lambda x: conv_cpu.max_pool(x, padding), lambda x: nn.max_pool(x, (3, 3), (2, 2), (padding, padding)), x
    )


def test_max_pool_lets_nan_through():
    x = jnp.zeros((1, 6, 6, 1)).at[0, 3, 3, 0].set(jnp.nan)
    found, wanted = conv_cpu.max_pool(x, (1, 1)), nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    np.testing.assert_array_equal(found, wanted)


def _plain_batch_norm(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    mean, variance = jnp.mean(x, axes), jnp.var(x, axes)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * scale + bias


def test_batch_norm():
    x, scale, bias = random(4, 5, 3, 7) + 0.5, random(7, seed=1), random(7, seed=2)
    assert_same(lambda *o: conv_cpu.batch_norm(*o, 1e-5)[0], _plain_batch_norm, x, scale, bias)
    _, mean, variance = conv_cpu.batch_norm(x, scale, bias, 1e-5)
    np.testing.assert_allclose(mean, jnp.mean(x, (0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(variance, jnp.var(x, (0, 1, 2)), atol=1e-6)


def test_other_platforms_compute_the_plain_forms(monkeypatch):
    x, kernel, pad = random(2, 4, 4, 3), random(3, 3, 3, 5, seed=1), ((1, 1), (1, 1))
    ours = conv_cpu.conv(x, kernel, 2, pad), conv_cpu.max_pool(x, (1, 1))
    monkeypatch.setattr(ops, "platform", lambda: "tpu")
    theirs = conv_cpu.conv(x, kernel, 2, pad), conv_cpu.max_pool(x, (1, 1))
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((2, 2), (2, 2)), ((0, 1), (1, 2))])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("side", [4, 7])
def test_depthwise_conv(side, kernel, stride, padding):
    def plain(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, None, None, layout, x.shape[-1])

    assert_same(
        lambda x, k: conv_cpu.depthwise_conv(x, k, stride, padding),
        plain,
        random(2, side, side + 1, 3),
        random(kernel, kernel, 1, 3, seed=1),
    )
