"""Sliding windows along an axis of an image: where they lie, and how many see each place."""

import numpy as np


def stride_of(crop: int) -> int:
    """From one window to the next, as in the paper's configs: two thirds of a window, cut off."""
    return crop * 2 // 3


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


def window_counts(side: int, crop: int, stride: int) -> np.ndarray:
    """How many windows see each place of an axis: float32 [side]."""
    counts = np.zeros(side, np.float32)
    for start in window_starts(side, crop, stride):
        counts[start : start + crop] += 1
    return counts
