"""Layers one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convnext_jax.models import layers
from convnext_jax.models.registry import create_model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_norm_as_in_torch(dtype):
    from oracles import torch

    rng = np.random.default_rng(0)
    # A mean 100 times the deviation, where the difference of two means would lose four digits of
    # the variance, and deviations down to the square root of epsilon, where epsilon shows.
    x = rng.standard_normal((64, 16)) * np.logspace(-3, 0, 64)[:, None]
    x[:32] += 0.1
    x[32:] += 100
    x = jnp.asarray(x, jnp.float32).astype(dtype)
    norm = layers.LayerNorm(16, 1e-6, jnp.dtype(dtype), nnx.Rngs(0))
    scale, bias = rng.standard_normal((2, 16)).astype(np.float32)
    norm.scale[...], norm.bias[...] = scale, bias  # type: ignore
    y = norm(x)
    expected = torch.nn.functional.layer_norm(
        torch.tensor(np.asarray(x, np.float64)),
        (16,),
        torch.tensor(scale, dtype=torch.float64),
        torch.tensor(bias, dtype=torch.float64),
        eps=1e-6,
    ).numpy()
    assert y.dtype == jnp.dtype(dtype)
    # float32: the mean of values near 100 is known to 4e-6, against deviations from 0.03 up.
    # bfloat16: one rounding of the result, and none before.
    atol, rtol = (2e-3, 0) if dtype == "float32" else (1e-4, 1.01 * 2**-8)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=atol, rtol=rtol)


def test_drop_path_keeps_the_expectation():
    x = jnp.full((4096, 1, 1, 2), 3.0)
    y = np.asarray(layers.drop_path(x, jax.random.key(0), 0.3))
    kept = y[:, 0, 0, 0] != 0
    # Whole examples are dropped, and those kept are divided by the keep probability.
    np.testing.assert_array_equal(y[:, 0, 0, 0], y[:, 0, 0, 1])
    np.testing.assert_allclose(y[kept], 3 / 0.7, rtol=1e-6)
    # Four standard deviations of the mean of 4096 draws.
    assert kept.mean() == pytest.approx(0.7, abs=4 * (0.3 * 0.7 / 4096) ** 0.5)
    assert layers.drop_path(x.astype(jnp.bfloat16), jax.random.key(0), 0.3).dtype == jnp.bfloat16


def test_drop_path_rates_as_in_the_reference():
    from oracles import torch

    expected = torch.linspace(0, 0.4, 18, dtype=torch.float64).numpy()
    np.testing.assert_allclose(layers.drop_path_rates(0.4, 18), expected, atol=1e-15)
    assert layers.drop_path_rates(0.4, 1) == [0.0]
    assert layers.drop_path_rates(0.0, 3) == [0.0, 0.0, 0.0]


def test_models_are_parameters_and_a_comparable_definition():
    build = lambda: create_model("convnext_atto", drop_path=0.1)  # noqa: E731
    definition, parameters, rest = nnx.split(nnx.eval_shape(build), nnx.Param, ...)
    again = nnx.split(nnx.eval_shape(build))[0]
    assert definition == again and hash(definition) == hash(again)
    assert len(jax.tree.leaves(parameters)) == 128 and not jax.tree.leaves(rest)
