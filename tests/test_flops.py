"""What a traced function multiplies, by hand and as XLA counts it."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import Primitive

from tests.conftest import make_folder, tiny_run
from tljax.profiling import flops


def _count(function, *shapes):
    return flops.count(jax.jit(function).trace(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).jaxpr)


def _conv(x, kernel, stride=1, padding=1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_products():
    assert _count(jnp.matmul, (5, 7), (7, 3)) == 2 * 5 * 7 * 3
    assert _count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 5, 7), (4, 7, 3)) == 4 * 2 * 5 * 7 * 3
    assert _count(lambda a: a + jnp.exp(a), (5, 7)) == 0


def test_convolutions_meet_no_padding():
    inside = (3 * 8 - 2) ** 2  # of a 3x3 window on 8x8 pixels, padded by one
    assert _count(_conv, (2, 8, 8, 4), (3, 3, 4, 6)) == 2 * 2 * inside * 4 * 6
    assert _count(lambda x, k: _conv(x, k, 2, 0), (2, 9, 9, 4), (3, 3, 4, 6)) == 2 * 2 * 16 * 9 * 4 * 6


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (2, 0)])
def test_gradients_of_a_convolution_cost_what_it_costs(stride, padding):
    shapes = (2, 9, 9, 4), (3, 3, 4, 6)
    forward = _count(lambda x, k: _conv(x, k, stride, padding), *shapes)

    def loss(x, kernel):
        return jnp.sum(_conv(x, kernel, stride, padding) ** 2)

    for arguments, times in ((0, 2), (1, 2), ((0, 1), 3)):
        assert _count(jax.grad(loss, arguments), *shapes) == times * forward


@pytest.mark.parametrize(("name", "products"), [("fwd", 2), ("bwd", 5)])
def test_attention_by_cudnn(name, products):
    kernel = Primitive(f"dot_product_attention_{name}_wrapper")
    kernel.def_abstract_eval(lambda q, k, v: q)
    batch, queries, keys, heads, depth = 2, 4, 6, 3, 8
    whole = _count(kernel.bind, (batch, queries, heads, depth), *[(batch, keys, heads, depth)] * 2)
    assert whole == products * batch * heads * 2 * queries * keys * depth


def test_what_nothing_needs_is_not_counted():
    def three(a, b):
        @jax.jit
        def inner(a, b):
            return a @ b, b @ a

        first, _ = inner(a, b)
        _ = first @ first
        return first

    assert _count(three, (5, 5), (5, 5)) == 2 * 5**3


def test_loops_and_branches():
    product = 2 * 5**3
    assert _count(lambda a: lax.scan(lambda x, _: (x @ a, None), a, length=7)[0], (5, 5)) == 7 * product
    assert _count(lambda a: lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a), (5, 5)) == 2 * product
    assert (
        _count(jax.value_and_grad(lambda a: jnp.sum(jax.checkpoint(lambda a: jnp.sin(a @ a))(a))), (5, 5))
        == 4 * product
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA counts what is not compiled yet on a CPU alone")
@pytest.mark.parametrize("network", ["vit_tiny_patch16", "resnet18", "resnet50"])
@pytest.mark.parametrize("strategy", ["linear_probe", "full"])
def test_it_is_nearly_all_that_xla_counts(tmp_path, network, strategy):
    folder = make_folder(tmp_path / "shapes")
    run = tiny_run(f"folder:{folder}", network, tuning__strategy=strategy)
    traced = run.programs.trace_train_step(run.phases[0])
    xla = traced.lower().cost_analysis()["flops"]
    assert 0.9 * xla < flops.count(traced.jaxpr) < xla
