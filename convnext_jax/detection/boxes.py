"""Boxes: overlaps, deltas, and the loss between two of them.

A box is x1, y1, x2, y2 in pixels, upright, float32 along the last axis; its width is x2 - x1.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

# Widths and heights change by at most this factor at a time, up or down (mmdet's `wh_ratio_clip`).
LARGEST_LOG_RATIO = math.log(1000 / 16)
_LEAST_AREA = 1e-6  # of what an area is divided by, as mmdet has it


def area(boxes: Array) -> Array:
    """Areas [...] in square pixels of boxes [..., 4]; negative for a box with one side negative."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of every box of `a` with every one of `b`.

    Args:
      a: [..., A, 4].
      b: [..., B, 4], with the same leading axes.

    Returns:
      [..., A, B] in 0..1; 0 where neither box has an area.
    """
    return iou_of_coordinates(
        [x[..., :, None] for x in coordinates(a)], [x[..., None, :] for x in coordinates(b)]
    )


def coordinates(boxes: Array) -> list[Array]:
    """x1, y1, x2 and y2 of boxes [..., 4], each [...].

    Arithmetic on them one by one is vectorised; on [..., 4] and [..., 2] it is hardly so on CPUs,
    and on TPUs 4 of 128 lanes work.
    """
    return [boxes[..., i] for i in range(4)]


def iou_of_coordinates(a: Sequence[Array], b: Sequence[Array]) -> Array:
    """Intersection over union of boxes whose `coordinates` broadcast, as `iou` otherwise."""
    intersection, union = _intersection_and_union(a, b)
    return intersection / union


def clip(boxes: Array, size: Array) -> Array:
    """Boxes [..., 4] cut off at the borders of an image.

    Args:
      boxes: [..., 4].
      size: [..., 2], height and width in pixels, with the leading axes of `boxes` (or ones there).
    """
    height, width = (size[..., i].astype(boxes.dtype) for i in (0, 1))
    limits = jnp.stack([width, height, width, height], -1)
    return jnp.clip(boxes, 0, limits)


def encode(anchors: Array, boxes: Array, stds: Sequence[float]) -> Array:
    """Deltas that lead from anchors to boxes (R-CNN, appendix C; mmdet's `DeltaXYWHBBoxCoder`).

    Args:
      anchors: [..., 4] that deltas start from.
      boxes: [..., 4] that they end at.
      stds: 4 numbers that deltas are divided by: of x, y, width and height.

    Returns:
      [..., 4]: shift of the centre in x and y relative to the anchor's size, logarithms of the
      ratios of widths and heights. A side that is not positive counts as 1 pixel, which keeps
      boxes that only fill up an array finite.
    """
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre, size = _centre_and_size(boxes)
    anchor_size, size = (jnp.where(s > 0, s, 1) for s in (anchor_size, size))
    shift = (centre - anchor_centre) / anchor_size
    return jnp.concatenate([shift, jnp.log(size / anchor_size)], -1) / _like(stds, anchors)


def decode(anchors: Array, deltas: Array, stds: Sequence[float]) -> Array:
    """The boxes that deltas lead to: the inverse of `encode`.

    Logarithms of ratios are limited to those of 16/1000 and 1000/16. Boxes are not clipped.

    Args:
      anchors: [..., 4].
      deltas: [..., 4]; axes of the two broadcast.
      stds: 4 numbers that deltas were divided by.
    """
    deltas = deltas * _like(stds, deltas)
    shift, log_ratio = deltas[..., :2], deltas[..., 2:]
    ratio = jnp.exp(jnp.clip(log_ratio, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre, half = anchor_centre + anchor_size * shift, anchor_size * ratio / 2
    return jnp.concatenate([centre - half, centre + half], -1)


def giou_loss(predicted: Array, target: Array) -> Array:
    """1 - generalised IoU (arXiv 1902.09630) of pairs of boxes, as mmdet's `GIoULoss`.

    Args:
      predicted: [..., 4].
      target: [..., 4].

    Returns:
      [...] in 0..2. What is divided by is at least 1e-6 square pixels.
    """
    a, b = coordinates(predicted), coordinates(target)
    intersection, union = _intersection_and_union(a, b)
    width = jnp.maximum(a[2], b[2]) - jnp.minimum(a[0], b[0])
    height = jnp.maximum(a[3], b[3]) - jnp.minimum(a[1], b[1])
    hull = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    hull = jnp.maximum(hull, _LEAST_AREA)
    return 1 - (intersection / union - (hull - union) / hull)


def _intersection_and_union(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, Array]:
    """Areas; that of the union, to divide by, is not 0."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a, b
    width = jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1), 0)
    height = jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1), 0)
    intersection = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    return intersection, jnp.maximum(union, _LEAST_AREA)


def _centre_and_size(boxes: Array) -> tuple[Array, Array]:
    lower, upper = boxes[..., :2], boxes[..., 2:]
    return (lower + upper) / 2, upper - lower


def _like(stds: Sequence[float], x: Array) -> Array:
    """`stds` along the last of as many axes as `x` has."""
    return jnp.asarray(np.asarray(stds, np.float32).reshape((1,) * (x.ndim - 1) + (4,)), x.dtype)
