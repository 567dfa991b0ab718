"""Depthwise convolution by matrices against sums in float64, and where it is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ops.test_depthwise_conv import data, forward_and_gradients, torch_results

from benchmarks import depthwise as benchmark
from convnext_jax.ops import depthwise_conv as ops
from convnext_jax.ops import depthwise_tpu

FORMS = {
    "toeplitz": (
        depthwise_tpu.toeplitz_forward,
        depthwise_tpu.toeplitz_input_gradient,
    ),
    "xla": (ops.xla_forward, ops.xla_input_gradient),
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
    forward, input_gradient = FORMS[form]
    return forward(x, kernel), input_gradient(x, kernel, dy)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_torch_in_float64(shape):
    x, kernel, dy = data(*shape)
    with jax.enable_x64(True):
        ours = results("toeplitz", *map(jnp.asarray, (x, kernel, dy)))
    assert all(result.dtype == np.float64 for result in ours)
    # 49 terms are added in another order, each rounded to 1e-16.
    for one, other in zip(ours, torch_results(x, kernel, dy)[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_bfloat16_is_as_close_to_float64_as_the_convolution(shape):
    arguments = [jnp.asarray(a, jnp.bfloat16) for a in data(*shape, np.float32)]
    expected = torch_results(*(np.asarray(a, np.float64) for a in arguments))[:2]
    far = {}
    for form in FORMS:
        found = results(form, *arguments)
        assert all(each.dtype == jnp.bfloat16 for each in found)
        far[form] = [
            np.linalg.norm(np.asarray(one, np.float64) - other) / np.linalg.norm(other)
            for one, other in zip(found, expected, strict=True)
        ]
    for name, ours, other in zip(("y", "dx"), far["toeplitz"], far["xla"], strict=True):
        # Both sum in float32, in another order, and round once, to 2^-9 of a number at most.
        assert ours <= 1.02 * other < 3e-3, (name, far)


def lowered(shape, platform, dtype=jnp.bfloat16):
    x, kernel, dy = data(*shape, np.float32)
    arguments = (x.astype(dtype), kernel, dy.astype(dtype))
    # A function of its own, or what was traced before would be found again.
    traced = jax.jit(lambda *given: forward_and_gradients(*given)).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((2, 56, 56, 3, 7), jnp.bfloat16, 2),
        ((2, 28, 28, 3, 7), jnp.bfloat16, 2),
        ((2, 14, 14, 3, 7), jnp.bfloat16, 0),
        ((2, 7, 7, 3, 7), jnp.bfloat16, 0),
        ((2, 55, 56, 3, 7), jnp.bfloat16, 0),  # rows that make no blocks
        ((2, 56, 56, 3, 5), jnp.bfloat16, 0),
        ((2, 56, 56, 3, 7), jnp.float32, 0),
    ],
    ids=str,
)
def test_where_it_is_chosen(shape, dtype, expected, monkeypatch):
    """Forward and for the images' gradient so many are of blocks on TPUs, none elsewhere."""

    def of_blocks(platform):
        text = lowered(shape, platform, dtype)
        convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        pixels = depthwise_tpu.rows_of_block(*shape[1:3]) * shape[2]
        # Their channels and pixels are one dimension.
        return sum(f"x{shape[3] * pixels}x" in line for line in convolutions)

    assert of_blocks("tpu") == 0
    monkeypatch.setattr(ops, "_CHOICE", "toeplitz")
    assert of_blocks("tpu") == expected
    assert of_blocks("cuda") == of_blocks("cpu") == 0


def test_the_benchmark_times_it_on_tpus():
    assert set(benchmark.implementations("tpu", (2, 56, 56, 8))) >= {"xla", "toeplitz"}
    # No block of rows as long as these fits a matrix unit.
    assert "toeplitz" not in benchmark.implementations("tpu", (2, 136, 136, 8))
    assert "toeplitz" not in benchmark.implementations("cpu", (2, 56, 56, 8))
