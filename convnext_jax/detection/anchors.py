"""Anchors: the boxes that the region proposal network starts from, and which of them count.

As mmdet 2.11 lays them out: around the upper left corners of cells (offset 0), not rounded.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

RATIOS = (0.5, 1.0, 2.0)
_MULTIPLE = 32  # Images are padded to multiples of so many pixels.


def anchor_boxes(
    shape: tuple[int, int],
    strides: Sequence[int],
    scale: float = 8,
    ratios: Sequence[float] = RATIOS,
    *,
    portrait: bool | Array = False,
) -> list[Array]:
    """The anchors of all cells of all levels.

    Args:
      shape: of the canvas, rows and columns in pixels.
      strides: of the levels, in pixels; a level has a cell for every begun stride.
      scale: square root of an anchor's area, in strides.
      ratios: heights over widths.
      portrait: whether images lie on their side, so that rows of the canvas are their x. One for
        all; may be traced.

    Returns:
      For each level float32 [cells * ratios, 4], upright; in the order of rows, columns (of the
      canvas), ratios.
    """
    return [
        _level(map_shape, stride, base_anchors(stride, scale, ratios), portrait)
        for map_shape, stride in zip(map_shapes(shape, strides), strides, strict=True)
    ]


def valid_anchors(
    shape: tuple[int, int],
    strides: Sequence[int],
    size: Array,
    ratios: int = len(RATIOS),
    *,
    portrait: bool | Array = False,
) -> list[Array]:
    """Which anchors start from a cell of an image's own maps, in the order of `anchor_boxes`.

    Args:
      shape: of the canvas, rows and columns in pixels.
      strides: of the levels, in pixels.
      size: whole numbers [..., 2]: height and width of the images, in pixels, upright. They count
        as padded to multiples of 32.
      ratios: how many anchors a cell has.
      portrait: as in `anchor_boxes`.

    Returns:
      For each level bool [..., cells * ratios].
    """
    padded = -(-size // _MULTIPLE) * _MULTIPLE
    padded = jnp.where(portrait, padded[..., ::-1], padded)  # rows and columns of the canvas
    found = []
    for shape_of_map, stride in zip(map_shapes(shape, strides), strides, strict=True):
        row, column, _ = _cells(shape_of_map, ratios)
        own = -(-padded // stride)[..., None]
        leading = (1,) * (own.ndim - 2)
        row, column = (x.reshape(*leading, -1) for x in (row, column))
        found.append((row < own[..., 0, :]) & (column < own[..., 1, :]))
    return found


def inside_image(anchors: Array, size: Array) -> Array:
    """Which anchors do not cross the border of the image (mmdet's `allowed_border` 0).

    Args:
      anchors: [..., A, 4].
      size: [..., 2], height and width in pixels without padding.

    Returns:
      bool [..., A].
    """
    height, width = (size[..., i, None].astype(anchors.dtype) for i in (0, 1))
    x1, y1, x2, y2 = (anchors[..., i] for i in range(4))
    return (x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height)


def map_shapes(shape: tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and columns of the levels' maps on a canvas."""
    return [(-(-shape[0] // stride), -(-shape[1] // stride)) for stride in strides]


def base_anchors(stride: int, scale: float, ratios: Sequence[float]) -> np.ndarray:
    """The anchors of the cell at 0, 0: float32 [ratios, 4]. All have the same area."""
    roots = np.sqrt(np.asarray(ratios, np.float32))
    side = np.float32(stride * scale)
    halves = np.stack([side / roots, side * roots], -1) / 2  # of width and height
    return np.concatenate([-halves, halves], -1)


def _level(shape: tuple[int, int], stride: int, base: np.ndarray, portrait: bool | Array) -> Array:
    row, column, ratio = _cells(shape, len(base))
    x, y = jnp.where(portrait, row, column), jnp.where(portrait, column, row)
    corners = (x * stride).astype(jnp.float32), (y * stride).astype(jnp.float32)
    return jnp.stack([corners[i % 2] + _choose(ratio, base[:, i]) for i in range(4)], -1)


def _cells(shape: tuple[int, int], ratios: int) -> tuple[Array, Array, Array]:
    """Row, column and ratio of each of a level's anchors: int32 [cells * ratios].

    From one long iota: as constants, all levels of a canvas of 800 x 1344 would be 4 MB of the
    program; and of axes of 3 and 4 that are reshaped the compiler for TPUs makes 89 MB of code.
    """
    number = jnp.arange(shape[0] * shape[1] * ratios, dtype=jnp.int32)
    cell = number // ratios
    return cell // shape[1], cell % shape[1], number % ratios


def _choose(index: Array, values: np.ndarray) -> Array:
    """`values[index]` without a gather."""
    chosen = jnp.asarray(values[0])
    for number, value in enumerate(values[1:], 1):
        chosen = jnp.where(index == number, value, chosen)
    return chosen
