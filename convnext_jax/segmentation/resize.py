"""Bilinear resizing and adaptive pooling of maps, as PyTorch computes them.

Each axis is multiplied by a matrix. Maps of several sizes may lie in one array, each in its upper
left: their matrices come from their own sizes, and what is beyond a map has no weight.
"""

import dataclasses
import functools
from collections.abc import Sequence
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


@dataclasses.dataclass(frozen=True)
class Resizing:
    """Bilinear resizing of maps, without antialiasing.

    Attributes:
      rows: what heights are multiplied by, [after, before], or [N, after, before] where maps have
        sizes of their own; beyond a result's size there are zeros.
      columns: likewise widths.
    """

    rows: Any
    columns: Any

    @classmethod
    def of_arrays(cls, before: Sequence[int], after: Sequence[int]) -> "Resizing":
        """From one height and width to another."""
        return cls(*(bilinear_matrix(*sides) for sides in zip(before, after, strict=True)))

    @classmethod
    def within(
        cls, before: Array, after: Array, array: Sequence[int], target: Sequence[int]
    ) -> "Resizing":
        """Of maps that have sizes of their own, in the upper left of arrays.

        Args:
          before: whole numbers [N, 2], height and width of each map.
          after: likewise, of the results.
          array: height and width of the array of maps.
          target: likewise, of the results.
        """

        def matrix(axis: int) -> Array:
            rows = target[axis]
            lower, upper, share = bilinear_taps(before[:, axis], after[:, axis], rows, jnp)
            inside = jnp.arange(rows).reshape(1, -1) < after[:, axis].reshape(-1, 1)
            weights = (jnp.where(inside, part, 0)[..., None] for part in (1 - share, share))
            places = (jax.nn.one_hot(place, array[axis]) for place in (lower, upper))
            return sum((p * w for p, w in zip(places, weights, strict=True)), jnp.zeros(()))

        return cls(matrix(0), matrix(1))

    def __call__(self, x: Array) -> Array:
        """Resizes [N, H, W, C]; computed in float32, in the dtype of `x`."""
        return _along_axes(x, self.rows, self.columns)

    def then_convolve(self, x: Array, kernel: Array) -> Array:
        """Resizes and convolves, with zeros around: the same as one after the other, for less.

        Both are linear, and mixing channels does not mind where: it is done at the size before,
        once for each place of the kernel, and what comes out is resized with that place's shift.
        From half the size that takes little more than a quarter of the products.

        Args:
          x: [N, H, W, C].
          kernel: [k, k, C, D], k odd.

        Returns:
          [N, after, after, D], float32.
        """
        size, _, features_in, features = kernel.shape
        mixing = kernel.astype(x.dtype).transpose(2, 0, 1, 3).reshape(features_in, -1)
        mixed = jnp.dot(x, mixing, preferred_element_type=jnp.float32)
        mixed = mixed.reshape(*x.shape[:3], size, size, features)
        rows, columns = (_shifted(matrix, size) for matrix in (self.rows, self.columns))
        n = "" if self.rows.ndim == 2 else "n"
        precise = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        wide = precise(f"nhwijd,{n}jbw->nhbid", mixed, columns)
        return precise(f"nhbid,{n}iah->nabd", wide, rows)


def _shifted(matrix: Any, size: int) -> Any:
    """A matrix [..., after, before] moved to each place of a kernel: [..., size, after, before]."""
    half, after = size // 2, matrix.shape[-2]
    xp = np if isinstance(matrix, np.ndarray) else jnp
    around = [(0, 0)] * (matrix.ndim - 2) + [(half, half), (0, 0)]
    padded = xp.pad(matrix, around)
    return xp.stack([padded[..., i : i + after, :] for i in range(size)], axis=-3)


def resize(x: Array, height: int, width: int) -> Array:
    """Resizes [N, H, W, C] to [N, height, width, C]."""
    return Resizing.of_arrays(x.shape[1:3], (height, width))(x)


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
