"""Sliding windows over images: where they lie, and how their logits are put together."""

import numpy as np


def window_starts(side: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along an axis; the last one ends with it.

    (mmsegmentation 0.11, `slide_inference`.)

    Args:
      side: of the image, pixels.
      crop: of a window; where the image is smaller, its only window is.
      stride: from one window to the next.
    """
    count = max(side - crop + stride - 1, 0) // stride + 1
    ends = (min(i * stride + crop, side) for i in range(count))
    return [max(end - crop, 0) for end in ends]


def windows(height: int, width: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """The upper left corners of an image's windows, row by row."""
    return [
        (top, left)
        for top in window_starts(height, crop, stride)
        for left in window_starts(width, crop, stride)
    ]


def window_counts(height: int, width: int, crop: int, stride: int) -> np.ndarray:
    """How many windows see each pixel: float32 [height, width]."""
    rows, columns = (np.zeros(side, np.float32) for side in (height, width))
    for axis in (rows, columns):
        for start in window_starts(len(axis), crop, stride):
            axis[start : start + crop] += 1
    return np.outer(rows, columns)
