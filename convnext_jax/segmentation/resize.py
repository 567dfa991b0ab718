"""Bilinear resizing and adaptive pooling of maps, as PyTorch computes them.

Each axis is multiplied by a matrix. Maps of several sizes may lie in one array, each in its upper
left: their matrices come from their own sizes, and what is beyond a map has no weight.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def bilinear_taps(before: Any, after: Any, rows: int, xp: Any = np) -> tuple[Any, Any, Any]:
    """Where bilinear resizing looks along an axis: half-pixel centres, edges repeated.

    The same when shrinking: no antialiasing. (`torch.nn.functional.interpolate`, `bilinear`,
    `align_corners=False`.)

    Args:
      before: length of the axis, a number or whole numbers [N].
      after: likewise, of the result.
      rows: how many places of the result to describe, from the first on.
      xp: NumPy, or JAX's.

    Returns:
      The place before, the place behind it, and the share of the latter, float32; each [rows], or
      [N, rows].
    """
    single = np.ndim(before) == 0
    # Numbers of the same rank everywhere: JAX is told not to guess.
    before, after = (xp.asarray(size).reshape(-1, 1) for size in (before, after))
    # In float32, as PyTorch places its samples.
    ratio = before.astype(np.float32) / xp.maximum(after, 1).astype(np.float32)
    places = xp.arange(rows, dtype=np.float32).reshape(1, -1) + np.float32(0.5)
    places = places * ratio - np.float32(0.5)
    places = xp.maximum(places, np.float32(0))
    lower = xp.minimum(places.astype(np.int32), before - 1)
    upper = xp.minimum(lower + 1, before - 1)
    found = lower, upper, places - lower.astype(np.float32)
    return tuple(x[0] for x in found) if single else found  # pyright: ignore[reportReturnType]


@functools.lru_cache(maxsize=256)
def bilinear_matrix(before: int, after: int) -> np.ndarray:
    """What bilinear resizing multiplies an axis by: float32 [after, before]."""
    lower, upper, share = bilinear_taps(before, after, after)
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
    return _pooling(np.array([size]), bins, size, np)[0]


def _pooling(sizes: Any, bins: int, columns: int, xp: Any) -> Any:
    """`pooling_matrix` for each of several sizes [N]: float32 [N, bins, columns]."""
    i, sizes = np.arange(bins).reshape(1, -1, 1), sizes.reshape(-1, 1, 1)
    first, last = i * sizes // bins, -(-(i + 1) * sizes // bins)
    place = np.arange(columns).reshape(1, 1, -1)
    inside = (place >= first) & (place < last)
    return inside.astype(np.float32) / xp.maximum(last - first, 1).astype(np.float32)


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


def resize_within(x: Array, before: Array, after: Array, height: int, width: int) -> Array:
    """Bilinear resizing of maps that have sizes of their own, in the upper left of an array.

    Args:
      x: [N, H, W, C].
      before: whole numbers [N, 2], height and width of each map.
      after: likewise, of the results.
      height: of the array of results.
      width: likewise.

    Returns:
      [N, height, width, C] in the dtype of `x`; what is beyond a result has no meaning.
    """

    def matrix(axis: int, rows: int) -> Array:
        lower, upper, share = bilinear_taps(before[:, axis], after[:, axis], rows, jnp)
        low, up = (jax.nn.one_hot(place, x.shape[1 + axis]) for place in (lower, upper))
        return low * (1 - share)[..., None] + up * share[..., None]

    return _along_axes(x, matrix(0, height), matrix(1, width))


def adaptive_mean(x: Array, bins: int, sizes: Array | None = None) -> Array:
    """The means of bins x bins parts of a map.

    Args:
      x: [N, H, W, C].
      bins: along each side.
      sizes: whole numbers [N, 2], height and width of each map; None: they fill the array.

    Returns:
      [N, bins, bins, C] in the dtype of `x`; computed in float32.
    """
    if sizes is None:
        return _along_axes(x, *(pooling_matrix(size, bins) for size in x.shape[1:3]))
    return _along_axes(
        x, *(_pooling(sizes[:, axis], bins, x.shape[1 + axis], jnp) for axis in (0, 1))
    )


def _along_axes(x: Array, rows: Any, columns: Any) -> Array:
    """Multiplies by matrices [after, before], or [N, after, before] where examples differ."""
    n = "" if rows.ndim == 2 else "n"
    if not n and rows.shape[0] == x.shape[1] and columns.shape[0] == x.shape[2]:
        return x  # resizing to the same size changes nothing
    precise = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    y = precise(f"nhwc,{n}ah->nawc", x.astype(jnp.float32), rows)
    return precise(f"nawc,{n}bw->nabc", y, columns).astype(x.dtype)
