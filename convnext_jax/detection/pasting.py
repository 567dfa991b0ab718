"""Masks of detections as pixels of the image, and as COCO's run lengths."""

import math
from typing import Any, NamedTuple

import numpy as np


class Pasted(NamedTuple):
    """The pixels of an object: a part of an image's bitmap, which is 0 elsewhere.

    Attributes:
      top: first row of the part.
      left: its first column.
      bitmap: uint8 [rows, columns] of the part, 0 or 1; either may be none.
    """

    top: int
    left: int
    bitmap: np.ndarray


def paste(probabilities: np.ndarray, box: np.ndarray, height: int, width: int) -> Pasted:
    """Which pixels of an image a mask covers.

    The probabilities lie over the box in equal cells; a pixel is covered if they are 0.5 or more at
    its centre, bilinear between the cells' centres and towards zero outside. (mmdet 2.11,
    `fcn_mask_head._do_paste_mask`, whose pixels these are but for sums that float32 rounds to the
    other side of 0.5.) A box without width or height covers nothing; there, mmdet takes the middle
    of the mask for all of a row or column of the image.

    Args:
      probabilities: float [m, m], rows and columns of the box.
      box: float [4], x1, y1, x2, y2 in pixels of the image; it may reach beyond the image.
      height: of the image, pixels.
      width: likewise.

    Returns:
      The pixels inside the box: outside no sum comes to more than half of a probability.
    """
    from convnext_jax.data import mask_kernels  # Numba takes a while to import.

    box = np.asarray(box, np.float32)
    if not np.isfinite(box).all() or not (box[2:] > box[:2]).all():
        return Pasted(0, 0, np.zeros((0, 0), np.uint8))
    left, right = _span(float(box[0]), float(box[2]), width)
    top, bottom = _span(float(box[1]), float(box[3]), height)
    # Columns are contiguous: COCO's runs go down them.
    turned = np.zeros((right - left, bottom - top), np.uint8)
    probabilities = np.ascontiguousarray(probabilities, np.float32)
    mask_kernels.paste(probabilities, box, top, left, turned)
    return Pasted(top, left, turned.T)


def encode(pasted: Pasted, height: int, width: int) -> dict[str, Any]:
    """A mask in COCO's compressed form, as result files have it.

    Args:
      pasted: inside the image.
      height: of the image, pixels.
      width: likewise.

    Returns:
      `size`, height and width, and `counts`, text.
    """
    from convnext_jax.data import mask_kernels

    turned = np.ascontiguousarray(pasted.bitmap.T)
    runs = mask_kernels.run_lengths(turned, pasted.top, pasted.left, height, width)
    return {"size": [height, width], "counts": mask_kernels.packed(runs).tobytes().decode("ascii")}


def _span(low: float, high: float, side: int) -> tuple[int, int]:
    """The pixels whose centres may lie between two places, and one more for rounding."""
    first = min(max(math.floor(low) - 1, 0), side)
    return first, max(first, min(math.ceil(high) + 1, side))
