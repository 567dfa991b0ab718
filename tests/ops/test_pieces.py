"""Functions of pixels in pieces: the same numbers, and only where pieces pay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from convnext_jax import create_model
from convnext_jax.ops import pieces
from convnext_jax.ops.few_images import batch_over
from convnext_jax.ops.pieces import in_pieces, pieces_of


def function(x, y):
    return jnp.concatenate([x, jnp.tanh(x @ jnp.ones((4, 3))) * y], axis=-1)


def over(devices):
    return batch_over(AbstractMesh((devices,), ("data",), axis_types=(AxisType.Auto,)))


@pytest.fixture
def one_device():
    with over(1):
        yield


def loops(platform, shape, width):
    x, y = (jax.ShapeDtypeStruct((*shape, c), jnp.float32) for c in (4, 3))
    # A function of its own, or what was traced elsewhere would be found again.
    traced = jax.jit(lambda x, y: in_pieces(function, x, y, width=width)).trace(x, y)
    return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 8, 4), (1, 13, 2)])
def test_pieces_make_up_the_whole(shape, monkeypatch, one_device):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((*shape, c)).astype(np.float32) for c in (4, 3))
    monkeypatch.setattr(pieces, "_LARGE", 0)
    monkeypatch.setattr(pieces, "_PIECE", 4 * shape[2] * 16 * 3)  # three rows
    assert pieces_of(shape[0] * shape[1], 4 * shape[2] * 16) > 1
    whole, pull_back = jax.vjp(function, x, y)
    cut, pull_pieces_back = jax.vjp(lambda *a: in_pieces(function, *a, width=16), x, y)
    # Each pixel is computed as before, by products of other shapes and in loops of other lengths.
    np.testing.assert_allclose(cut, whole, rtol=2e-6, atol=1e-6)
    for ours, theirs in zip(pull_pieces_back(cut), pull_back(cut), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    twice = jax.vmap(lambda *a: in_pieces(function, *a, width=16))(x[None], y[None])
    np.testing.assert_allclose(twice[0], whole, rtol=2e-6, atol=1e-6)


def test_how_many():
    assert pieces_of(56, 56 * 384 * 4) == 1  # one image of T's first stage
    # Eight images in pieces of up to 10 MB: 448 rows of 86 kB.
    assert pieces_of(8 * 56, 56 * 384 * 4) == 4
    assert pieces_of(200, 334 * 384 * 4) == 20  # 800x1333 pixels: 11 pieces are not equal
    assert pieces_of(7919, 10**5) == 1  # a prime number of rows


def test_large_maps_on_cpus_alone(one_device):
    large, small = (64, 56, 56), (1, 56, 56)
    assert loops("cpu", large, 384) == 1
    assert loops("cpu", small, 384) == loops("tpu", large, 384) == loops("cuda", large, 384) == 0


def test_images_on_several_devices_are_left_together():
    with over(8):
        assert loops("cpu", (64, 56, 56), 384) == 0
    # Where nothing says over how many they lie, it may be all of them.
    assert jax.device_count() > 1
    assert loops("cpu", (64, 56, 56), 384) == 0


def test_gradients_keep_nothing_that_is_inside_a_piece(one_device):
    """Of a saliency map, say: the widest array has four times the channels of the others."""
    x = jax.ShapeDtypeStruct((8, 56, 56, 96), jnp.float32)
    wide = lambda x: jnp.tanh(jnp.tanh(x @ jnp.ones((96, 384))) @ jnp.ones((384, 96)))  # noqa: E731
    temporary = {}
    for name, apply in {"whole": wide, "pieces": lambda x: in_pieces(wide, x, width=384)}.items():
        gradient = jax.jit(jax.grad(lambda x, apply=apply: apply(x).sum()))
        temporary[name] = gradient.lower(x).compile().memory_analysis().temp_size_in_bytes
    assert temporary["pieces"] < 0.6 * temporary["whole"]


def test_any_number_of_images_is_left_together(one_device):
    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(lambda x: in_pieces(jnp.tanh, x, width=4096)))(
        jax.ShapeDtypeStruct((n, 56, 56, 4), jnp.float32)
    )
    assert "stablehlo.while" not in exported.mlir_module()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_the_same(dtype, monkeypatch, one_device):
    small = {"depths": (1, 1, 1, 1), "dims": (16, 16, 16, 16), "kernel_size": 3}
    model = create_model("convnext_atto", 7, dtype=dtype, layer_scale_init=1.0, **small)
    images = jax.random.normal(jax.random.key(0), (4, 64, 64, 3))
    whole = jax.jit(lambda images: model(images))(images)
    monkeypatch.setattr(pieces, "_LARGE", 0)
    monkeypatch.setattr(pieces, "_PIECE", 2**14)
    in_loops = jax.jit(lambda images: model(images))
    assert in_loops.lower(images).as_text().count("stablehlo.while") == 2  # the large stages
    cut = in_loops(images)
    # Products of other shapes are summed in another order, and rounded to bfloat16.
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(cut, whole, rtol=tolerance, atol=tolerance)
