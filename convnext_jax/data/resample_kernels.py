"""What `resample` computes, compiled: Pillow's arithmetic in its order, so its pixels.

When resizing, weights are whole multiples of 2^-22 and sums are exact; affine transforms work in
double precision.
"""

import math

import numpy as np

from convnext_jax.data.compiled import compiled, inlined

# Bits of a weight below one: of 32 bits, 8 are the pixel's and 2 are headroom.
_PRECISION = 22
# Rows of a block that is transposed at a time; its pixels stay in the cache.
_BLOCK = 16


@compiled
def resize(source, width, height, left, top, right, bottom, can_start_vertically):
    """Resizes bicubic with antialiasing.

    Args:
      source: uint8 [H, W, 3 or 4]; the fourth value of a pixel is not read.
      width: of the whole result.
      height: of the whole result.
      left: first column to compute.
      top: first row to compute.
      right: column after the last to compute.
      bottom: row after the last to compute.
      can_start_vertically: whether the rows may be reduced before the columns.

    Returns:
      uint8 [bottom - top, right - left, 3].
    """
    shrink_high, shrink_wide = source.shape[0] - height, source.shape[1] - width
    if can_start_vertically and shrink_high > 0 and shrink_high > 2 * shrink_wide:
        flat = _resized(_packed(source), height, top, bottom)
        return _transposed(_resized(_transposed(flat), width, left, right))
    thin = _transposed(_resized(_transposed(source), width, left, right))
    return _resized(thin, height, top, bottom)


@compiled
def affine(source, a, b, c, d, e, f, fill):
    """Takes the pixel at (x, y) from (a x + b y + c, d x + e y + f) of `source`, bicubic.

    Args:
      source: uint8 [H, W, 3 or 4]; the fourth value of a pixel is not read.
      a: float, as the others.
      b: see above.
      c: see above.
      d: see above.
      e: see above.
      f: see above.
      fill: uint8 [3], the colour of what comes from outside.

    Returns:
      uint8 [H, W, 3].
    """
    height, width, _ = source.shape
    result = np.empty((height, width, 3), np.uint8)
    for row in range(height):
        for column in range(width):
            x = a * (column + 0.5) + b * (row + 0.5) + c
            y = d * (column + 0.5) + e * (row + 0.5) + f
            if x < 0.0 or x >= width or y < 0.0 or y >= height:
                for k in range(3):
                    result[row, column, k] = fill[k]
                continue
            x -= 0.5
            y -= 0.5
            left, top = math.floor(x), math.floor(y)
            s, t = x - left, y - top
            x0, x1 = _inside(left - 1, width), _inside(left, width)
            x2, x3 = _inside(left + 1, width), _inside(left + 2, width)
            y0, y1 = _inside(top - 1, height), _inside(top, height)
            y2, y3 = _inside(top + 1, height), _inside(top + 2, height)
            for k in range(3):
                pixels = source[:, :, k]
                # Where a pixel does not move along an axis, its spline gives the pixel itself.
                if t == 0.0:
                    value = _between(pixels[y1], x0, x1, x2, x3, s)
                elif s == 0.0:
                    value = _between(pixels[:, x1], y0, y1, y2, y3, t)
                else:
                    value = _spline(
                        _between(pixels[y0], x0, x1, x2, x3, s),
                        _between(pixels[y1], x0, x1, x2, x3, s),
                        _between(pixels[y2], x0, x1, x2, x3, s),
                        _between(pixels[y3], x0, x1, x2, x3, s),
                        t,
                    )
                result[row, column, k] = np.uint8(min(max(value, 0.0), 255.0))
    return result


@compiled
def _resized(source, after, start, stop):
    """Resizes the first axis of contiguous uint8 [N, M, 3] to `after`; gives start..stop-1 of it.

    The innermost loops run over what lies next to each other, for vector instructions.
    """
    before, others, _ = source.shape
    if before == after:
        return source[start:stop]
    first, count, weights = _weights(before, after)
    rows = source.reshape(before, others * 3)
    result = np.empty((stop - start, others * 3), np.uint8)
    sums = np.empty(others * 3, np.int32)
    for i in range(start, stop):
        sums[:] = 1 << (_PRECISION - 1)
        for j in range(count[i]):
            row, weight = rows[first[i] + j], weights[i, j]
            for k in range(sums.size):
                sums[k] += np.int32(row[k]) * weight
        for k in range(sums.size):
            result[i - start, k] = min(max(sums[k] >> _PRECISION, 0), 255)
    return result.reshape(stop - start, others, 3)


@compiled
def _weights(before, after):
    """What each of `after` places takes from the places 0..before-1.

    Returns:
      The first place that it takes from, int64 [after]; their number, int64 [after]; and their
      weights times 2^22, int32 [after, largest number].
    """
    scale = before / after
    stretch = max(scale, 1.0)
    reach = 2.0 * stretch
    first, count = np.empty(after, np.int64), np.empty(after, np.int64)
    weights = np.zeros((after, int(math.ceil(reach)) * 2 + 1), np.int32)
    row = np.empty(weights.shape[1])
    for i in range(after):
        centre = (i + 0.5) * scale
        start = max(int(centre - reach + 0.5), 0)
        stop = min(int(centre + reach + 0.5), before)
        total = 0.0
        for j in range(stop - start):
            row[j] = _cubic((j + start - centre + 0.5) * (1.0 / stretch))
            total += row[j]
        for j in range(stop - start):
            scaled = row[j] / total * (1 << _PRECISION)
            weights[i, j] = int(scaled - 0.5) if scaled < 0 else int(scaled + 0.5)
        first[i], count[i] = start, stop - start
    return first, count, weights


@compiled
def _packed(source):
    """Copies uint8 [N, M, 3 or 4] to contiguous [N, M, 3]."""
    rows, columns, _ = source.shape
    result = np.empty((rows, columns, 3), np.uint8)
    for y in range(rows):
        for x in range(columns):
            for k in range(3):
                result[y, x, k] = source[y, x, k]
    return result


@compiled
def _transposed(source):
    """Copies uint8 [N, M, 3 or 4] to contiguous [M, N, 3]."""
    rows, columns, _ = source.shape
    result = np.empty((columns, rows, 3), np.uint8)
    for top in range(0, rows, _BLOCK):
        for x in range(columns):
            for y in range(top, min(top + _BLOCK, rows)):
                for k in range(3):
                    result[x, y, k] = source[y, x, k]
    return result


@inlined
def _cubic(distance):
    """Keys's cubic convolution with a = -1/2."""
    x = abs(distance)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * -0.5
    return 0.0


@inlined
def _spline(a, b, c, d, t):
    """The same as a curve through b at t = 0 and c at t = 1."""
    return b + t * ((c - a) + t * ((2 * (a - b) + c - d) + t * (-a + b - c + d)))


@inlined
def _between(values, a, b, c, d, t):
    """The spline of four pixels."""
    return _spline(
        np.int32(values[a]), np.int32(values[b]), np.int32(values[c]), np.int32(values[d]), t
    )


@inlined
def _inside(place, length):
    """The place, or the nearest inside the image. Unsigned: no test for a negative index."""
    return np.uintp(min(max(place, 0), length - 1))
