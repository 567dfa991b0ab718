"""Where the bins of RoIAlign lie along one axis, and how much of each cell they see.

A bin of b cells is the mean of ceil(b) bilinear samples, evenly spaced. A sample more than one cell
beyond the border counts as 0; one less far beyond takes the border's value. (mmcv and torchvision
with `aligned=True` and `sampling_ratio=0`.)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

# No more samples of a bin see one cell: they are ceil(b) with b / ceil(b) cells between them, so
# 2 are all there are of the bin, and 3 or more are over 2/3 of a cell apart; a cell is seen from
# less than 1 cell away. One more for rounding of the first's index.
_SAMPLES = 3 + 1
_SLACK = 0.01  # cells; rounding is far less, and seeing a cell more is no error


class Bins(NamedTuple):
    """The bins of boxes along one axis; all fields have the shape of the boxes' coordinates."""

    first: Array  # int32: the first cell that is seen
    cells: Array  # int32: how many from there on hold all that are seen; 0 if the box is empty
    start: Array  # float32: where the bins begin, in cells from the first one's centre
    length: Array  # float32: of a bin, in cells
    samples: Array  # float32: of a bin, a whole number
    last: Array  # float32: the map's last cell, counted from the first one


def bins(start: Array, end: Array, size: Array, out: int, multiple: int = 1) -> Bins:
    """The bins of boxes.

    Args:
      start: float32 [...], where boxes begin, in cells; the first cell reaches from 0 to 1.
      end: float32 [...], where they end. Boxes that end before they begin see nothing, nor do
        those that are not finite.
      size: whole numbers [...]: cells of the map.
      out: bins of a box.
      multiple: of which `first` is one.
    """
    start, end = start - 0.5, end - 0.5  # from here on, cell k is the point k
    total = end - start
    total = jnp.where(jnp.isfinite(total), total, 0)
    samples = jnp.ceil(total / out)
    # XLA multiplies by the inverse of a constant: 21 / 7 may be just above 3.
    samples = jnp.where((samples - 1) * out >= total, samples - 1, samples)
    samples = jnp.maximum(samples, 0)
    length = total / out
    half = length / jnp.maximum(samples, 1) / 2
    last = size.astype(jnp.float32) - 1
    nearest = jnp.clip(start + half, 0, last) - _SLACK
    farthest = jnp.clip(start + out * length - half, 0, last) + _SLACK
    first = jnp.maximum(jnp.floor(nearest).astype(jnp.int32), 0) // multiple * multiple
    behind = jnp.minimum(jnp.floor(farthest).astype(jnp.int32) + 2, size)
    cells = jnp.where(samples > 0, behind - first, 0)
    return Bins(first, cells, start - first, length, samples, last - first)


def weights(bins: Bins, cells: Array, out: int) -> Array:
    """The part of each cell in each bin: what to multiply a map with for the means of the bins.

    Args:
      bins: of boxes [...].
      cells: int32 [..., K], counted from `bins.first` on.
      out: bins of a box.

    Returns:
      float32 [..., out, K].
    """
    start, length, samples, last, first = (
        x[..., None, None].astype(jnp.float32)
        for x in (bins.start, bins.length, bins.samples, bins.last, bins.first)
    )
    cell = cells[..., None, :].astype(jnp.float32)
    order = jnp.arange(out, dtype=jnp.float32).reshape((1,) * (cells.ndim - 1) + (out, 1))
    begin = start + order * length
    step = jnp.where(samples > 0, length / jnp.maximum(samples, 1), 1)
    # Not all samples: a bin of an image's whole width has 48, of which a cell sees 3.
    index = jnp.maximum(jnp.ceil((cell - 1 - begin) / step - 0.5 - _SLACK), 0)
    total = jnp.zeros(index.shape, jnp.float32)
    for _ in range(_SAMPLES):
        place = begin + (index + 0.5) * step
        counts = (index < samples) & (place >= -1 - first) & (place <= last + 1)
        near = 1 - jnp.abs(jnp.clip(place, -first, last) - cell)
        total += jnp.where(counts, jnp.maximum(near, 0), 0)
        index += 1
    return total / jnp.maximum(samples, 1)
