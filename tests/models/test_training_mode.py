"""Stochastic depth, recomputation, bfloat16, and gradients that reach every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_models import functional, random_images, random_params

from convnext_jax import create_model
from convnext_jax.errors import InputError
from convnext_jax.tree import flatten_with_names

# Two stages of three blocks in all compile fast, and have everything that four have.
SMALL = {"depths": (1, 2), "dims": (8, 16), "num_classes": 5}


def small(**overrides):
    apply, shapes = functional("convnext_atto", **SMALL, **overrides)
    return apply, random_params(shapes)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
        ("convnext_isotropic_small", {"depths": (2,)}),
        ("convnextv2_atto", {"depths": (1, 2), "dims": (8, 16)}),
    ],
)
def test_every_parameter_has_a_gradient(name, overrides):
    apply, shapes = functional(name, drop_path=0.2, **overrides)
    params = random_params(shapes)

    def loss(params, images, key):
        return jnp.sum(apply(params, images, key) ** 2)

    gradients = jax.jit(jax.grad(loss))(params, random_images(4, 64, 64, 3), jax.random.key(3))
    for leaf_name, gradient in flatten_with_names(gradients).items():
        assert np.all(np.isfinite(gradient)), leaf_name
        assert np.any(gradient), leaf_name
        assert gradient.dtype == jnp.float32


def test_rate_zero_is_inference():
    apply, params = small(drop_path=0.0)
    images = random_images(2, 32, 32, 3)
    traced = str(jax.make_jaxpr(apply)(params, images, jax.random.key(0)))
    assert "random_bits" not in traced and "fold_in" not in traced
    assert traced.count("\n") == str(jax.make_jaxpr(apply)(params, images)).count("\n")


def test_key_decides():
    apply, params = small(drop_path=0.5)
    images = random_images(16, 32, 32, 3)
    apply = jax.jit(apply)
    first, again, other = (apply(params, images, jax.random.key(i)) for i in (0, 0, 1))
    inference = apply(params, images)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other) and np.any(first != inference)


def test_blocks_draw_independently():
    # Residual paths that are constants, one power of 2 per block: the output says which were kept.
    depth, n = 5, 2000
    apply, shapes = functional(
        "convnext_isotropic_small", depths=(depth,), dims=(1,), drop_path=0.5, num_classes=0
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    keep = 1 - 0.5 * np.arange(depth) / (depth - 1)
    for index in range(depth):
        params["blocks"][index]["pwconv2"]["bias"][:] = 2.0**index * keep[index]
    features = jax.jit(lambda p, x, k: apply(p, x, k, method="features")[0])
    codes = np.asarray(features(params, np.zeros((n, 16, 16, 3), np.float32), jax.random.key(0)))
    kept = np.rint(codes.reshape(n)).astype(int)[:, None] >> np.arange(depth) & 1
    # Each block keeps as often as its own rate says; five standard deviations of a mean of n draws.
    np.testing.assert_allclose(kept.mean(0), keep, atol=5 * 0.5 / n**0.5)
    # Uncorrelated; five standard deviations of a correlation of n pairs. Block 0 always keeps.
    correlations = np.corrcoef(kept[:, 1:].T) - np.eye(depth - 1)
    assert np.abs(correlations).max() < 5 / n**0.5


def loss_and_gradients(**overrides):
    apply, params = small(**overrides)
    images, key = random_images(4, 32, 32, 3), jax.random.key(5)

    def loss(params, images, key):
        logits = apply(params, images, key)
        return jnp.mean(logits**2), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, images, key)
    return logits, flatten_with_names(gradients)


def relative_errors(ours, theirs):
    return {
        name: np.max(np.abs(np.subtract(ours[name], theirs[name]))) / np.max(np.abs(theirs[name]))
        for name in theirs
    }


def test_remat_and_bfloat16():
    logits, gradients = loss_and_gradients(drop_path=0.3)
    recomputed, same_gradients = loss_and_gradients(drop_path=0.3, remat=True)
    # The same operations in float32, which XLA may fuse, and so round, differently.
    np.testing.assert_allclose(recomputed, logits, rtol=1e-5, atol=1e-5)
    assert max(relative_errors(same_gradients, gradients).values()) < 1e-5
    rough, rough_gradients = loss_and_gradients(drop_path=0.3, dtype="bfloat16")
    # One rounding to bfloat16 is up to 0.4 %, and there are a dozen one after another, some before
    # values that cancel. Parameters, their gradients and the logits are float32.
    assert rough.dtype == jnp.float32
    assert relative_errors({"": rough}, {"": logits})[""] < 0.03
    assert all(gradient.dtype == jnp.float32 for gradient in rough_gradients.values())
    assert max(relative_errors(rough_gradients, gradients).values()) < 0.1


def test_remat_keeps_less():
    images = jnp.ones((2, 64, 64, 3))

    def residuals(remat):
        apply, params = small(remat=remat)
        _, pull_back = jax.eval_shape(lambda p: jax.vjp(lambda p: apply(p, images), p), params)
        return sum(leaf.size for leaf in jax.tree.leaves(pull_back))

    assert residuals(remat=True) < residuals(remat=False) / 2


def test_no_head_gives_the_normalised_embedding():
    apply, params = small()
    images = random_images(2, 40, 33, 3)
    without, shapes = functional("convnext_atto", **{**SMALL, "num_classes": 0})
    headless = {name: value for name, value in params.items() if name != "head"}
    assert jax.tree.structure(shapes) == jax.tree.structure(headless)
    embedding = jax.jit(without)(headless, images)
    assert embedding.shape == (2, 16) and embedding.dtype == jnp.float32
    logits = embedding @ params["head"]["kernel"] + params["head"]["bias"][None]
    # The same products, once outside the program.
    np.testing.assert_allclose(jax.jit(apply)(params, images), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["convnext_atto", "convnext_isotropic_small"])
def test_switches_that_would_change_nothing_are_refused(name):
    model = nnx.eval_shape(lambda: create_model(name))
    with pytest.raises(InputError, match="a call trains when it is given a key"):
        model.train()
    model.eval()  # what a call without a key is anyway


def test_what_is_no_array_or_generator():
    model = create_model("convnext_atto", 3, depths=(1, 1, 1, 1), dims=(4, 4, 4, 4))
    with pytest.raises(InputError, match="`key` .=0. must be made by `jax.random.key`"):
        model(np.zeros((1, 32, 32, 3), np.float32), key=0)
    with pytest.raises(InputError, match="`images` .=list. must be an array of JAX or NumPy"):
        model([[0.0]])
    with pytest.raises(InputError, match="`rngs` .=0. must be `nnx.Rngs`"):
        create_model("convnext_atto", 3, 0)
