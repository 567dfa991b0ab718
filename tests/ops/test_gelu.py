"""The exact GELU against PyTorch's, its derivatives, and what the backward pass keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from oracles import torch

from convnext_jax import create_model
from convnext_jax.ops import gelu as module
from convnext_jax.ops.gelu import by_erf, by_tanh, gelu

POINTS = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-30, 40.0, -40.0]])


def torch_results(x, dy):
    x = torch.tensor(x).requires_grad_()
    y = torch.nn.functional.gelu(x)
    y.backward(torch.tensor(dy))
    assert x.grad is not None
    return y.detach().numpy(), x.grad.numpy()


# In units of the rounding of numbers as large as `x` (1 below that): a handful of roundings.
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_torch(dtype):
    x = POINTS.astype(dtype)
    dy = np.cos(POINTS).astype(dtype)
    # PyTorch in float64 for both: what is measured is this function's own error.
    expected = torch_results(x.astype(np.float64), dy.astype(np.float64))
    with jax.enable_x64(dtype is np.float64):
        y, pull_back = jax.vjp(jax.jit(gelu), x)
        ours = y, pull_back(dy)[0]
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == dtype
        error = np.abs(np.asarray(one, np.float64) - other) / np.maximum(1, np.abs(x))
        assert error.max() < 4 * np.finfo(dtype).eps


def test_low_precision_is_rounded_once():
    x = jnp.asarray(POINTS, jnp.bfloat16)
    y = gelu(x)
    assert y.dtype == jnp.bfloat16
    exact = torch_results(np.asarray(x, np.float64), np.ones(x.shape))[0]
    # Half a unit in the last of 8 binary digits; and float32's error where numbers cancel.
    error = np.abs(np.asarray(y, np.float64) - exact)
    assert np.all(error <= 2.0**-8 * np.abs(exact) + 1e-6)


def test_infinity_and_nan():
    y = np.asarray(gelu(jnp.asarray([np.inf, np.nan, -1e30], jnp.float32)))
    assert y[0] == np.inf and np.isnan(y[1]) and y[2] == 0


def test_higher_derivatives_and_vmap():
    with jax.enable_x64(True):
        x = jnp.linspace(-3, 3, 24).reshape(4, 6)
        check_grads(gelu, (x,), order=3, modes=["rev"])
        np.testing.assert_array_equal(jax.vmap(gelu)(x), gelu(x))
        second = jax.vmap(jax.vmap(jax.grad(jax.grad(gelu))))(x)
        # d2/dx2 of x * Phi(x) is (2 - x^2) * phi(x), in float64.
        phi = jnp.exp(-x * x / 2) / np.sqrt(2 * np.pi)
        np.testing.assert_allclose(second, (2 - x * x) * phi, atol=1e-14)


def test_backward_pass_keeps_its_input_alone():
    x = jnp.ones((4, 8), jnp.bfloat16)
    _, pull_back = jax.vjp(gelu, x)
    kept = jax.tree.leaves(pull_back)
    assert [(k.shape, k.dtype) for k in kept] == [(x.shape, x.dtype)]


def test_by_tanh_is_phi():
    x = POINTS.astype(np.float32)
    exact = torch.special.ndtr(torch.tensor(POINTS)).numpy()
    error = np.abs(np.asarray(by_tanh(x), np.float64) - exact)
    assert error.max() < 7e-6  # what the polynomial is off by; rounding is 1e-7
    assert np.abs(error * POINTS)[np.abs(POINTS) < 20].max() < 2.5e-5
    with jax.enable_x64(True):
        np.testing.assert_allclose(by_erf(POINTS), exact, atol=2e-16)
    ends = np.asarray(by_tanh(np.array([np.inf, -np.inf, np.nan], np.float32)))
    assert ends[0] == 1 and ends[1] == 0 and np.isnan(ends[2])


@pytest.mark.parametrize("choice", ["erf", "tanh"])
def test_it_can_be_chosen(choice, monkeypatch):
    monkeypatch.setattr(module, "_CHOICE", choice)
    names = {"erf": "erf", "tanh": "tanh"}
    for dtype, platform in ((jnp.bfloat16, "tpu"), (jnp.bfloat16, "cpu"), (jnp.float32, "tpu")):
        found = functions(dtype, platform)
        assert found == {names[choice] if dtype == jnp.bfloat16 else "erf"}


def test_tanh_is_for_bfloat16_on_tpus():
    assert functions(jnp.bfloat16, "tpu") == {"tanh"}
    for dtype, platform in (
        (jnp.float32, "tpu"),
        (jnp.float16, "tpu"),
        (jnp.bfloat16, "cpu"),
        (jnp.bfloat16, "cuda"),
    ):
        assert functions(dtype, platform) == {"erf"}


def functions(dtype, platform):
    """Which of erf and tanh a program has that is made for a platform, with its gradient."""
    x = jax.ShapeDtypeStruct((8, 128), dtype)
    traced = jax.jit(lambda x, dy: jax.vjp(gelu, x)[1](dy)).trace(x, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return {name for name in ("erf", "tanh") if f".{name} " in text}


def test_models_in_bfloat16_are_as_close_to_float32_with_either(monkeypatch):
    """What rounding to bfloat16 does to a model is not changed by what Phi is off by."""
    small = {"depths": (2, 2), "dims": (32, 64), "kernel_size": 3}
    images = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
    weights = jax.random.normal(jax.random.key(1), (8, 10))

    def results(dtype, choice):
        monkeypatch.setattr(module, "_CHOICE", choice)
        # Branches of a size that can be seen: the initial 1e-6 would hide what they do.
        model = create_model("convnext_atto", 10, dtype=dtype, layer_scale_init=1.0, **small)
        graph, params = nnx.split(model)
        params = jax.tree.map(lambda p: p * 5 if p.ndim > 1 else p, params)  # activations of 1

        @jax.jit  # a program of its own for each choice
        def run(params):
            def loss(params):
                logits = nnx.merge(graph, params)(images)
                return (logits * weights).sum(), logits

            return jax.grad(loss, has_aux=True)(params)

        gradients, logits = run(params)
        return logits, np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradients)])

    exact = results("float32", "erf")
    away = {
        choice: [
            np.linalg.norm(one - other) / np.linalg.norm(other)
            for one, other in zip(results("bfloat16", choice), exact, strict=True)
        ]
        for choice in ("erf", "tanh")
    }
    for erf, tanh in zip(away["erf"], away["tanh"], strict=True):
        # bfloat16 has 3 digits, so both are 1e-3 and more; which rounding goes which way is chance.
        assert 1e-3 < erf < 0.1
        assert tanh < 1.1 * erf, away
