"""Counts of multiply-accumulates that can be done by hand."""

import jax
import jax.numpy as jnp
from jax import lax

from convnext_jax.models.flops import count_macs
from convnext_jax.ops import depthwise_conv as depthwise_module
from convnext_jax.ops.depthwise_conv import depthwise_conv


def test_products_and_convolutions():
    a, b = jnp.ones((5, 2, 3)), jnp.ones((5, 3, 4))
    assert count_macs(jnp.matmul, a, b) == 5 * 2 * 3 * 4
    x, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((4, 4, 3, 10))
    strided = lambda x, k: lax.conv_general_dilated(  # noqa: E731
        x, k, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    assert count_macs(strided, x, kernel) == (2 * 2 * 2 * 10) * (4 * 4 * 3)


def test_depthwise_counts_on_every_platform(monkeypatch):
    x, kernel = jnp.ones((2, 5, 5, 6)), jnp.ones((7, 7, 1, 6))
    assert count_macs(depthwise_conv, x, kernel) == 2 * 5 * 5 * 6 * 49
    assert count_macs(jax.jit(jax.checkpoint(depthwise_conv)), x, kernel) == 2 * 5 * 5 * 6 * 49
    # On TPUs these may be products of matrices, with many more multiplications.
    monkeypatch.setattr(depthwise_module, "_CHOICE", "toeplitz")
    large, rounded = jnp.ones((2, 28, 28, 6), jnp.bfloat16), kernel.astype(jnp.bfloat16)
    assert count_macs(depthwise_conv, large, rounded) == 2 * 28 * 28 * 6 * 49
    # A training step does one more convolution as large as the forward one for each gradient.
    gradients = jax.grad(lambda x, k: depthwise_conv(x, k).sum(), argnums=(0, 1))
    assert count_macs(gradients, x, kernel) == 3 * (2 * 5 * 5 * 6 * 49)


def test_loops_count_as_often_as_they_run():
    w = jnp.ones((3, 3))
    assert count_macs(lambda x: lax.scan(lambda c, _: (c @ w, None), x, length=7)[0], w) == 7 * 27
    twice = lambda x: lax.cond(True, lambda x: x @ w @ w, lambda x: x, x)  # noqa: E731
    assert count_macs(twice, w) == 2 * 27
    assert count_macs(lambda x: x + x, w) == 0
