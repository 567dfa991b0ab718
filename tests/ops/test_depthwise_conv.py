"""Depthwise convolution: every implementation against PyTorch, and what jit makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from convnext_jax.errors import InputError
from convnext_jax.ops import depthwise_conv as ops
from convnext_jax.ops import depthwise_cpu
from convnext_jax.ops.depthwise_conv import depthwise_conv

# (N, H, W, C, k): one pixel, images smaller than the filter, odd sides, one channel, and batches
# that the filter gradient splits into 1, 2 and 8 parts.
CASES = [
    (1, 1, 1, 1, 7),
    (2, 3, 2, 5, 7),
    (3, 9, 6, 1, 5),
    (8, 5, 11, 4, 3),
    (16, 8, 8, 3, 7),
]
IMPLEMENTATIONS = {
    "shifted": (
        depthwise_cpu.shifted_forward,
        depthwise_cpu.shifted_input_gradient,
        depthwise_cpu.scanned_filter_gradient,
    ),
    "xla": (ops.xla_forward, ops.xla_input_gradient, ops.xla_filter_gradient),
}


def data(n, h, w, c, k, dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = ((n, h, w, c), (k, k, 1, c), (n, h, w, c))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def forward_and_gradients(x, kernel, dy, forward=depthwise_conv):
    y, pull_back = jax.vjp(forward, x, kernel)
    return y, *pull_back(dy)


def torch_results(x, kernel, dy):
    from oracles import torch

    x = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    kernel = torch.tensor(kernel).permute(3, 2, 0, 1).requires_grad_()
    size, channels = kernel.shape[-1], x.shape[1]
    y = torch.nn.functional.conv2d(x, kernel, padding=size // 2, groups=channels)
    y.backward(torch.tensor(dy).permute(0, 3, 1, 2))
    assert x.grad is not None and kernel.grad is not None
    images = [t.permute(0, 2, 3, 1).numpy() for t in (y.detach(), x.grad)]
    return *images, kernel.grad.permute(2, 3, 1, 0).numpy()


def assert_close(ours, theirs, tolerance):
    for name, one, other in zip(("y", "dx", "dkernel"), ours, theirs, strict=True):
        assert one.shape == other.shape, name
        error = np.max(np.abs(np.asarray(one, np.float64) - other)) / np.max(np.abs(other))
        assert error < tolerance, (name, error)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", [*IMPLEMENTATIONS, "chosen by platform"])
def test_agrees_with_torch_in_float64(name, case):
    x, kernel, dy = data(*case)
    expected = torch_results(x, kernel, dy)
    with jax.enable_x64(True):
        if name in IMPLEMENTATIONS:
            forward, input_gradient, filter_gradient = IMPLEMENTATIONS[name]
            ours = (
                forward(x, kernel),
                input_gradient(x, kernel, dy),
                filter_gradient(x, kernel, dy),
            )
        else:
            ours = jax.jit(forward_and_gradients)(x, kernel, dy)
    assert all(result.dtype == np.float64 for result in ours)
    # At most 49 * 16 * 64 terms are added in another order, each rounded to 1e-16.
    assert_close(ours, expected, 1e-13)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_bfloat16(name):
    x, kernel, dy = (jnp.asarray(a, jnp.bfloat16) for a in data(8, 8, 8, 4, 7))
    exact = torch_results(*(np.asarray(a, np.float64) for a in (x, kernel, dy)))
    forward, input_gradient, filter_gradient = IMPLEMENTATIONS[name]
    ours = forward(x, kernel), input_gradient(x, kernel, dy), filter_gradient(x, kernel, dy)
    assert all(result.dtype == jnp.bfloat16 for result in ours)
    # Inputs are exact. Accumulated in float32, the one rounding of a result is at most half of 2^-7
    # of its size; XLA on CPU rounds on its way too, and gets four times as much.
    assert_close(ours, exact, 2**-8 if name == "shifted" else 2**-6)


def test_no_images():
    x, kernel = jnp.zeros((0, 56, 56, 3)), jnp.ones((7, 7, 1, 3))
    y, dx, dkernel = jax.jit(forward_and_gradients)(x, kernel, x)
    assert y.shape == dx.shape == x.shape
    np.testing.assert_array_equal(dkernel, np.zeros_like(kernel))


def test_vmap_and_remat():
    x, kernel, dy = data(6, 5, 4, 3, 3, np.float32)
    expected = forward_and_gradients(x, kernel, dy)
    checkpointed = forward_and_gradients(x, kernel, dy, jax.checkpoint(depthwise_conv))
    # Images one by one, and the filter's gradients added afterwards.
    one_by_one = jax.jit(jax.vmap(forward_and_gradients, in_axes=(0, None, 0)))
    y, dx, dkernels = one_by_one(x[:, None], kernel, dy[:, None])
    # Float32 sums of at most 9 * 120 terms in another order.
    assert_close(checkpointed, expected, 1e-6)
    assert_close((y[:, 0], dx[:, 0], dkernels.sum(0)), expected, 1e-6)


def test_sharded_batch_stays_where_it_is():
    x, kernel, dy = data(16, 6, 5, 4, 7, np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    batch = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    arguments = [jax.device_put(a, s) for a, s in ((x, batch), (kernel, whole), (dy, batch))]
    program = jax.jit(forward_and_gradients).lower(*arguments).compile()
    text = program.as_text()
    assert "all-reduce" in text  # The filter's gradient, added over the devices.
    assert "all-gather" not in text and "all-to-all" not in text
    y, dx, dkernel = program(*arguments)
    assert y.sharding.is_equivalent_to(batch, 4) and dx.sharding.is_equivalent_to(batch, 4)
    # Float32 sums of at most 49 * 480 terms in another order.
    assert_close((y, dx, dkernel), jax.jit(forward_and_gradients)(x, kernel, dy), 1e-6)


@pytest.mark.parametrize(
    ("platform", "convolutions"), [("cpu", False), ("tpu", True), ("cuda", True)]
)
def test_platform_chooses_when_lowered(platform, convolutions):
    traced = jax.jit(forward_and_gradients).trace(*data(4, 4, 4, 3, 7, np.float32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Forward, input gradient and filter gradient are one convolution each.
    assert text.count("stablehlo.convolution") == (3 if convolutions else 0)


@pytest.mark.parametrize(
    ("x", "kernel", "message"),
    [
        (jnp.ones((4, 4, 3)), jnp.ones((3, 3, 1, 3)), r"`x` \(shape \(4, 4, 3\)\) must"),
        (jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 1, 4)), r"must be \[k, k, 1, 3\]"),
        (jnp.ones((1, 4, 4, 3)), jnp.ones((4, 4, 1, 3)), "k odd"),
        (jnp.ones((1, 4, 4, 3)), jnp.ones((3, 5, 1, 3)), "`kernel`"),
        (jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 1, 3), jnp.bfloat16), "dtype bfloat16"),
        (jnp.ones((1, 4, 4, 3), jnp.bfloat16), jnp.ones((3, 3, 1, 3), jnp.float16), "float16"),
        (jnp.ones((1, 4, 4, 3), jnp.int32), jnp.ones((3, 3, 1, 3), jnp.int32), "floating point"),
    ],
)
def test_refuses_what_does_not_fit(x, kernel, message):
    with pytest.raises(InputError, match=message):
        depthwise_conv(x, kernel)
