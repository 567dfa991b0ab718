"""RoIAlign (Mask R-CNN, section 3): features, or bitmaps, of boxes on a grid of fixed size.

Bins are means of bilinear samples, which are separable: a box's features are W_y F W_x^T, where
W_y and W_x hold how much of each row and column of the map F a bin's samples see.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax


def roi_align(
    maps: Sequence[Array],
    sizes: Sequence[Array],
    boxes: Array,
    levels: Array,
    strides: Sequence[int],
    out: int,
) -> Array:
    """The features of boxes, each from its own level.

    As mmcv's and torchvision's with `aligned=True` and `sampling_ratio=0`: a bin of b x b cells is
    the mean of ceil(b) x ceil(b) samples; a sample more than one cell beyond the border counts as
    0, one less far takes the border's value.

    Args:
      maps: [N, H_l, W_l, C] floating point, of each level.
      sizes: whole numbers [N, 2] of each level: rows and columns of each example's own map, where
        its border is; beyond it nothing is read.
      boxes: float32 [N, R, 4]: x1, y1, x2, y2 in pixels, x along columns. No gradient.
      levels: int32 [N, R], indices into `maps`; what is none of them gets zeros.
      strides: pixels per cell of each level.
      out: rows and columns of bins.

    Returns:
      [N, R, out, out, C], dtype of the maps; computed in float32.
    """
    boxes = lax.stop_gradient(boxes)

    def one(features: list[Array], borders: list[Array], box: Array, level: Array) -> Array:
        total = jnp.zeros((out, out, maps[0].shape[-1]), jnp.float32)
        for index, (x, size, stride) in enumerate(zip(features, borders, strides, strict=True)):
            scaled = box / stride - 0.5
            rows = _weights(scaled[1], scaled[3], size[0], x.shape[0], out)
            columns = _weights(scaled[0], scaled[2], size[1], x.shape[1], out)
            rows = jnp.where(level == index, rows, 0)
            x = x.astype(jnp.float32)
            half = jnp.einsum("py,yxc->pxc", rows, x, precision="highest")
            total += jnp.einsum("qx,pxc->pqc", columns, half, precision="highest")
        return total.astype(maps[0].dtype)

    def of_image(arguments: tuple) -> Array:
        features, borders, image_boxes, image_levels = arguments
        return lax.map(lambda x: one(features, borders, *x), (image_boxes, image_levels))

    return lax.map(of_image, (list(maps), list(sizes), boxes, levels))


def box_levels(boxes: Array, levels: int = 4, finest: float = 56.0) -> Array:
    """The level that a box's features are taken from (FPN, equation 1, as mmdet rounds it).

    Args:
      boxes: [..., 4] in pixels.
      levels: how many there are.
      finest: square root of the area, in pixels, from which on the level is 0; it doubles from
        level to level, and smaller boxes are on level 0, too.

    Returns:
      int32 [...] in 0..levels - 1.
    """
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    scale = jnp.sqrt(sides[..., 0] * sides[..., 1])
    level = jnp.floor(jnp.log2(scale / finest + 1e-6))
    return jnp.clip(level, 0, levels - 1).astype(jnp.int32)


def mask_targets(masks: Array, boxes: Array, objects: Array, out: int = 28) -> Array:
    """What the mask of an object is within boxes: RoIAlign of its bitmap, 0.5 or more.

    Args:
      masks: uint8 [N, G, S, L // 8], bitmaps of objects, bits packed along the last axis as by
        `numpy.packbits`.
      boxes: float32 [N, R, 4] in pixels of the bitmaps.
      objects: int32 [N, R]: which of the G; negative for none, whose targets are False.
      out: rows and columns of a target.

    Returns:
      bool [N, R, out, out].
    """
    short, long = masks.shape[2], masks.shape[3] * 8

    def one(image_masks: Array, box: Array, index: Array) -> Array:
        bitmap = jnp.unpackbits(image_masks[index], axis=-1).astype(jnp.float32)
        box = box - 0.5
        rows = _weights(box[1], box[3], jnp.int32(short), short, out)
        columns = _weights(box[0], box[2], jnp.int32(long), long, out)
        half = jnp.einsum("py,yx->px", rows, bitmap, precision="highest")
        mean = jnp.einsum("px,qx->pq", half, columns, precision="highest")
        return (mean >= 0.5) & (index >= 0)

    def of_image(arguments: tuple) -> Array:
        image_masks, image_boxes, image_objects = arguments
        return lax.map(lambda x: one(image_masks, *x), (image_boxes, image_objects))

    return lax.map(of_image, (masks, boxes, objects))


def _weights(start: Array, end: Array, size: Array, cells: int, out: int) -> Array:
    """How much of each cell of an axis the bins of a box see: float32 [out, cells]."""
    length = end - start
    samples = jnp.ceil(length / out)
    # Divisions by constants become products with their inverses, which may end just above a whole
    # number: 21 / 7 would need 4 samples.
    samples = jnp.where((samples - 1) * out >= length, samples - 1, samples)
    samples = jnp.maximum(samples, 0)
    step = length / out / jnp.maximum(samples, 1)

    def add(index: Array, total: Array) -> Array:
        places = start + jnp.arange(out) * (length / out) + (index + 0.5) * step
        last = size.astype(jnp.float32) - 1
        inside = (places >= -1) & (places <= last + 1)
        places = jnp.clip(places, 0, last)
        near = 1 - jnp.abs(places[:, None] - jnp.arange(cells, dtype=jnp.float32)[None])
        return total + jnp.where(inside[:, None], jnp.maximum(near, 0), 0)

    start_total = jnp.zeros((out, cells), jnp.float32)
    total = jax.lax.fori_loop(0, samples.astype(jnp.int32), add, start_total)
    return total / jnp.maximum(samples, 1)
