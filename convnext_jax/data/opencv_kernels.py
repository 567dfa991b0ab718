"""What `opencv` computes, compiled: OpenCV's arithmetic in its order, so its pixels."""

import math

import numpy as np

from convnext_jax.data.compiled import compiled, inlined

# Hues are 0..179.
_HUES = 180
# Of a weight of the bilinear resizing there are 11 bits, of the tables for HSV 12.
_TABLE_BITS = 12


@compiled
def bilinear(source, rows, columns):
    """Sums four neighbours of each place, in fixed point.

    Args:
      source: uint8 [H, W, 3].
      rows: (upper, lower, weights of the upper, weights of the lower): int32 [rows]; weights are
        multiples of 2^-11.
      columns: likewise (left, right, ...).

    Returns:
      uint8 [rows, columns, 3].
    """
    upper, lower, upper_weights, lower_weights = rows
    above, below = _along(source, upper[0], columns), _along(source, lower[0], columns)
    result = np.empty((upper.size, above.size), np.uint8)
    for i in range(upper.size):
        if i > 0 and upper[i] != upper[i - 1]:
            above = below if upper[i] == lower[i - 1] else _along(source, upper[i], columns)
        if i > 0 and lower[i] != lower[i - 1]:
            below = above if lower[i] == upper[i] else _along(source, lower[i], columns)
        one, other = upper_weights[i], lower_weights[i]
        for k in range(above.size):
            total = (above[k] * one >> 16) + (below[k] * other >> 16)
            result[i, k] = min(max((total + 2) >> 2, 0), 255)
    return result.reshape(upper.size, -1, 3)


@compiled
def _along(source, row, columns):
    """One row, resized: int32 [columns * 3], with 4 of the weights' bits cut off."""
    left, right, left_weights, right_weights = columns
    result = np.empty(left.size * 3, np.int32)
    pixels = source[row]
    for i in range(left.size):
        one, other = left_weights[i], right_weights[i]
        for k in range(3):
            total = np.int32(pixels[left[i], k]) * one + np.int32(pixels[right[i], k]) * other
            result[3 * i + k] = total >> 4
    return result


@compiled
def recoloured(source, hues, saturations):
    """Converts to HSV, replaces hues and saturations, and converts back.

    Args:
      source: uint8 [H, W, 3], RGB.
      hues: uint8 [180], what each hue becomes, 0..179.
      saturations: uint8 [256], likewise.

    Returns:
      uint8 [H, W, 3], RGB.
    """
    saturation_table, hue_table = _tables()
    height, width, _ = source.shape
    result = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            red, green, blue = (
                np.int64(source[y, x, 0]),
                np.int64(source[y, x, 1]),
                np.int64(source[y, x, 2]),
            )
            value = max(red, green, blue)
            spread = value - min(red, green, blue)
            if value == red:
                hue = green - blue
            elif value == green:
                hue = blue - red + 2 * spread
            else:
                hue = red - green + 4 * spread
            half = 1 << (_TABLE_BITS - 1)
            hue = (hue * hue_table[spread] + half) >> _TABLE_BITS
            if hue < 0:
                hue += _HUES
            saturation = (spread * saturation_table[value] + half) >> _TABLE_BITS
            _put_rgb(result[y, x], hues[hue], saturations[saturation], value)
    return result


@compiled
def _tables():
    """255 / v and 180 / (6 v) for each v, in multiples of 2^-12, rounded half to even."""
    saturations, hues = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for i in range(1, 256):
        saturations[i] = np.int64(np.rint((255 << _TABLE_BITS) / np.float64(i)))
        hues[i] = np.int64(np.rint((_HUES << _TABLE_BITS) / (6.0 * i)))
    return saturations, hues


@inlined
def _put_rgb(pixel, hue, saturation, value):
    """Writes RGB [3] of a hue 0..179, a saturation and a value 0..255: in float32, cut off."""
    byte = np.float32(1 / 255)
    turns = np.float32(hue) * np.float32(6 / _HUES)
    grey, bright = np.float32(saturation) * byte, np.float32(value) * byte
    sextant = np.int64(math.floor(turns))
    rest = turns - np.float32(sextant)
    least = bright * _less(grey, np.float32(1))
    falling = bright * _less(grey, rest)
    rising = bright * _less(grey, np.float32(1) - rest)
    if sextant == 0:
        red, green, blue = bright, rising, least
    elif sextant == 1:
        red, green, blue = falling, bright, least
    elif sextant == 2:
        red, green, blue = least, bright, rising
    elif sextant == 3:
        red, green, blue = least, falling, bright
    elif sextant == 4:
        red, green, blue = rising, least, bright
    else:
        red, green, blue = bright, least, falling
    pixel[0] = np.uint8(min(max(red * np.float32(255), np.float32(0)), np.float32(255)))
    pixel[1] = np.uint8(min(max(green * np.float32(255), np.float32(0)), np.float32(255)))
    pixel[2] = np.uint8(min(max(blue * np.float32(255), np.float32(0)), np.float32(255)))


@inlined
def _less(saturation, share):
    """1 - saturation * share, rounded once, as a fused multiply-add rounds it."""
    return np.float32(1.0 - np.float64(saturation) * np.float64(share))
