"""Convolution of patches: every implementation against PyTorch, and what platforms are given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convnext_jax.ops import patch_conv as ops
from convnext_jax.ops.patch_conv import patch_conv

# (N, H, W, C, k, D): sides that patches fill, and sides that they do not.
CASES = [(2, 8, 4, 3, 4, 5), (3, 7, 5, 2, 2, 4), (1, 3, 3, 1, 3, 1), (8, 9, 14, 6, 4, 7)]
IMPLEMENTATIONS = {
    "matrix product": ops.matrix_product,
    "convolution": ops.convolution,
    "chosen by platform": patch_conv,
}


def data(n, h, w, c, k, d, dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = ((n, h, w, c), (k, k, c, d), (n, h // k, w // k, d))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def value_and_gradients(x, kernel, dy, function=patch_conv):
    y, pull_back = jax.vjp(function, x, kernel)
    return y, *pull_back(dy)


def torch_results(x, kernel, dy):
    from oracles import torch

    x = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    kernel = torch.tensor(kernel).permute(3, 2, 0, 1).requires_grad_()
    y = torch.nn.functional.conv2d(x, kernel, stride=kernel.shape[-1])
    y.backward(torch.tensor(dy).permute(0, 3, 1, 2))
    assert x.grad is not None and kernel.grad is not None
    images = [t.permute(0, 2, 3, 1).numpy() for t in (y.detach(), x.grad)]
    return *images, kernel.grad.permute(2, 3, 1, 0).numpy()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_agrees_with_torch_in_float64(name, case):
    arguments = data(*case)
    with jax.enable_x64(True):
        ours = value_and_gradients(*arguments, IMPLEMENTATIONS[name])
    for one, other in zip(ours, torch_results(*arguments), strict=True):
        assert one.dtype == np.float64 and one.shape == other.shape
        # At most 96 terms are added in another order, each rounded to 1e-16.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)


def test_bfloat16():
    arguments = [jnp.asarray(a, jnp.bfloat16) for a in data(*CASES[0])]
    expected = torch_results(*(np.asarray(a, np.float64) for a in arguments))
    for one, other in zip(value_and_gradients(*arguments), expected, strict=True):
        assert one.dtype == jnp.bfloat16
        # Accumulated in float32, the one rounding is at most half of 2^-7 of a result's size.
        error = np.abs(np.asarray(one, np.float64) - other).max()
        assert error < 2**-8 * np.abs(other).max()


@pytest.mark.parametrize(("platform", "count"), [("cpu", 0), ("tpu", 3), ("cuda", 3)])
def test_platform_chooses_when_lowered(platform, count):
    traced = jax.jit(value_and_gradients).trace(*data(*CASES[1], np.float32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Value and both gradients are one convolution each.
    assert text.count("stablehlo.convolution") == count
