"""The GPU kernels of the depthwise convolution: when they run, and what jit makes of them.

That their results are right is in test_depthwise_accuracy.py, interpreted on CPU as they are here.
"""

import functools
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from convnext_jax.ops import depthwise_conv, depthwise_cpu, depthwise_gpu

VARIABLE = "CONVNEXT_JAX_DEPTHWISE"
FORWARD, INPUT_GRADIENT, FILTER_GRADIENT = (
    functools.partial(kernel, interpret=True)
    for kernel in (
        depthwise_gpu.pallas_forward,
        depthwise_gpu.pallas_input_gradient,
        depthwise_gpu.pallas_filter_gradient,
    )
)


def pallas(x, kernel, dy):
    return (
        FORWARD(x, kernel),
        INPUT_GRADIENT(x, kernel, dy),
        FILTER_GRADIENT(x, kernel, dy),
    )


def reference(x, kernel, dy):
    return (
        depthwise_cpu.shifted_forward(x, kernel),
        depthwise_cpu.shifted_input_gradient(x, kernel, dy),
        depthwise_cpu.scanned_filter_gradient(x, kernel, dy),
    )


def arguments(*lead, h=5, w=6, c=8, k=3):
    rng = np.random.default_rng(0)
    shapes = ((*lead, h, w, c), (k, k, 1, c), (*lead, h, w, c))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def assert_close(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        # Sums of at most 9 * 480 terms of size 1 in float32, in another order.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("per_thread", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 3, 40, 96, 130, 768])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 11, 56, 63, 96])
def test_tile_occupies_all_threads_and_strips_are_short(width, channels, per_thread):
    tile = depthwise_gpu.choose_tile(width, channels, per_thread)
    assert tile.strips * tile.channels == 128 * per_thread
    # Triton's arrays must have a power of two of elements along every axis.
    assert tile.strips.bit_count() == tile.channels.bit_count() == 1
    assert min(width, 4) <= tile.width <= min(width, 8)


@pytest.mark.parametrize(
    ("width", "channels", "expected"),
    [(56, 96, (8, 32)), (28, 192, (7, 32)), (7, 768, (7, 32)), (12, 40, (6, 16))],
)
def test_tile_wastes_nothing_on_the_models_shapes(width, channels, expected):
    tile = depthwise_gpu.choose_tile(width, channels, per_thread=4)
    assert (tile.width, tile.channels) == expected


@pytest.mark.parametrize(
    ("devices", "ready"), [(["8.0"], True), (["9.0", "10.0"], True), (["9.0", "7.5"], False)]
)
def test_needs_ampere_or_newer(monkeypatch, devices, ready):
    devices = [SimpleNamespace(compute_capability=capability) for capability in devices]
    monkeypatch.setattr(jax, "local_devices", lambda backend: devices)
    assert depthwise_gpu.device_ready() is ready


def test_not_ready_without_a_gpu():
    assert depthwise_gpu.device_ready() is False


def lowered_for_cuda(monkeypatch, choice, dtype=jnp.float32, k=7):
    """The program of the convolution and its gradients, as for an H100 that is not here."""
    monkeypatch.setattr(depthwise_conv, "_CHOICE", choice)
    x, kernel = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((2, 9, 9, 40), (k, k, 1, 40)))

    def forward_and_gradients(x, kernel, dy):
        y, pull_back = jax.vjp(depthwise_conv.depthwise_conv, x, kernel)
        return y, *pull_back(dy)

    device = AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="cuda")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(forward_and_gradients).trace(x, kernel, x)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_lowers_to_triton_kernels(monkeypatch, dtype):
    text = lowered_for_cuda(monkeypatch, "pallas", dtype)
    # `depthwise_forward` computes the input gradient too.
    assert text.count("__gpu$xla.gpu.triton") >= 2
    assert "depthwise_forward" in text and "depthwise_filter_gradient" in text
    assert "stablehlo.convolution" not in text


@pytest.mark.parametrize(
    ("choice", "dtype", "k"),
    [("auto", jnp.float32, 7), ("xla", jnp.float32, 7), ("pallas", jnp.float32, 13)],
)
def test_falls_back_to_xla(monkeypatch, choice, dtype, k):
    text = lowered_for_cuda(monkeypatch, choice, dtype, k)
    assert "triton" not in text
    assert text.count("stablehlo.convolution") == 3


def test_float64_falls_back_to_xla(monkeypatch):
    with jax.enable_x64(True):
        text = lowered_for_cuda(monkeypatch, "pallas", jnp.float64)
    assert "triton" not in text and text.count("stablehlo.convolution") == 3


def test_arrays_beyond_32_bit_offsets_are_not_supported():
    kernel = jax.ShapeDtypeStruct((7, 7, 1, 64), jnp.bfloat16)
    assert depthwise_gpu.supported(jax.ShapeDtypeStruct((2047, 128, 128, 64), jnp.bfloat16), kernel)
    assert not depthwise_gpu.supported(
        jax.ShapeDtypeStruct((2048, 128, 128, 64), jnp.bfloat16), kernel
    )


def run_python(code, choice):
    environment = os.environ | {VARIABLE: choice}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_unknown_choice_is_an_error():
    result = run_python("import convnext_jax.ops.depthwise_conv", "palas")
    assert result.returncode != 0
    assert f"`{VARIABLE}` (=palas) must be one of auto, xla, pallas" in result.stderr


def test_pallas_is_not_imported_without_a_gpu():
    code = """if True:
        import sys, jax, jax.numpy as jnp
        from convnext_jax.ops.depthwise_conv import depthwise_conv
        assert not jax._src.xla_bridge.backends_are_initialized()
        x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))
        jax.grad(lambda x: depthwise_conv(x, kernel).sum())(x)
        assert "jax.experimental.pallas" not in sys.modules
    """
    result = run_python(code, "auto")
    assert result.returncode == 0, result.stderr


# The mesh axes of the batch; filters whole, or sharded by channel as fully sharded parameters are.
@pytest.mark.parametrize(
    ("axes", "filters"), [(("data",), None), (("data", "fsdp"), None), (("data", "fsdp"), "fsdp")]
)
def test_sharded_batch_stays_where_it_is(axes, filters):
    # Every size differs, so that a shape tells what it belongs to.
    x, kernel, dy = arguments(16, h=5, w=6, c=10)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    batch = NamedSharding(mesh, PartitionSpec(axes))
    whole = NamedSharding(mesh, PartitionSpec(None, None, None, filters))
    placed = [jax.device_put(a, s) for a, s in ((x, batch), (kernel, whole), (dy, batch))]
    program = jax.jit(pallas).lower(*placed).compile()
    text = program.as_text()
    gathered = [line for line in text.splitlines() if " all-gather(" in line]
    if filters is None:
        assert not gathered
    # A sharded filter is gathered; images, whose rows are 6 pixels of 10 channels, are not.
    assert not any("5,6,10" in line for line in gathered)
    assert "all-to-all" not in text and "collective-permute" not in text
    assert "all-reduce" in text  # The filter's gradient, added over the devices.
    y, dx, dkernel = program(*placed)
    assert y.sharding.is_equivalent_to(batch, 4) and dx.sharding.is_equivalent_to(batch, 4)
    assert_close((y, dx, dkernel), reference(x, kernel, dy))


@pytest.mark.parametrize(
    "in_axes", [(0, None, 0), (None, 0, None), (0, 0, 0), (0, 0, None)], ids=str
)
def test_vmap(in_axes):
    x, kernel, dy = arguments(3, 2)
    kernels = np.stack([kernel, 2 * kernel, kernel[::-1]])
    chosen = [
        batched if axis == 0 else batched[0]
        for axis, batched in zip(in_axes, (x, kernels, dy), strict=True)
    ]
    ours = jax.jit(jax.vmap(pallas, in_axes))(*chosen)
    assert_close(ours, jax.vmap(reference, in_axes)(*chosen))


def test_remat_and_vjp():
    x, kernel, dy = arguments(2)

    @jax.custom_vjp
    def convolve(x, kernel):
        return FORWARD(x, kernel)

    convolve.defvjp(
        lambda x, kernel: (FORWARD(x, kernel), (x, kernel)),
        lambda saved, dy: (INPUT_GRADIENT(*saved, dy), FILTER_GRADIENT(*saved, dy)),
    )
    y, pull_back = jax.vjp(jax.checkpoint(convolve), x, kernel)
    assert_close((y, *pull_back(dy)), reference(x, kernel, dy))
