"""Gradients of float32 parameters that are used in bfloat16: summed, and left, in float32."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from elsewhere import as_on
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from convnext_jax.ops import channels, depthwise_conv, depthwise_cpu, patch_conv
from convnext_jax.ops.conv import conv
from convnext_jax.ops.dense import dense
from convnext_jax.ops.few_images import batch_over

# Each operation, the shape of its images and of its parameter. A sum of so many terms that
# bfloat16, which has 8 binary places, would lose most of them.
CASES = {
    "dense": (dense, (16, 16, 16, 8), (8, 4)),
    "bias": (channels.add_bias, (16, 16, 16, 8), (8,)),
    "scale": (channels.scale, (16, 16, 16, 8), (8,)),
    "patches": (patch_conv.patch_conv, (16, 32, 33, 3), (4, 4, 3, 5)),
    "patches, XLA's": (patch_conv.convolution, (16, 32, 33, 3), (4, 4, 3, 5)),
    "overlapping": (
        functools.partial(conv, stride=2, padding=((1, 1), (1, 1))),
        (16, 32, 31, 3),
        (3, 3, 3, 5),
    ),
    "depthwise": (depthwise_conv.depthwise_conv, (16, 16, 16, 4), (7, 7, 1, 4)),
}


def data(images, parameter):
    rng = np.random.default_rng(0)
    # Of one sign, so that sums grow beyond what bfloat16 tells apart.
    x = jnp.asarray(rng.uniform(size=images), jnp.bfloat16)
    return x, jnp.asarray(rng.uniform(size=parameter), jnp.float32)


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_not_rounded(name):
    function, *shapes = CASES[name]
    x, parameter = data(*shapes)
    y, pull_back = jax.vjp(function, x, parameter)
    dy = jnp.asarray(np.random.default_rng(1).uniform(size=y.shape), jnp.bfloat16)
    dx, gradient = pull_back(dy)
    assert (y.dtype, dx.dtype, gradient.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # Everything in float32, from the same rounded values.
    rounded = parameter.astype(jnp.bfloat16).astype(jnp.float32)
    wide, pull_back = jax.vjp(function, x.astype(jnp.float32), rounded)
    expected_dx, expected = pull_back(dy.astype(jnp.float32))
    # Products of bfloat16 are exact in float32, whose sums of 16 * 256 terms differ by 1e-6.
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    # One rounding to 8 binary places, of values of one sign; XLA's convolution rounds more often.
    for narrow, exact in ((y, wide), (dx, expected_dx)):
        np.testing.assert_allclose(np.asarray(narrow, np.float32), exact, rtol=2**-6)


@pytest.mark.parametrize("name", CASES)
def test_a_narrow_parameter_has_a_narrow_gradient(name):
    function, *shapes = CASES[name]
    x, parameter = data(*shapes)
    y, pull_back = jax.vjp(function, x, parameter.astype(jnp.bfloat16))
    assert pull_back(y)[1].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "gradient", [depthwise_cpu.scanned_filter_gradient, depthwise_conv.xla_filter_gradient]
)
def test_every_filter_gradient_of_the_depthwise_convolution(gradient):
    x, kernel = data((16, 16, 16, 4), (7, 7, 1, 4))
    dy = x[::-1]
    found = gradient(x, kernel, dy)
    assert found.dtype == jnp.float32
    wide = gradient(x.astype(jnp.float32), kernel, dy.astype(jnp.float32))
    np.testing.assert_allclose(found, wide, rtol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize(("platform", "result"), [("tpu", "f32"), ("cuda", "bf16")])
def test_convolutions_that_platforms_have(platform, result):
    # cuDNN has no convolution of bfloat16 with a float32 result.
    x, kernel = data((2, 8, 8, 4), (7, 7, 1, 4))
    y, traced = x, jax.jit(depthwise_conv.xla_filter_gradient).trace(x, kernel, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    (line,) = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    shape = "x".join(map(str, y.shape))
    assert f"(tensor<{shape}xbf16>, tensor<{shape}xbf16>) -> " in line
    assert line.rstrip().endswith(f"tensor<7x7x1x4x{result}>")


@pytest.mark.parametrize("name", ["patches, XLA's", "overlapping", "depthwise"])
def test_the_form_for_gpus_is_rounded_once(name):
    function, *shapes = CASES[name]
    x, parameter = data(*shapes)
    y, pull_back = jax.vjp(function, x, parameter)
    dy = jnp.asarray(np.random.default_rng(1).uniform(size=y.shape), jnp.bfloat16)
    expected = pull_back(dy)[1]

    def gradient(x, parameter, dy):
        return jax.vjp(function, x, parameter)[1](dy)[1]

    found = as_on("cuda", gradient, x, parameter, dy)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=2**-8)


def test_gpus_add_over_devices_what_is_not_rounded_again():
    function, *shapes = CASES["depthwise"]
    x, kernel = data(*shapes)
    dy = x[::-1]
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=jax.devices()[:4])
    images = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())

    def gradient(x, kernel, dy):
        with batch_over(mesh):
            return jax.vjp(function, x, kernel)[1](dy)[1]

    jitted = jax.jit(gradient, in_shardings=(images, whole, images), out_shardings=whole)
    text = jitted.trace(x, kernel, dy).lower(lowering_platforms=("cuda",)).as_text()
    (line,) = [line for line in text.splitlines() if "[f, 0, 1, b]" in line]
    # Four of the sixteen images, and their sum in the dtype of the operands,
    assert "tensor<4x16x16x4xbf16>) -> tensor<7x7x1x4xbf16>" in line
    # which is added in float32.
    added = text[text.index("stablehlo.all_reduce") :]
    assert re.search(r"\}\) : \((\S+)\) -> ", added)[1] == "tensor<7x7x1x4xf32>"
    # The same sums in another order, and each device's rounded.
    arguments = zip((x, kernel, dy), (images, whole, images), strict=True)
    found = as_on("cuda", jitted, *(jax.device_put(a, place) for a, place in arguments))
    np.testing.assert_allclose(found, gradient(x, kernel, dy), rtol=2**-8)
