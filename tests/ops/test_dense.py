"""The matrix product of activations and weights: values, gradients, what platforms are given."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convnext_jax.ops.dense import dense


def data(dtype, shape=(3, 2, 4, 24), features=40):
    rng = np.random.default_rng(0)
    shapes = (shape, (shape[-1], features), (*shape[:-1], features))
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def value_and_gradients(x, kernel, dy):
    y, pull_back = jax.vjp(dense, x, kernel)
    return y, *pull_back(dy)


def exact(x, kernel, dy):
    x, kernel, dy = (np.asarray(a, np.float64) for a in (x, kernel, dy))
    flat = (-1, x.shape[-1]), (-1, dy.shape[-1])
    return x @ kernel, dy @ kernel.T, x.reshape(flat[0]).T @ dy.reshape(flat[1])


# Sums of at most 40 products: in float32 and wider each rounded to 1e-7 or 1e-16, in bfloat16 and
# float16 exact, the sum rounded once to 8 or 11 binary places.
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float64", 1e-14), ("float32", 1e-6), ("bfloat16", 2.0**-8), ("float16", 2.0**-11)],
)
def test_value_and_gradients(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        arguments = data(dtype)
        ours = jax.jit(value_and_gradients)(*arguments)
    for one, other in zip(ours, exact(*arguments), strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        assert np.abs(np.asarray(one, np.float64) - other).max() < tolerance * np.abs(other).max()


def test_vmap_and_second_derivative():
    x, kernel, _ = data("bfloat16")
    np.testing.assert_array_equal(jax.vmap(dense, (0, None))(x, kernel), dense(x, kernel))

    def energy(x, kernel):
        return jnp.sum(jnp.square(dense(x, kernel).astype(jnp.float32))) / 2

    # The second derivative along a direction v is kernel @ kernel.T @ v.
    v = jnp.ones_like(x)
    along = jax.grad(lambda x: jnp.sum(jax.grad(energy)(x, kernel) * v).astype(jnp.float32))(x)
    wide = np.asarray(kernel, np.float64)
    expected = np.broadcast_to(wide @ wide.sum(0), x.shape)
    # Three roundings to 8 binary places.
    assert np.abs(np.asarray(along, np.float64) - expected).max() < 2**-6 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("platform", "result"), [("cpu", "f32"), ("tpu", "bf16"), ("cuda", "bf16")]
)
def test_platforms_are_given_products_they_do_fast(platform, result):
    traced = jax.jit(value_and_gradients).trace(*data("bfloat16"))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    results = re.findall(r"stablehlo\.dot_general.*-> tensor<[\dx]*?(b?f\d+)>", text)
    assert results == [result] * 3
