"""Masks of detected objects: from probabilities at a box to pixels, and to COCO's run lengths."""

import math

import numpy as np

from convnext_jax.data.compiled import compiled, inlined


@compiled
def paste(probabilities, box, top, left, bitmap):
    """Samples probabilities at the centres of a part of an image's pixels, and cuts them at 0.5.

    Bilinear between the centres of cells, and towards zero outside them; in float32 and in the
    order of `torch.nn.functional.grid_sample`.

    Args:
      probabilities: float32 [m, m], over the box.
      box: float32 [4], x1, y1, x2, y2 in pixels of the image, with sides above 0.
      top: the part's first row.
      left: its first column.
      bitmap: uint8 [columns, rows] of the part, is written: 1 where 0.5 is reached.
    """
    side = probabilities.shape[0]
    wide, high = bitmap.shape
    upper, lower_share = _places(top, high, box[1], box[3], side)
    first, right_share = _places(left, wide, box[0], box[2], side)
    # A cell of zeros on each side is what lies outside.
    column = np.empty(side + 2, np.float32)
    column[0] = column[side + 1] = np.float32(0)
    one = np.float32(1)
    for x in range(wide):
        share = right_share[x]
        here, next_ = first[x], first[x] + 1
        for i in range(side):
            value = np.float32(0)
            if 0 <= here < side:
                value += probabilities[i, here] * (one - share)
            if 0 <= next_ < side:
                value += probabilities[i, next_] * share
            column[i + 1] = value
        for y in range(high):
            cell, share = upper[y] + 1, lower_share[y]
            value = column[cell] * (one - share) + column[cell + 1] * share
            bitmap[x, y] = value >= np.float32(0.5)


@inlined
def _places(start, count, low, high, side):
    """Where pixels' centres lie among `side` cells from `low` to `high`.

    Returns:
      The cell whose centre comes before, int64 [count] in -1..side-1, and how far it is from there
      to the next, float32 [count].
    """
    before, share = np.empty(count, np.int64), np.empty(count, np.float32)
    one, two, half = np.float32(1), np.float32(2), np.float32(0.5)
    for i in range(count):
        centre = np.float32(start + i) + half
        # From -1 to 1 over the box, as grid_sample takes it.
        turned = (centre - low) / (high - low) * two - one
        place = ((turned + one) * np.float32(side) - one) / two
        place = min(max(place, np.float32(-1)), np.float32(side))
        cell = min(int(math.floor(place)), side - 1)
        before[i], share[i] = cell, place - np.float32(cell)
    return before, share


@compiled
def run_lengths(bitmap, top, left, height, width):
    """The runs of a part of a bitmap whose other pixels are 0, column by column.

    Args:
      bitmap: uint8 [columns, rows] of the part: 0, or else.
      top: the part's first row.
      left: its first column.
      height: of the whole.
      width: likewise.

    Returns:
      int64 [runs], lengths of 0s, 1s, 0s and so on; the first may be 0.
    """
    wide, high = bitmap.shape
    runs = np.empty(wide * (high + 2) + 2, np.int64)
    count, start, last = 0, 0, 0
    for x in range(wide):
        before = (left + x) * height + top
        # What lies between this column's part and that of the column before is 0.
        if last and high < height:
            end = before - height + high
            runs[count], start, last = end - start, end, 0
            count += 1
        for y in range(high):
            value = 1 if bitmap[x, y] else 0
            if value != last:
                runs[count], start, last = before + y - start, before + y, value
                count += 1
    end = (left + wide - 1) * height + top + high
    if last and end < height * width:
        runs[count], start, last = end - start, end, 0
        count += 1
    runs[count] = height * width - start
    count += 1
    return runs[:count]


@compiled
def packed(runs):
    """Run lengths in COCO's compressed form.

    From the fourth on, a run is told by its difference to the run two before; numbers are cut into
    groups of 5 bits, the lowest first, each a character with a bit that says whether more follow.

    Args:
      runs: int64 [runs].

    Returns:
      uint8 [characters], ASCII.
    """
    text = np.empty(runs.size * 7 + 7, np.uint8)
    length = 0
    for i in range(runs.size):
        number = runs[i] - runs[i - 2] if i > 2 else runs[i]
        more = True
        while more:
            group = number & 31
            number >>= 5
            # The highest bit of the last group is the sign of all.
            more = number != -1 if group & 16 else number != 0
            text[length] = (group | 32 if more else group) + 48
            length += 1
    return text[:length]
