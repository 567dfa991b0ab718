"""Depthwise convolution: every implementation against sums in float64, over a grid of shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convnext_jax.ops import depthwise_conv, depthwise_cpu, depthwise_gpu

IMPLEMENTATIONS = {
    "cpu": (
        depthwise_cpu.shifted_forward,
        depthwise_cpu.shifted_input_gradient,
        depthwise_cpu.scanned_filter_gradient,
    ),
    "xla": (
        depthwise_conv.xla_forward,
        depthwise_conv.xla_input_gradient,
        depthwise_conv.xla_filter_gradient,
    ),
    "pallas": tuple(
        # Interpreted kernels take far longer to compile than to run.
        jax.jit(
            functools.partial(kernel, interpret=True),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        for kernel in (
            depthwise_gpu.pallas_forward,
            depthwise_gpu.pallas_input_gradient,
            depthwise_gpu.pallas_filter_gradient,
        )
    ),
}
# (N, H, W, C, k): every filter size; every number of channels that fills, exceeds or falls short of
# a kernel's tile; rows of one strip, of several and of a part of one; images smaller than the
# filter.
GRID = [
    (1, 1, 1, 1, 7),
    (5, 1, 1, 40, 3),
    (5, 9, 11, 3, 5),
    (1, 65, 63, 96, 3),
    (5, 7, 7, 96, 7),
    (1, 14, 16, 130, 7),
    (5, 3, 4, 1, 9),
    (1, 4, 8, 40, 11),
]
# Interpreted kernels take many seconds to compile: large filters, and most shapes in bfloat16, have
# to wait for the slow tests.
QUICK_OF_PALLAS = {jnp.float32: GRID[:6], jnp.bfloat16: GRID[1:2]}
# The largest difference, relative to the largest value, that users are promised.
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


def exact(x, kernel, dy):
    """Convolution and its two gradients in float64, straight from the definition."""
    x, kernel, dy = (np.asarray(a, np.float64) for a in (x, kernel, dy))
    k, (_, height, width, _) = len(kernel), x.shape
    around = [(0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)]
    padded = np.pad(x, around)
    y, dpadded, dkernel = np.zeros_like(x), np.zeros_like(padded), np.zeros_like(kernel)
    for i in range(k):
        for j in range(k):
            window = np.s_[:, i : i + height, j : j + width]
            y += padded[window] * kernel[i, j, 0]
            dpadded[window] += dy * kernel[i, j, 0]
            dkernel[i, j, 0] = np.einsum("nhwc,nhwc->c", padded[window], dy)
    middle = np.s_[:, k // 2 : k // 2 + height, k // 2 : k // 2 + width]
    return y, dpadded[middle], dkernel


@pytest.mark.parametrize(
    ("name", "case", "dtype"),
    [
        pytest.param(
            *(name, case, dtype),
            id=f"{name}-{case}-{dtype.__name__}",
            marks=[pytest.mark.slow]
            if name == "pallas" and case not in QUICK_OF_PALLAS[dtype]
            else [],
        )
        for name in IMPLEMENTATIONS
        for case in GRID
        for dtype in TOLERANCE
    ],
)
def test_agrees_with_float64(name, case, dtype):
    n, h, w, c, k = case
    rng = np.random.default_rng(0)
    shapes = ((n, h, w, c), (k, k, 1, c), (n, h, w, c))
    x, kernel, dy = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    forward, input_gradient, filter_gradient = IMPLEMENTATIONS[name]
    ours = forward(x, kernel), input_gradient(x, kernel, dy), filter_gradient(x, kernel, dy)
    for what, one, other in zip(("y", "dx", "dkernel"), ours, exact(x, kernel, dy), strict=True):
        assert one.dtype == dtype and one.shape == other.shape, what
        error = np.abs(np.asarray(one, np.float64) - other).max() / np.abs(other).max()
        assert error < TOLERANCE[dtype], (what, error)
