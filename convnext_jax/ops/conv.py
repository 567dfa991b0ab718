"""Convolution whose filter's gradient has the filter's own dtype, whatever that of the images."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from convnext_jax.ops.few_images import devices_with_few

Padding = tuple[tuple[int, int], tuple[int, int]]  # before and after, of height and width

# Channels in times channels out from which on products of matrices are faster on CPUs.
_LARGE = 2**15
DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")


def conv(x: Array, kernel: Array, stride: int, padding: Padding, groups: int = 1) -> Array:
    """Convolves `x` with XLA's convolution.

    Args:
      x: [N, H, W, C] floating point.
      kernel: [k, l, C / groups, D] floating point, used as rounded to the dtype of `x`. Its
        gradient is not rounded to that, so sums over devices, which follow, are in the kernel's
        dtype.
      stride: of both axes.
      padding: zeros around the images.
      groups: of channels.

    Returns:
      [N, H', W', D], same dtype as `x`.
    """
    return _conv(x, kernel, stride, padding, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: Array, kernel: Array, stride: int, padding: Padding, groups: int) -> Array:
    return _convolve(x, kernel.astype(x.dtype), stride, padding, groups)


def _convolve(x: Array, kernel: Array, stride: int, padding: Padding, groups: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=DIMENSION_NUMBERS,
        feature_group_count=groups,
    )


def _forward(
    x: Array, kernel: Array, stride: int, padding: Padding, groups: int
) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, stride, padding, groups), (x, kernel)


def _backward(
    stride: int, padding: Padding, groups: int, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    rounded = kernel.astype(x.dtype)
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, rounded, stride, padding, groups), x)(dy)
    return dx, filter_gradient(x, kernel, dy, stride, padding, groups)


_conv.defvjp(_forward, _backward)


def filter_gradient(
    x: Array, kernel: Array, dy: Array, stride: int, padding: Padding, groups: int = 1
) -> Array:
    """Gradient with respect to the kernel: a convolution of `x` by `dy` with the batch summed.

    It is what JAX makes of it, except for the dtype of its result, which JAX has follow `x`.

    Args:
      x: [N, H, W, C].
      kernel: [k, l, C / groups, D]; only its shape and dtype matter.
      dy: [N, H', W', D], same dtype as `x`.
      stride: of both axes.
      padding: of the forward convolution.
      groups: of channels.

    Returns:
      Shape and dtype of `kernel`.
    """
    # The filter's taps are the places of the result: dy, spread by the stride, slides over x. Rows
    # and columns that no tap meets are cut off by negative padding.
    sides = zip(kernel.shape[:2], x.shape[1:3], dy.shape[1:3], padding, strict=True)
    around = [
        (low, taps - 1 + stride * (out - 1) + 1 - size - low) for taps, size, out, (low, _) in sides
    ]

    def correlate(x: Array, dy: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            dy,
            window_strides=(1, 1),
            padding=around,
            rhs_dilation=(stride, stride),
            dimension_numbers=("CHWN", "IHWO", "HWNC"),
            batch_group_count=groups,
            preferred_element_type=kernel.dtype,
        )

    def widened(x: Array, dy: Array) -> Array:
        return correlate(x.astype(kernel.dtype), dy.astype(kernel.dtype))

    branches: dict[str, Callable] = {}
    if stride == 1 and groups == 1:
        products = functools.partial(_over_taps, padding=padding)
        if devices_with_few(x) is not None:
            branches["tpu"] = functools.partial(products, product=_few_images(kernel.dtype))
        if x.dtype == kernel.dtype and kernel.shape[2] * kernel.shape[3] >= _LARGE:
            branches["cpu"] = functools.partial(products, product=_turned)
    if x.dtype != kernel.dtype:
        # Those of cuDNN have results like their operands; bfloat16 is exact in TensorFloat-32.
        branches |= {"cuda": widened, "rocm": widened}
    return lax.platform_dependent(x, dy, **branches, default=correlate)


def _over_taps(
    x: Array, dy: Array, *, padding: Padding, product: Callable[[Array], Callable[[Array], Array]]
) -> Array:
    """The gradient with stride 1 as a product of matrices for each tap.

    Args:
      x: [N, H, W, C].
      dy: [N, H', W', D].
      padding: of the forward convolution.
      product: of dy [pixels, D], a function of what a tap sees [pixels, C] to [C, D].
    """
    _, height, width, _ = dy.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    taps = [side - out + 1 for side, out in zip(x.shape[1:3], (height, width), strict=True)]
    multiply = product(dy.reshape(-1, dy.shape[-1]))

    def tap(i: int, j: int) -> Array:
        return multiply(x[:, i : i + height, j : j + width].reshape(-1, x.shape[-1]))

    return jnp.stack([jnp.stack([tap(i, j) for j in range(taps[1])]) for i in range(taps[0])])


def _turned(dy: Array) -> Callable[[Array], Array]:
    """Of `_over_taps` on CPUs, where a convolution by a map takes 2 to 3 times as long."""
    # Turned once, not once for each tap: a product wants its left side's sums along the rows.
    turned = lax.optimization_barrier(dy.T)
    return lambda seen: (turned @ seen).T


def _few_images(dtype: DTypeLike) -> Callable[[Array], Callable[[Array], Array]]:
    """Of `_over_taps` on TPUs: a convolution by the large map of one image takes 2.5 times as long.

    By the compiler's schedules; no clock has seen it. With two images it is 1.1 to 1.4 times, with
    many less.
    """
    axes = (((0,), (0,)), ((), ()))
    return lambda dy: lambda seen: lax.dot_general(seen, dy, axes, preferred_element_type=dtype)
