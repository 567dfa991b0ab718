"""Gradients of filters where a device has one or two images: values, and where they are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from ops.test_depthwise_conv import data, forward_and_gradients, torch_results

from convnext_jax.ops import conv, depthwise_tpu
from convnext_jax.ops import depthwise_conv as ops
from convnext_jax.ops.few_images import batch_over, devices_with_few

DEVICES = 4


def mesh_of(devices):
    return AbstractMesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def depthwise_products(x, kernel, dy):
    """Not chosen on this platform, so called by name."""
    return depthwise_tpu.shifted_filter_gradient(x, kernel, dy, devices=DEVICES)


def dense_products(x, kernel, dy):
    pad = ((1, 1), (1, 1))
    return conv._by_taps(x, dy, padding=pad, dtype=kernel.dtype)


# One and two images on each of four devices; smaller than the filter; other filters.
@pytest.mark.parametrize("shape", [(4, 3, 2, 5, 7), (8, 9, 6, 3, 7), (4, 8, 11, 4, 5)], ids=str)
def test_shifted_filter_gradient_agrees_with_torch_in_float64(shape):
    x, kernel, dy = data(*shape)
    with jax.enable_x64(True):
        ours = depthwise_products(*map(jnp.asarray, (x, kernel, dy)))
    assert ours.dtype == np.float64
    # Up to 432 products are added in another order, each rounded to 1e-16.
    np.testing.assert_allclose(ours, torch_results(x, kernel, dy)[2], rtol=0, atol=1e-12)


def test_in_bfloat16_it_is_as_close_to_float64_as_the_convolution():
    x, kernel, dy = (np.asarray(jnp.asarray(a, jnp.bfloat16)) for a in data(4, 12, 9, 3, 7))
    expected = torch_results(*(a.astype(np.float64) for a in (x, kernel, dy)))[2]
    wide = kernel.astype(np.float32)
    for form in (depthwise_products, ops.xla_filter_gradient):
        ours = form(*map(jnp.asarray, (x, wide, dy)))
        assert ours.dtype == np.float32
        # Products of bfloat16 are exact in float32, in which both sum 432 of them: 1.4e-7 and 7e-8
        # of the largest result off.
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_for_each_tap_are_the_convolutions_gradient(dtype):
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.standard_normal((2, 7, 9, n)), dtype) for n in (5, 6))
    kernel = jnp.zeros((3, 3, 5, 6))
    with jax.default_matmul_precision("highest"):
        expected = conv.filter_gradient(x, kernel, dy, 1, ((1, 1), (1, 1)))
        ours = dense_products(x, kernel, dy)
    assert ours.dtype == expected.dtype == np.float32
    # Sums of 126 products of order 1, in float32, in another order.
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [depthwise_products, dense_products])
def test_images_stay_on_their_devices(function):
    mesh = jax.make_mesh((DEVICES,), ("data",), (AxisType.Auto,), devices=jax.devices()[:DEVICES])
    batch, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    x, kernel, dy = (jnp.asarray(a, jnp.float32) for a in data(8, 10, 12, 16, 7))
    compiled = jax.jit(function, in_shardings=(batch, whole, batch), out_shardings=whole)
    text = compiled.lower(x, kernel, dy).compile().as_text()
    assert "all-reduce" in text
    assert not [name for name in ("all-gather", "all-to-all", "permute") if name in text]


def test_few_are_at_most_two_on_each_device():
    few = {n: devices_with_few(jnp.zeros((n, 1))) for n in (0, 1, 2, 3, 8)}
    assert few == {0: None, 1: 1, 2: 1, 3: None, 8: None}
    with batch_over(mesh_of(4)):
        few = {n: devices_with_few(jnp.zeros((n, 1))) for n in (1, 2, 4, 6, 8, 12)}
        one = {n: devices_with_few(jnp.zeros((n, 1)), 1) for n in (4, 8)}
    assert few == {1: None, 2: None, 4: 4, 6: None, 8: 4, 12: None}
    assert one == {4: 4, 8: None}
    assert devices_with_few(jnp.zeros((8, 1))) is None


@pytest.mark.parametrize(
    ("platform", "devices", "forms"),
    [("tpu", 4, 0), ("tpu", 1, 2), ("cpu", 4, 1), ("cuda", 4, 2)],
)
def test_where_they_are_chosen(platform, devices, forms):
    """So many of the two filters have a convolution for a gradient."""

    def gradients(x, kernel, taps, dy):
        found = forward_and_gradients(x, kernel, dy)[2]
        pull_back = jax.vjp(lambda k: conv.conv(x, k, 1, ((1, 1), (1, 1))), taps)[1]
        return found, pull_back(dy)

    x, kernel, dy = (jnp.asarray(a, jnp.bfloat16) for a in data(4, 6, 6, 8, 7))
    taps = jnp.ones((3, 3, 8, 8))
    with batch_over(mesh_of(devices)):
        traced = jax.jit(lambda *a: gradients(*a)).trace(x, kernel, taps, dy)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # That of a filter, and no other, has the batch where others have channels.
    assert text.count("[f, 0, 1, b]") == forms
