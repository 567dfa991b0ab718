"""Layer normalisation against PyTorch's, its derivatives, and what jit makes of it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from elsewhere import as_on
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from convnext_jax.ops.layer_norm import layer_norm

EPS = 1e-6
SHAPES = [(2, 3), (1, 1, 1, 5), (4, 3, 5, 16)]


def data(shape, dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = (shape, shape[-1:], shape[-1:], shape)
    x, scale, bias, dy = (rng.standard_normal(s).astype(dtype) for s in shapes)
    return 3 * x + 10, scale, bias, dy


def value_and_gradients(x, scale, bias, dy):
    y, pull_back = jax.vjp(lambda *a: layer_norm(*a, EPS), x, scale, bias)
    return y, *pull_back(dy)


def torch_results(x, scale, bias, dy):
    from oracles import torch

    leaves = [torch.tensor(np.asarray(a, np.float64)).requires_grad_() for a in (x, scale, bias)]
    x, scale, bias = leaves
    y = torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias, EPS)
    y.backward(torch.tensor(np.asarray(dy, np.float64)))
    return [y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]


def assert_close(ours, theirs, tolerance):
    for name, one, other in zip(("y", "dx", "dscale", "dbias"), ours, theirs, strict=True):
        assert one.shape == other.shape, name
        error = np.max(np.abs(np.asarray(one, np.float64) - np.asarray(other)))
        assert error <= tolerance * max(1, np.max(np.abs(other))), (name, error)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
# Sums of at most 60 terms around 10, each rounded to 2e-16 and 1e-7 of its size.
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_agrees_with_torch(shape, dtype, tolerance):
    arguments = data(shape, dtype)
    with jax.enable_x64(dtype is np.float64):
        ours = jax.jit(value_and_gradients)(*arguments)
    assert all(result.dtype == dtype for result in ours)
    assert_close(ours, torch_results(*arguments), tolerance)


def test_low_precision_input_is_normalised_in_float32():
    x, scale, bias, dy = data((4, 3, 5, 16), np.float32)
    x = jnp.asarray(x, jnp.bfloat16)
    y, dx, dscale, dbias = value_and_gradients(x, scale, bias, dy)
    assert dx.dtype == jnp.bfloat16
    assert all(result.dtype == np.float32 for result in (y, dscale, dbias))
    expected = torch_results(x, scale, bias, dy)
    # Nothing but `dx` is ever rounded to bfloat16.
    assert_close((y, expected[1], dscale, dbias), expected, 1e-5)
    assert_close((y, dx, dscale, dbias), expected, 2.0**-8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_form_for_gpus_agrees(dtype):
    x, *others = data((4, 3, 5, 16), np.float32)
    arguments = jnp.asarray(x, dtype), *others
    found = as_on("cuda", value_and_gradients, *arguments)
    here = jax.jit(value_and_gradients)(*arguments)
    assert [r.dtype for r in found] == [r.dtype for r in here]
    # Sums of 60 float32 terms in another order; `dx` is rounded to bfloat16 once in both.
    rounding = 2.0**-8 if dtype == "bfloat16" else 1e-5
    assert_close((found[0], here[1], *found[2:]), here, 1e-5)
    assert_close(found, here, rounding)


def test_gpus_write_statistics_and_gradients_as_they_are():
    x, *others = data((4, 3, 5, 16), np.float32)
    traced = jax.jit(value_and_gradients).trace(jnp.asarray(x, jnp.bfloat16), *others)
    counts = {}
    for platform in ("cpu", "tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        barriers = re.findall(r"optimization_barrier.* : (\S+)", text)
        counts[platform] = sorted(barriers)
    # Mean, factor, and the gradient of the input in its own dtype.
    written = ["tensor<4x3x5x16xbf16>", "tensor<4x3x5x1xf32>", "tensor<4x3x5x1xf32>"]
    assert counts == {"cpu": [], "tpu": [], "cuda": written}


def test_large_mean_does_not_cost_digits():
    x = np.float32(1000) + np.arange(8, dtype=np.float32)
    y = layer_norm(x[None], np.ones(8, np.float32), np.zeros(8, np.float32), EPS)[0]
    # Mean and deviations are exact in float32; E[x^2] - E[x]^2 would be wrong in the third place.
    np.testing.assert_allclose(y, (x - x.mean()) / np.sqrt(5.25), rtol=1e-6)


def test_higher_derivatives_and_vmap():
    with jax.enable_x64(True):
        x, scale, bias, _ = data((3, 2, 5))
        check_grads(lambda *a: layer_norm(*a, EPS), (x, scale, bias), order=2, modes=["rev"])
        one_by_one = jax.vmap(lambda row: layer_norm(row, scale, bias, EPS))(x)
        np.testing.assert_allclose(one_by_one, layer_norm(x, scale, bias, EPS), atol=1e-14)


def test_sharded_batch_stays_where_it_is():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    batch = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    arguments = data((16, 3, 5, 8), np.float32)
    placed = [
        jax.device_put(a, s) for a, s in zip(arguments, (batch, whole, whole, batch), strict=True)
    ]
    program = jax.jit(value_and_gradients).lower(*placed).compile()
    text = program.as_text()
    assert "all-reduce" in text  # The gradients of scale and bias.
    assert "all-gather" not in text and "all-to-all" not in text
    # Sums of at most 240 float32 terms in another order.
    assert_close(program(*placed), [np.asarray(r) for r in value_and_gradients(*arguments)], 1e-5)
