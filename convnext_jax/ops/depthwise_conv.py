"""Depthwise convolution: one function, an implementation per platform.

XLA's grouped convolution is three times ahead of a sum of shifted slices on TPU and 20 to 90 times
behind it on CPU, so which one runs is decided when the program is lowered for a platform, not by a
global setting: the same traced program is right for both.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from convnext_jax.errors import InputError

_DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")
# The filter gradient on CPU sums the batch in this many independent parts. A batch sharded over a
# number of devices that divides it is then summed where it lies, without gathering it.
_BATCH_PARTS = 8


def depthwise_conv(x: Array, kernel: Array) -> Array:
    """Convolves each channel of `x` with its own square filter, stride 1, zeros beyond the border.

    Like every convolution in deep learning this is a cross-correlation: the filter is not flipped.
    On CPU, bfloat16 and float16 are accumulated in float32 and rounded once; elsewhere accumulation
    is XLA's choice.

    Args:
      x: [N, H, W, C] floating point. H and W may be smaller than the filter.
      kernel: [k, k, 1, C] with k odd, same dtype as `x`; the layout (HWIO) of a grouped
        convolution's kernel in Flax.

    Returns:
      [N, H, W, C], same dtype as `x`.

    Raises:
      InputError: if the shapes or dtypes do not fit the above.
    """
    if x.ndim != 4:
        raise InputError(f"`x` (shape {x.shape}) must have four axes, [N, H, W, C]")
    k, channels = kernel.shape[:1], x.shape[-1]
    if kernel.shape != (*k, *k, 1, channels) or k[0] % 2 == 0:
        raise InputError(
            f"`kernel` (shape {kernel.shape}) must be [k, k, 1, {channels}] with k odd "
            f"for `x` of shape {x.shape}"
        )
    if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(
            f"`kernel` (dtype {kernel.dtype}) must have the floating point dtype of `x` ({x.dtype})"
        )
    return _depthwise_conv(x, kernel)


@jax.custom_vjp
def _depthwise_conv(x: Array, kernel: Array) -> Array:
    return lax.platform_dependent(x, kernel, cpu=shifted_forward, default=xla_forward)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise_conv(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    dx = lax.platform_dependent(
        x, kernel, dy, cpu=shifted_input_gradient, default=xla_input_gradient
    )
    dkernel = lax.platform_dependent(
        x, kernel, dy, cpu=scanned_filter_gradient, default=xla_filter_gradient
    )
    return dx, dkernel


_depthwise_conv.defvjp(_forward, _backward)


# The implementations are jitted so that blocks of equal shape share one trace.


@jax.jit
def xla_forward(x: Array, kernel: Array) -> Array:
    """The convolution as XLA's grouped convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=_DIMENSION_NUMBERS,
        feature_group_count=x.shape[-1],
    )


@jax.jit
def xla_input_gradient(x: Array, kernel: Array, dy: Array) -> Array:
    """Gradient with respect to `x` as XLA differentiates the grouped convolution."""
    return jax.linear_transpose(lambda x: xla_forward(x, kernel), x)(dy)[0]


@jax.jit
def xla_filter_gradient(x: Array, kernel: Array, dy: Array) -> Array:
    """Gradient with respect to `kernel` as XLA differentiates the grouped convolution."""
    return jax.linear_transpose(lambda kernel: xla_forward(x, kernel), kernel)(dy)[0]


@jax.jit
def shifted_forward(x: Array, kernel: Array) -> Array:
    """The convolution as a sum of k * k shifted copies of `x`, each times a weight per channel."""
    k, (_, height, width, channels) = kernel.shape[0], x.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)
    padded = _pad(x, k)
    kernel = kernel.astype(wide)
    total = jnp.zeros(x.shape, wide)
    for i in range(k):
        for j in range(k):
            shifted = padded[:, i : i + height, j : j + width].astype(wide)
            total += shifted * kernel[i, j].reshape(1, 1, 1, channels)
    return total.astype(x.dtype)


@jax.jit
def shifted_input_gradient(x: Array, kernel: Array, dy: Array) -> Array:
    """Gradient with respect to `x`: the same convolution of `dy` with the filter turned around."""
    del x
    return shifted_forward(dy, kernel[::-1, ::-1])


@jax.jit
def scanned_filter_gradient(x: Array, kernel: Array, dy: Array) -> Array:
    """Gradient with respect to `kernel`, one image row after another.

    The accumulator [k, k, W, C] stays in cache and is summed over W only once, at the end.
    """
    k, n = kernel.shape[0], x.shape[0]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    parts = math.gcd(n, _BATCH_PARTS)
    padded = _pad(x, k)
    padded = padded.reshape(parts, n // parts, *padded.shape[1:])
    dy = dy.reshape(parts, n // parts, *dy.shape[1:])
    sums = jax.vmap(lambda p, d: _scan_rows(p, d, k, wide))(padded, dy)
    return sums.sum(0).astype(kernel.dtype)


def _scan_rows(padded: Array, dy: Array, k: int, dtype: jnp.dtype) -> Array:
    """Filter gradient [k, k, 1, C] of images `padded` [N, H+k-1, W+k-1, C], `dy` [N, H, W, C]."""
    n, height, width, channels = dy.shape

    def add_row(totals: tuple[Array, ...], place: Array) -> tuple[tuple[Array, ...], None]:
        image, row = place // height, place % height
        below = lax.dynamic_slice(padded, (image, row, 0, 0), (1, k, padded.shape[2], channels))[
            0
        ].astype(dtype)
        dy_row = lax.dynamic_slice(dy, (image, row, 0, 0), (1, 1, width, channels))[0].astype(dtype)
        return tuple(
            total + below[:, j : j + width] * dy_row for j, total in enumerate(totals)
        ), None

    # One total [k, W, C] per horizontal offset: stacking them inside the loop is 15 times slower.
    zeros = tuple(jnp.zeros((k, width, channels), dtype) for _ in range(k))
    totals, _ = lax.scan(add_row, zeros, jnp.arange(n * height))
    return jnp.stack([total.sum(1) for total in totals], axis=1)[:, :, None]


def _pad(x: Array, k: int) -> Array:
    """Surrounds each image with k // 2 zeros."""
    return jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
