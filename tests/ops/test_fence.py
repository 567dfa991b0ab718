"""The fence: it changes no number, and on CPU it keeps a sum of slices in one piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convnext_jax.ops.depthwise_conv import depthwise_conv
from convnext_jax.ops.fence import fence


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_is_the_identity(dtype):
    x = jnp.asarray([0.0, -0.0, 1.5, -3e4, np.inf, -np.inf, np.nan, 1e-40], dtype)
    y, pull_back = jax.vjp(jax.jit(fence), x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(x, np.float32))
    np.testing.assert_array_equal(np.signbit(np.asarray(y[:2])), [False, True])
    dy = jnp.arange(8).astype(dtype)
    np.testing.assert_array_equal(pull_back(dy)[0], dy)


def test_vmap_and_second_derivative():
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(jax.vmap(fence)(x), x)
    assert jax.grad(jax.grad(lambda x: fence(x) ** 3))(2.0) == 12.0


@pytest.mark.parametrize(("platform", "choices"), [("cpu", 2), ("tpu", 0), ("cuda", 0)])
def test_exists_on_cpu_alone(platform, choices):
    traced = jax.jit(lambda x: jax.vjp(fence, x)[1](x)[0] + fence(x)).trace(jnp.ones(8))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.select") == choices


def test_sum_over_channels_leaves_the_convolution_in_one_piece():
    def normalised(x, kernel):
        y = fence(depthwise_conv(x, kernel))
        return (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True)

    x, kernel = jnp.ones((8, 56, 56, 32)), jnp.ones((7, 7, 1, 32))
    memory = jax.jit(normalised).lower(x, kernel).compile().memory_analysis()
    # The padded images and the convolved ones, and what statistics need: without the fence it is
    # twelve slices and more, each as large as `x`.
    assert memory.temp_size_in_bytes < 5 * x.nbytes
