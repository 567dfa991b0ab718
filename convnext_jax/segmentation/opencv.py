"""Resizing and colour spaces of uint8 images, to the bit as OpenCV computes them on x86-64.

The reference's pipeline runs on OpenCV; PIL's bilinear resizing smooths when it shrinks, and its
HSV has another range. Written from OpenCV's behaviour: fixed-point weights of 11 bits, and for HSV
tables of 12 bits one way and float32 with fused multiply-adds, cut off, the other.
"""

import functools

import numpy as np

_BITS = 11
_HUES = 180


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 [H, W, C] to [height, width, C] (`cv2.INTER_LINEAR`): nothing is smoothed."""
    left, right, one, other = _weights(image.shape[1], width, clamped=True)
    values = image.astype(np.int32)
    rows = values[:, left] * one[None, :, None] + values[:, right] * other[None, :, None]
    rows >>= 4
    upper, lower, one, other = _weights(image.shape[0], height, clamped=False)
    sums = (rows[upper] * one[:, None, None] >> 16) + (rows[lower] * other[:, None, None] >> 16)
    return np.clip(sums + 2 >> 2, 0, 255).astype(np.uint8)


def resize_nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes [H, W] to [height, width] (`cv2.INTER_NEAREST`): from the upper left, not centred."""
    rows, columns = (
        np.minimum((np.arange(after) * (before / after)).astype(np.int64), before - 1)
        for before, after in zip(labels.shape, (height, width), strict=True)
    )
    return labels[rows][:, columns]


def _weights(
    before: int, after: int, *, clamped: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each place after resizing: two neighbours before it, and their weights in 2^11.

    Beyond an edge the one at the edge has all of the weight, if it is `clamped`; else it takes both
    weights, which differs in how the products are cut off.
    """
    places = ((np.arange(after) + 0.5) * (before / after) - 0.5).astype(np.float32)
    first = np.floor(places).astype(np.int64)
    share = places - first.astype(np.float32)
    if clamped:
        share = np.where((first < 0) | (first >= before - 1), np.float32(0), share)
    scale = np.float32(2**_BITS)
    one, other = (np.rint(s * scale).astype(np.int32) for s in (np.float32(1) - share, share))
    return np.clip(first, 0, before - 1), np.clip(first + 1, 0, before - 1), one, other


@functools.cache
def _hsv_tables() -> tuple[np.ndarray, np.ndarray]:
    divisors = np.maximum(np.arange(256), 1)
    saturation = np.rint((255 << 12) / divisors).astype(np.int64)
    hue = np.rint((_HUES << 12) / (6.0 * divisors)).astype(np.int64)
    saturation[0] = hue[0] = 0
    return saturation, hue


def rgb_to_hsv(image: np.ndarray) -> np.ndarray:
    """Converts uint8 [..., RGB] to [..., HSV] (`cv2.COLOR_RGB2HSV`): hue in 0..179."""
    saturations, hues = _hsv_tables()
    red, green, blue = np.moveaxis(image.astype(np.int64), -1, 0)
    value = image.max(-1).astype(np.int64)
    spread = value - image.min(-1)
    saturation = spread * saturations[value] + 2**11 >> 12
    hue = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = hue * hues[spread] + 2**11 >> 12
    hue = np.where(hue < 0, hue + _HUES, hue)
    return np.stack([hue, saturation, value], -1).astype(np.uint8)


# Which of (v, v (1 - s), v (1 - s f), v (1 - s (1 - f))) is red, green and blue in each sextant.
_SEXTANTS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])


def hsv_to_rgb(image: np.ndarray) -> np.ndarray:
    """Converts uint8 [..., HSV] to [..., RGB] (`cv2.COLOR_HSV2RGB`).

    As OpenCV does it for rows of 32 pixels and more; what is left of a row it rounds.
    """
    one, byte = np.float32(1), np.float32(1 / 255)
    hue, saturation, value = np.moveaxis(image.astype(np.float32), -1, 0)
    hue = hue * np.float32(6 / _HUES)
    saturation, value = saturation * byte, value * byte
    sextant = np.floor(hue)
    rest = hue - sextant

    def less(share: np.ndarray) -> np.ndarray:
        # 1 - s * share, rounded once.
        return (1 - saturation.astype(np.float64) * share.astype(np.float64)).astype(np.float32)

    parts = np.stack([value, value * less(np.ones_like(rest)), value * less(rest), value], -1)
    parts[..., 3] *= less(one - rest)
    chosen = _SEXTANTS[sextant.astype(np.int64) % 6]
    found = np.take_along_axis(parts, chosen, -1) * np.float32(255)
    return np.clip(np.trunc(found), 0, 255).astype(np.uint8)
