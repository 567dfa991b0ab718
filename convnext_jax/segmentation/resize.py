"""Bilinear resizing and adaptive pooling of maps, as PyTorch computes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@functools.lru_cache(maxsize=256)
def bilinear_matrix(before: int, after: int) -> np.ndarray:
    """What bilinear resizing multiplies an axis by: half-pixel centres, edges repeated.

    The same when shrinking: no antialiasing. (`torch.nn.functional.interpolate`, `bilinear`,
    `align_corners=False`.)

    Returns:
      float32 [after, before].
    """
    # In float32, as PyTorch places its samples.
    ratio = np.float32(before) / np.float32(after)
    places = (np.arange(after, dtype=np.float32) + np.float32(0.5)) * ratio - np.float32(0.5)
    places = np.maximum(places, np.float32(0))
    lower = np.minimum(places.astype(np.int64), before - 1)
    upper = np.minimum(lower + 1, before - 1)
    share = places - lower.astype(np.float32)
    matrix = np.zeros((after, before), np.float32)
    rows = np.arange(after)
    np.add.at(matrix, (rows, lower), 1 - share)
    np.add.at(matrix, (rows, upper), share)
    return matrix


@functools.lru_cache(maxsize=256)
def pooling_matrix(size: int, bins: int) -> np.ndarray:
    """What adaptive average pooling multiplies an axis by; bins may overlap.

    Bin i is the mean from floor(i size / bins) to ceil((i + 1) size / bins).
    (`torch.nn.AdaptiveAvgPool2d`.)

    Returns:
      float32 [bins, size].
    """
    matrix = np.zeros((bins, size), np.float32)
    for i in range(bins):
        first, last = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def resize(x: Array, height: int, width: int) -> Array:
    """Bilinear resizing without antialiasing.

    Args:
      x: [N, H, W, C].
      height: of the result.
      width: likewise.

    Returns:
      [N, height, width, C] in the dtype of `x`; computed in float32.
    """
    return _along_axes(
        x, *(bilinear_matrix(*s) for s in zip(x.shape[1:3], (height, width), strict=True))
    )


def adaptive_mean(x: Array, bins: int) -> Array:
    """The means of bins x bins parts of a map.

    Args:
      x: [N, H, W, C].
      bins: along each side.

    Returns:
      [N, bins, bins, C] in the dtype of `x`; computed in float32.
    """
    return _along_axes(x, *(pooling_matrix(size, bins) for size in x.shape[1:3]))


def _along_axes(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    if rows.shape[0] == x.shape[1] and columns.shape[0] == x.shape[2]:
        return x  # resizing to the same size changes nothing
    precise = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    y = precise("nhwc,ah->nawc", x.astype(jnp.float32), rows)
    return precise("nawc,bw->nabc", y, columns).astype(x.dtype)
