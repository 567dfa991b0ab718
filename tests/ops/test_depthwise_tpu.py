"""Depthwise convolution by matrices against sums in float64, and where it is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from ops.test_depthwise_conv import data, forward_and_gradients, torch_results

from benchmarks import depthwise as benchmark
from convnext_jax.ops import depthwise_conv as ops
from convnext_jax.ops import depthwise_tpu
from convnext_jax.ops.few_images import batch_over
from convnext_jax.planning.programs import read_program

FORMS = {
    "toeplitz": (
        depthwise_tpu.toeplitz_forward,
        depthwise_tpu.toeplitz_input_gradient,
        depthwise_tpu.toeplitz_filter_gradient,
    ),
    "xla": (ops.xla_forward, ops.xla_input_gradient, ops.xla_filter_gradient),
}
# Stages at 224 and 384 pixels, blocks of 2, 4, 7, 1, 4 and 8 rows; not square; fewer blocks than a
# filter sees; another filter.
SHAPES = [
    (2, 56, 56, 3, 7),
    (1, 28, 28, 5, 7),
    (3, 14, 14, 4, 7),
    (1, 96, 96, 2, 7),
    (2, 24, 32, 3, 7),
    (1, 8, 16, 2, 7),
    (2, 12, 20, 3, 5),
]


def results(form, x, kernel, dy):
    forward, *gradients = FORMS[form]
    return forward(x, kernel), *(gradient(x, kernel, dy) for gradient in gradients)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_torch_in_float64(shape):
    x, kernel, dy = data(*shape)
    with jax.enable_x64(True):
        ours = results("toeplitz", *map(jnp.asarray, (x, kernel, dy)))
    assert all(result.dtype == np.float64 for result in ours)
    # Terms are added in another order, each rounded to 1e-16: 49, for a filter up to 9,216.
    far = (1e-13, 1e-13, 1e-11)
    for one, other, most in zip(ours, torch_results(x, kernel, dy), far, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=most)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_bfloat16_is_as_close_to_float64_as_the_convolution(shape):
    arguments = [jnp.asarray(a, jnp.bfloat16) for a in data(*shape, np.float32)]
    expected = torch_results(*(np.asarray(a, np.float64) for a in arguments))
    far = {}
    for form in FORMS:
        found = results(form, *arguments)
        assert all(each.dtype == jnp.bfloat16 for each in found)
        far[form] = [
            np.linalg.norm(np.asarray(one, np.float64) - other) / np.linalg.norm(other)
            for one, other in zip(found, expected, strict=True)
        ]
    for name, ours, other in zip(("y", "dx", "dkernel"), far["toeplitz"], far["xla"], strict=True):
        # Both sum in float32, in another order, and round once, to 2^-9 of a number at most.
        assert ours <= 1.02 * other < 3e-3, (name, far)


def test_devices_add_gradients_of_filters_not_of_their_matrices():
    devices = 4
    mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])
    batch, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    arguments = [jnp.asarray(a, jnp.float32) for a in data(8, 28, 28, 5, 7)]

    def gradient(*given):
        with batch_over(mesh):
            return depthwise_tpu.toeplitz_filter_gradient(*given)

    sharded = jax.jit(gradient, in_shardings=(batch, whole, batch), out_shardings=whole)
    compiled = sharded.lower(*arguments).compile()
    (exchange,) = read_program(compiled.as_text()).collectives
    assert exchange.kind == "all-reduce" and exchange.bytes == 49 * 5 * 4
    expected = torch_results(*(np.asarray(a, np.float64) for a in arguments))[2]
    # Sums of 6,272 products of order 1 in float32.
    np.testing.assert_allclose(compiled(*arguments), expected, rtol=0, atol=2e-4)


def lowered(shape, platform, dtype=jnp.bfloat16):
    x, kernel, dy = data(*shape, np.float32)
    arguments = (x.astype(dtype), kernel, dy.astype(dtype))
    # A function of its own, or what was traced before would be found again.
    traced = jax.jit(lambda *given: forward_and_gradients(*given)).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def of_blocks(shape, platform, dtype=jnp.bfloat16):
    """How many convolutions are of blocks: their channels and pixels are one dimension."""
    text = lowered(shape, platform, dtype)
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    pixels = depthwise_tpu.rows_of_block(*shape[1:3]) * shape[2]
    return sum(f"x{shape[3] * pixels}x" in line for line in convolutions)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((3, 56, 56, 3, 7), jnp.bfloat16, 3),
        ((3, 28, 28, 3, 7), jnp.bfloat16, 3),
        ((3, 14, 14, 3, 7), jnp.bfloat16, 1),  # the filter's gradient
        ((2, 56, 56, 3, 7), jnp.bfloat16, 2),  # of two images that has a form of its own
        ((3, 7, 7, 3, 7), jnp.bfloat16, 0),
        ((3, 55, 56, 3, 7), jnp.bfloat16, 0),  # rows that make no blocks
        ((3, 56, 56, 3, 5), jnp.bfloat16, 0),
        ((3, 56, 56, 3, 7), jnp.float32, 0),
    ],
    ids=str,
)
def test_where_it_is_chosen(shape, dtype, expected, monkeypatch):
    """Forward and for the gradients so many are of blocks on TPUs, none elsewhere."""

    assert of_blocks(shape, "tpu", dtype) == 0
    monkeypatch.setattr(ops, "_CHOICE", "toeplitz")
    assert of_blocks(shape, "tpu", dtype) == expected
    assert of_blocks(shape, "cuda", dtype) == of_blocks(shape, "cpu", dtype) == 0


def test_many_images_on_a_device_have_it_by_default(monkeypatch):
    many, fewer = (256, 28, 28, 3, 7), (254, 28, 28, 3, 7)
    assert of_blocks(many, "tpu") == 0  # on which of several devices they are, nothing says
    with batch_over(AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))):
        # Not the filters' gradients. The others may be one function of the program.
        assert of_blocks(many, "tpu") in (1, 2)
        assert of_blocks(fewer, "tpu") == of_blocks(many, "cpu") == of_blocks(many, "cuda") == 0
        assert of_blocks(many, "tpu", jnp.float32) == 0
        monkeypatch.setattr(ops, "_CHOICE", "xla")
        assert of_blocks(many, "tpu") == 0


def test_the_benchmark_times_it_on_tpus():
    assert set(benchmark.implementations("tpu", (2, 56, 56, 8))) >= {"xla", "toeplitz"}
    # No block of rows as long as these fits a matrix unit.
    assert "toeplitz" not in benchmark.implementations("tpu", (2, 136, 136, 8))
    assert "toeplitz" not in benchmark.implementations("cpu", (2, 56, 56, 8))
