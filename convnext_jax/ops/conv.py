"""Convolution whose filter's gradient has the filter's own dtype, whatever that of the images."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from convnext_jax.ops.few_images import devices_with_few, summed_over_devices
from convnext_jax.ops.winograd import suits, winograd_conv, winograd_filter_gradient

Padding = tuple[tuple[int, int], tuple[int, int]]  # before and after, of height and width

# Channels in times channels out from which on products of matrices are faster on CPUs.
_LARGE = 2**15
DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")


def conv(x: Array, kernel: Array, stride: int, padding: Padding, groups: int = 1) -> Array:
    """Convolves `x` with XLA's convolution, or, large 3x3 filters on CPUs, with Winograd's.

    Where that has an infinite number among the images, its neighbours become NaN.

    Args:
      x: [N, H, W, C] floating point.
      kernel: [k, l, C / groups, D] floating point, used as rounded to the dtype of `x`. Its
        gradient is not rounded to that, but on GPUs; sums over devices, which follow, are in the
        kernel's dtype.
      stride: of both axes.
      padding: zeros around the images.
      groups: of channels.

    Returns:
      [N, H', W', D], same dtype as `x`.
    """
    return _conv(x, kernel, stride, padding, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: Array, kernel: Array, stride: int, padding: Padding, groups: int) -> Array:
    kernel = kernel.astype(x.dtype)
    whole = functools.partial(_convolve, stride=stride, padding=padding, groups=groups)
    branches: dict[str, Callable] = {}
    if stride == 1 and groups == 1 and suits(kernel, jax.eval_shape(whole, x, kernel)):
        branches["cpu"] = lambda x, kernel: winograd_conv(_padded(x, padding), kernel)
    return lax.platform_dependent(x, kernel, **branches, default=whole)


def _padded(x: Array, padding: Padding) -> Array:
    """With zeros around the images; negative padding cuts rows and columns off."""
    around = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), around)


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
    dx = _image_gradient(x, kernel.astype(x.dtype), dy, stride, padding, groups)
    return dx, filter_gradient(x, kernel, dy, stride, padding, groups)


_conv.defvjp(_forward, _backward)


def _image_gradient(
    x: Array, kernel: Array, dy: Array, stride: int, padding: Padding, groups: int
) -> Array:
    def transposed(kernel: Array, dy: Array) -> Array:
        whole = functools.partial(_convolve, stride=stride, padding=padding, groups=groups)
        (dx,) = jax.linear_transpose(lambda x: whole(x, kernel), x)(dy)
        return dx

    def turned(kernel: Array, dy: Array) -> Array:
        (top, bottom), (left, right) = padding
        padded = _padded(dy, ((2 - top, 2 - bottom), (2 - left, 2 - right)))
        return winograd_conv(padded, kernel[::-1, ::-1].swapaxes(2, 3))

    branches: dict[str, Callable] = {}
    if stride == 1 and groups == 1 and suits(kernel, x):
        branches["cpu"] = turned
    return lax.platform_dependent(kernel, dy, **branches, default=transposed)


def filter_gradient(
    x: Array,
    kernel: Array | jax.ShapeDtypeStruct,
    dy: Array,
    stride: int,
    padding: Padding,
    groups: int = 1,
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

    def correlate(x: Array, dy: Array, dtype: DTypeLike = kernel.dtype) -> Array:
        return lax.conv_general_dilated(
            x,
            dy,
            window_strides=(1, 1),
            padding=around,
            rhs_dilation=(stride, stride),
            dimension_numbers=("CHWN", "IHWO", "HWNC"),
            batch_group_count=groups,
            preferred_element_type=dtype,
        )

    def rounded(x: Array, dy: Array) -> Array:
        return correlate(x, dy, x.dtype).astype(kernel.dtype)

    branches: dict[str, Callable] = {}
    if stride == 1 and groups == 1:
        if devices_with_few(x, 1) is not None:
            by_taps = functools.partial(_by_taps, padding=padding, dtype=kernel.dtype)
            branches["tpu"] = by_taps
        if suits(kernel, dy):
            branches["cpu"] = lambda x, dy: winograd_filter_gradient(_padded(x, padding), dy)
        elif x.dtype == kernel.dtype and kernel.shape[2] * kernel.shape[3] >= _LARGE:
            branches["cpu"] = functools.partial(_by_columns, padding=padding)
    if x.dtype != kernel.dtype:
        # Those of cuDNN have results like their operands. What is rounded is a device's sum, as it
        # is in PyTorch; operands in float32 would be two more maps in memory, twice as large.
        each = summed_over_devices(rounded)
        branches |= {"cuda": each, "rocm": each}
    return lax.platform_dependent(x, dy, **branches, default=correlate)


def _by_columns(x: Array, dy: Array, *, padding: Padding) -> Array:
    """The gradient with stride 1, for CPUs: a product of matrices for each column of taps.

    XLA's convolution by a filter as large as the map takes 2 to 3 times as long there.
    """
    n, height, width, channels = dy.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    # Turned once, not for each product, which wants its left side's sums along the rows; then moved
    # down as much as each tap of a column wants it.
    turned = lax.optimization_barrier(dy.reshape(-1, channels).T).reshape(-1, n, height, width)
    around = [((0, 0), (0, 0), (i, rows - 1 - i), (0, 0)) for i in range(rows)]
    turned = jnp.concatenate([jnp.pad(turned, zeros) for zeros in around])
    turned = turned.reshape(rows * channels, -1)

    def column(j: int) -> Array:
        found = turned @ x[:, :, j : j + width].reshape(-1, x.shape[-1])
        return found.reshape(rows, channels, -1).swapaxes(1, 2)

    return jnp.stack([column(j) for j in range(columns)], axis=1)


def _by_taps(x: Array, dy: Array, *, padding: Padding, dtype: DTypeLike) -> Array:
    """The gradient with stride 1, for one image on TPUs: a product of matrices for each tap.

    A convolution by the large map of one image takes 2.5 times as long, by the compiler's
    schedules; no clock has seen it. With two images it is 1.1 to 1.4 times, and the products of
    512 channels at 128 x 128, UPerNet's, had not compiled after a quarter of an hour.
    """
    _, height, width, channels = dy.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    dy = dy.reshape(-1, channels)

    def tap(i: int, j: int) -> Array:
        seen = x[:, i : i + height, j : j + width].reshape(-1, x.shape[-1])
        return lax.dot_general(seen, dy, (((0,), (0,)), ((), ())), preferred_element_type=dtype)

    return jnp.stack([jnp.stack([tap(i, j) for j in range(columns)]) for i in range(rows)])
