"""The exact GELU against PyTorch's, its derivatives, and what the backward pass keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from convnext_jax.ops.gelu import gelu

POINTS = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-30, 40.0, -40.0]])


def torch_results(x, dy):
    from oracles import torch

    x = torch.tensor(x).requires_grad_()
    y = torch.nn.functional.gelu(x)
    y.backward(torch.tensor(dy))
    assert x.grad is not None
    return y.detach().numpy(), x.grad.numpy()


# In units of the rounding of numbers as large as `x` (1 below that): a handful of roundings.
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_torch(dtype):
    x = POINTS.astype(dtype)
    dy = np.cos(POINTS).astype(dtype)
    # PyTorch in float64 for both: what is measured is this function's own error.
    expected = torch_results(x.astype(np.float64), dy.astype(np.float64))
    with jax.enable_x64(dtype is np.float64):
        y, pull_back = jax.vjp(jax.jit(gelu), x)
        ours = y, pull_back(dy)[0]
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == dtype
        error = np.abs(np.asarray(one, np.float64) - other) / np.maximum(1, np.abs(x))
        assert error.max() < 4 * np.finfo(dtype).eps


def test_low_precision_is_rounded_once():
    x = jnp.asarray(POINTS, jnp.bfloat16)
    y = gelu(x)
    assert y.dtype == jnp.bfloat16
    exact = torch_results(np.asarray(x, np.float64), np.ones(x.shape))[0]
    # Half a unit in the last of 8 binary digits; and float32's error where numbers cancel.
    error = np.abs(np.asarray(y, np.float64) - exact)
    assert np.all(error <= 2.0**-8 * np.abs(exact) + 1e-6)


def test_infinity_and_nan():
    y = np.asarray(gelu(jnp.asarray([np.inf, np.nan, -1e30], jnp.float32)))
    assert y[0] == np.inf and np.isnan(y[1]) and y[2] == 0


def test_higher_derivatives_and_vmap():
    with jax.enable_x64(True):
        x = jnp.linspace(-3, 3, 24).reshape(4, 6)
        check_grads(gelu, (x,), order=3, modes=["rev"])
        np.testing.assert_array_equal(jax.vmap(gelu)(x), gelu(x))
        second = jax.vmap(jax.vmap(jax.grad(jax.grad(gelu))))(x)
        # d2/dx2 of x * Phi(x) is (2 - x^2) * phi(x), in float64.
        phi = jnp.exp(-x * x / 2) / np.sqrt(2 * np.pi)
        np.testing.assert_allclose(second, (2 - x * x) * phi, atol=1e-14)


def test_backward_pass_keeps_its_input_alone():
    x = jnp.ones((4, 8), jnp.bfloat16)
    _, pull_back = jax.vjp(gelu, x)
    kept = jax.tree.leaves(pull_back)
    assert [(k.shape, k.dtype) for k in kept] == [(x.shape, x.dtype)]
