"""Strided depthwise convolution beside PyTorch's, in the forms of CPUs and of accelerators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convnext_jax.ops import strided_depthwise


@pytest.mark.parametrize("form", ["cpu", "elsewhere"])
@pytest.mark.parametrize("size, kernel_size", [((9, 12), 3), ((8, 7), 7), ((3, 4), 11)])
def test_it_is_pytorchs_and_so_are_both_gradients(form, size, kernel_size):
    function = {
        "cpu": lambda x, k: strided_depthwise.strided_depthwise_conv(x, k, 2),
        "elsewhere": strided_depthwise._grouped(2),
    }[form]
    torch.manual_seed(0)
    x = torch.randn(3, 5, *size, requires_grad=True)
    kernel = torch.randn(5, 1, kernel_size, kernel_size, requires_grad=True)
    y = torch.nn.functional.conv2d(x, kernel, stride=2, padding=kernel_size // 2, groups=5)
    dy = torch.randn(y.shape)
    y.backward(dy)
    ours = [jnp.asarray(t.detach().permute(0, 2, 3, 1).numpy()) for t in (x, dy)]
    filters = jnp.asarray(kernel.detach().permute(2, 3, 1, 0).numpy())
    found, pullback = jax.vjp(function, ours[0], filters)
    dx, dkernel = pullback(ours[1])
    for array, tensor in ((found, y.permute(0, 2, 3, 1)), (dx, x.grad.permute(0, 2, 3, 1))):
        # Sums of at most 121 products of order 1, in float32.
        np.testing.assert_allclose(array, tensor.detach(), atol=2e-5)
    np.testing.assert_allclose(dkernel, kernel.grad.permute(2, 3, 1, 0), atol=5e-5)


@pytest.mark.parametrize("form", ["cpu", "elsewhere"])
def test_a_float32_filter_of_bfloat16_images_has_a_float32_gradient(form):
    function = {
        "cpu": lambda x, k: strided_depthwise.strided_depthwise_conv(x, k, 2),
        "elsewhere": strided_depthwise._grouped(2),
    }[form]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 8, 8, 4)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 4)), jnp.float32)
    y, pullback = jax.vjp(function, x, kernel)
    dx, dkernel = pullback(jnp.ones_like(y))
    assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # Sums of bfloat16 numbers are exact here but for float32 rounding: dy is 1.
    wide = jax.vjp(function, x.astype(jnp.float32), kernel)[1](jnp.ones(y.shape))[1]
    np.testing.assert_allclose(dkernel, wide, rtol=1e-5, atol=1e-5)
