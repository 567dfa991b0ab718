"""Depthwise convolution on CPU: forms that XLA turns into fast loops.

XLA's own grouped convolution is many times slower than these on CPU (docs/performance.md).
"""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from convnext_jax.ops.fence import fence

# The filter gradient sums the batch in this many independent parts. A batch sharded over a number
# of devices that divides it is then summed where it lies, without gathering it.
_BATCH_PARTS = 8
# It adds the products of this many image rows, and parts of a row, per visit to a running total:
# with one of each, reading and writing totals takes most of the time. More make programs larger.
_ROWS, _SEGMENTS = 4, 4
# Its channels are summed in this many loops at most, each of a multiple of _LANES channels, which
# fill a vector register.
_CHANNEL_GROUPS, _LANES = 4, 16


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
    """Gradient with respect to `kernel`, some image rows after others.

    Per filter tap, the products of `_ROWS` rows and `_SEGMENTS` parts of a row are added in
    registers before they meet the running total, which is small enough to stay in cache. XLA runs a
    loop on one core, but loops that do not depend on each other at the same time: there is one for
    each group of channels.
    """
    k, (n, height, width, channels) = kernel.shape[0], dy.shape
    if n == 0:
        return jnp.zeros_like(kernel)
    parts = math.gcd(n, _BATCH_PARTS)
    rows = min(height, _ROWS)
    bands = -(-height // rows)
    segment = -(-width // _SEGMENTS)
    # Zeros fill the last band and the last segment: they add nothing. `x` is fenced so that the
    # forward pass does not keep its padded copy for this one.
    more = ((0, 0), (0, bands * rows - height), (0, _SEGMENTS * segment - width), (0, 0))
    padded, dy = jnp.pad(_pad(fence(x), k), more), jnp.pad(dy, more)
    padded, dy = (a.reshape(parts, n // parts, *a.shape[1:]).swapaxes(0, 1) for a in (padded, dy))
    group = -(-channels // (_CHANNEL_GROUPS * _LANES)) * _LANES
    sums = []
    for channel in range(0, channels, group):
        zeros = jnp.zeros(
            (parts, k, segment, min(group, channels - channel)),
            jnp.promote_types(x.dtype, jnp.float32),
        )
        sums.append(_sum_bands(padded, dy, zeros, channel, rows))
    return jnp.concatenate(sums, axis=-1).astype(kernel.dtype)


def _sum_bands(padded: Array, dy: Array, zeros: Array, channel: int, rows: int) -> Array:
    """Filter gradient of some channels.

    Args:
      padded: [M, P, H + k - 1, W + k - 1, C], images padded for the filter.
      dy: [M, P, H, W, C], H a multiple of `rows`.
      zeros: [P, k, S, G], where a running total for one horizontal offset starts; W is a multiple
        of S.
      channel: the first of the G channels.
      rows: height of a band.

    Returns:
      [k, k, 1, G], dtype of `zeros`.
    """
    images, parts, height, width, _ = dy.shape
    _, k, segment, channels = zeros.shape
    bands = height // rows

    def add_band(totals: tuple[Array, ...], step: Array) -> tuple[tuple[Array, ...], None]:
        start = (step // bands, 0, step % bands * rows, 0, channel)
        window, dy_band = (
            lax.dynamic_slice(a, start, (1, parts, taken, a.shape[3], channels))[0]
            for a, taken in ((padded, rows + k - 1), (dy, rows))
        )
        window, dy_band = window.astype(zeros.dtype), dy_band.astype(zeros.dtype)
        new = []
        for j, total in enumerate(totals):
            for row in range(rows):
                for left in range(0, width, segment):
                    below = window[:, row : row + k, left + j : left + j + segment]
                    total += below * dy_band[:, row : row + 1, left : left + segment]
            new.append(total)
        return tuple(new), None

    # One total per horizontal offset: stacking them inside the loop is 15 times slower.
    totals, _ = lax.scan(add_band, (zeros,) * k, jnp.arange(images * bands))
    return jnp.stack([total.sum((0, 2)) for total in totals], axis=1)[:, :, None]


def _pad(x: Array, k: int) -> Array:
    """Surrounds each image with k // 2 zeros."""
    return jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
