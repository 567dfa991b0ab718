"""3x3 convolutions by Winograd's filtering against PyTorch's, and where they are chosen."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from convnext_jax.ops import winograd
from convnext_jax.ops.conv import conv

SAME = ((1, 1), (1, 1))
# Height, width and padding: odd and even, uneven, cut off, one result, and none but of zeros.
CASES = {
    "odd": (7, 9, SAME),
    "even": (8, 6, SAME),
    "no padding": (5, 6, ((0, 0), (0, 0))),
    "uneven": (6, 7, ((2, 1), (0, 1))),
    "cut": (8, 9, ((-1, 2), (3, -2))),
    "one place": (1, 1, SAME),
    "one result": (3, 3, ((0, 0), (0, 0))),
}


def arrays(n, height, width, padding, channels, features):
    rng = np.random.default_rng(0)
    rows, columns = height + sum(padding[0]) - 2, width + sum(padding[1]) - 2
    x = rng.standard_normal((n, height, width, channels))
    kernel = rng.standard_normal((3, 3, channels, features))
    return x, kernel, rng.standard_normal((n, rows, columns, features))


def by_torch(x, kernel, dy, padding):
    """Results and gradients in float64."""
    x, dy = (torch.tensor(a, dtype=torch.float64).permute(0, 3, 1, 2) for a in (x, dy))
    kernel = torch.tensor(kernel, dtype=torch.float64).permute(3, 2, 0, 1).requires_grad_()
    x.requires_grad_()
    padded = torch.nn.functional.pad(x, (*padding[1], *padding[0]))
    y = torch.nn.functional.conv2d(padded, kernel)
    dx, dk = torch.autograd.grad(y, (x, kernel), dy)
    y, dx = (a.detach().permute(0, 2, 3, 1).numpy() for a in (y, dx))
    return y, dx, dk.permute(2, 3, 1, 0).numpy()


def forward_and_gradients(x, kernel, dy, padding):
    y, pull_back = jax.vjp(lambda x, kernel: conv(x, kernel, 1, padding), x, kernel)
    return y, *pull_back(dy)


@pytest.fixture
def any_size(monkeypatch):
    monkeypatch.setattr(winograd, "_CHANNELS", 0)
    monkeypatch.setattr(winograd, "_TILES", 0)


@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_those_of_torch(case, any_size):
    height, width, padding = CASES[case]
    data = [a.astype(np.float32) for a in arrays(2, height, width, padding, 5, 6)]
    expected = by_torch(*data, padding)
    for ours, wanted in zip(forward_and_gradients(*data, padding), expected, strict=True):
        assert ours.dtype == np.float32
        # Sums of at most 126 products of order 1 in float32.
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5)


def test_it_rounds_about_as_much_as_convolutions(monkeypatch):
    """Root mean square, in the results' spread: 5e-7 of 256 channels.

    XLA's convolutions 4e-7, or 9e-7 as they are compiled outside of tests.
    """
    data = [a.astype(np.float32) for a in arrays(2, 32, 32, SAME, 256, 256)]
    expected = by_torch(*data, SAME)

    def errors():
        ours = jax.jit(lambda *data: forward_and_gradients(*data, SAME))(*data)
        return [
            np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std()
            for found, wanted in zip(ours, expected, strict=True)
        ]

    found = errors()
    monkeypatch.setattr(winograd, "_CHANNELS", np.inf)
    others = errors()
    assert others != found
    np.testing.assert_array_less(found, 1.5 * np.asarray(others))


@pytest.mark.parametrize(
    ("platform", "shape", "features", "stride", "groups", "dtype", "chosen"),
    [
        ("cpu", (8, 16, 16, 128), 256, 1, 1, jnp.float32, True),
        ("tpu", (8, 16, 16, 128), 256, 1, 1, jnp.float32, False),
        ("cuda", (8, 16, 16, 128), 256, 1, 1, jnp.float32, False),
        ("cpu", (8, 16, 16, 128), 256, 1, 1, jnp.bfloat16, False),
        ("cpu", (8, 16, 16, 128), 256, 2, 1, jnp.float32, False),
        ("cpu", (8, 16, 16, 512), 512, 1, 2, jnp.float32, False),
        ("cpu", (8, 16, 16, 128), 128, 1, 1, jnp.float32, False),
        ("cpu", (1, 16, 16, 256), 256, 1, 1, jnp.float32, False),
    ],
    ids=str,
)
def test_where_it_is_chosen(platform, shape, features, stride, groups, dtype, chosen):
    x = jax.ShapeDtypeStruct(shape, dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, shape[-1] // groups, features), jnp.float32)

    def gradients(x, kernel):
        y, pull_back = jax.vjp(lambda x, k: conv(x, k, stride, SAME, groups), x, kernel)
        return y, pull_back(jnp.ones_like(y))

    lowered = jax.jit(gradients).trace(x, kernel).lower(lowering_platforms=(platform,))
    products = lowered.as_text().count("stablehlo.dot_general")
    assert (products == 3 * 16) == chosen and chosen == (products > 3)


def test_any_number_of_images_is_exported_as_a_convolution():
    (n,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, 16, 16, 128), np.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 128, 256), np.float32)
    exported = jax.export.export(jax.jit(lambda x, k: conv(x, k, 1, SAME)))(x, kernel)
    assert "stablehlo.convolution" in exported.mlir_module()


def test_images_stay_on_their_devices():
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    batch, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    x, kernel, dy = (jnp.asarray(a, jnp.float32) for a in arrays(4, 22, 24, SAME, 128, 256))

    @functools.partial(
        jax.jit, in_shardings=(batch, whole, batch), out_shardings=(batch, batch, whole)
    )
    def step(x, kernel, dy):
        return forward_and_gradients(x, kernel, dy, SAME)

    compiled = step.lower(x, kernel, dy).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not [name for name in ("all-gather", "all-to-all", "permute") if name in text]
    for found, wanted in zip(compiled(x, kernel, dy), by_torch(x, kernel, dy, SAME), strict=True):
        # Sums of up to 2,112 products of order 1 in float32.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)
