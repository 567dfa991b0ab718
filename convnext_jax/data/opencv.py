"""Resizing and changing colours of uint8 images, to the bit as OpenCV computes them on x86-64.

The reference's pipeline for segmentation runs on OpenCV; PIL's bilinear resizing smooths when it
shrinks, and its HSV has another range. Written from OpenCV's behaviour: fixed-point weights of 11
bits, and for HSV tables of 12 bits one way and float32 with fused multiply-adds, cut off, the
other.
"""

import numpy as np

# (top, left, height, width), pixels.
Part = tuple[int, int, int, int]


def resize_bilinear(
    image: np.ndarray, height: int, width: int, part: Part | None = None
) -> np.ndarray:
    """Resizes (`cv2.INTER_LINEAR`): nothing is smoothed.

    Args:
      image: uint8 [H, W, 3].
      height: of the whole result.
      width: likewise.
      part: lies inside the result; None: all of it. Only this is computed.

    Returns:
      uint8 [height, width, 3], or the part's.
    """
    from convnext_jax.data import opencv_kernels  # Numba takes a while to import.

    top, left, high, wide = part or (0, 0, height, width)
    rows = _weights(image.shape[0], height, slice(top, top + high), clamped=False)
    columns = _weights(image.shape[1], width, slice(left, left + wide), clamped=True)
    return opencv_kernels.bilinear(image, rows, columns)


def resize_nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes [H, W] to [height, width] (`cv2.INTER_NEAREST`): from the upper left, not centred."""
    rows, columns = map(nearest_places, labels.shape, (height, width))
    return labels[rows][:, columns]


def nearest_places(before: int, after: int) -> np.ndarray:
    """Which of `before` pixels each of `after` pixels is (`cv2.INTER_NEAREST`): int64 [after]."""
    # Not `before / after`, which is rounded otherwise.
    return np.minimum((np.arange(after) * (1 / (after / before))).astype(np.int64), before - 1)


def recolour(image: np.ndarray, hues: np.ndarray, saturations: np.ndarray) -> np.ndarray:
    """Changes hues and saturations (`cv2.COLOR_RGB2HSV`, then `cv2.COLOR_HSV2RGB`).

    As OpenCV does it for rows of 32 pixels and more; what is left of a row it rounds.

    Args:
      image: uint8 [H, W, 3], RGB.
      hues: uint8 [180], what each hue becomes, 0..179.
      saturations: uint8 [256], likewise.
    """
    from convnext_jax.data import opencv_kernels

    return opencv_kernels.recoloured(image, hues, saturations)


def _weights(before: int, after: int, part: slice, *, clamped: bool) -> tuple[np.ndarray, ...]:
    """Of each place of a part after resizing: two neighbours before it, and their weights in 2^11.

    Beyond an edge the one at the edge has all of the weight, if it is `clamped`; else it takes both
    weights, which differs in how the products are cut off.
    """
    places = ((np.arange(after)[part] + 0.5) * (before / after) - 0.5).astype(np.float32)
    first = np.floor(places).astype(np.int32)
    share = places - first.astype(np.float32)
    if clamped:
        share = np.where((first < 0) | (first >= before - 1), np.float32(0), share)
    one, other = (np.rint(s * np.float32(2**11)).astype(np.int32) for s in (1 - share, share))
    return np.clip(first, 0, before - 1), np.clip(first + 1, 0, before - 1), one, other
