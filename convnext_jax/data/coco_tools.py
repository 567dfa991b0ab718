"""COCO's masks, by pycocotools: polygons and run lengths, and bitmaps of them.

A run-length encoding (RLE) is pycocotools' dictionary: `size`, [height, width], and `counts`, its
compressed bytes. What COCO calls a segmentation is an RLE, one whose counts are still a list of
numbers, or a list of polygons, each x1, y1, x2, y2, ... in pixels.
"""

from typing import Any

import numpy as np

from convnext_jax.errors import InputError, needed_for

# Polygons may reach so many times as far from the corner as their image does.
_FAR = 10
# A point has two numbers, and a polygon three points.
_LEAST_NUMBERS = 6

Rle = dict[str, Any]


def check_segmentation(segmentation: Any, height: int, width: int) -> None:
    """Checks the form of a segmentation, without drawing it.

    Args:
      segmentation: a list of polygons, or an RLE.
      height: of its image, pixels.
      width: likewise.

    Raises:
      InputError: it is neither, has no polygon of three points or more, or is of another size.
    """
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if not isinstance(counts, list | str | bytes) or not isinstance(size, list | tuple):
            raise InputError("its RLE must have `size` and `counts`")
        if list(size) != [height, width]:
            raise InputError(
                f"its RLE is of size {list(size)}, and must be of its image's, {[height, width]}"
                f" (height, width)"
            )
        runs = counts if isinstance(counts, list) else _runs(counts)
        if (
            not all(isinstance(count, int) and count >= 0 for count in runs)
            or sum(runs) != height * width
        ):
            raise InputError(
                f"the counts of its RLE must be numbers of pixels, whose sum is {height * width},"
                f" height times width"
            )
        return
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        raise InputError("its `segmentation` must be a list of polygons, or an RLE")
    if not _polygons(segmentation):
        raise InputError(
            "its `segmentation` must have an RLE or a polygon of three points or more, which masks"
            " are made of, and has none"
        )
    far = _FAR * max(height, width)
    for polygon in segmentation:
        if len(polygon) % 2 or not _are_numbers(polygon):
            raise InputError("its polygons must be lists of numbers x1, y1, x2, y2, ...")
        # pycocotools walks along every edge, however long it is.
        furthest = max(-min(polygon, default=0), max(polygon, default=0))
        if furthest > far:
            raise InputError(
                f"its polygons must lie near their image of {height} x {width} pixels (height x"
                f" width), and reach {furthest:.3g}"
            )


def _are_numbers(values: list[Any]) -> bool:
    """Whether all are numbers, and finite; not asked one by one, which takes ten times as long."""
    if not values or not set(map(type, values)) <= {int, float}:
        return not values
    # Whole numbers may be too large for floats. Only NaN is not itself.
    within = -1e9 < min(values) and max(values) < 1e9
    return within and (total := sum(values)) == total


def to_rle(segmentation: Any, height: int, width: int) -> Rle:
    """Draws a segmentation, as a compressed RLE.

    Polygons are drawn at the image's own size and joined, as COCO's own tools do it.

    Args:
      segmentation: one that `check_segmentation` has passed.
      height: of its image, pixels.
      width: likewise.
    """
    mask = _tools()
    if isinstance(segmentation, list):
        return mask.merge(mask.frPyObjects(_polygons(segmentation), height, width))
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return mask.frPyObjects(segmentation, height, width)
    counts = counts.encode() if isinstance(counts, str) else counts
    return {"size": [height, width], "counts": counts}


def bitmap(rle: Rle) -> np.ndarray:
    """The pixels of an RLE: uint8 [height, width] of 0 and 1, columns contiguous."""
    return _tools().decode(rle)


def encode(pixels: np.ndarray) -> Rle:
    """The compressed RLE of a bitmap, bool or uint8 [height, width], 0 where nothing is."""
    return _tools().encode(np.asfortranarray(pixels != 0, np.uint8))


def area(rle: Rle) -> int:
    """Pixels that an RLE covers."""
    return int(_tools().area(rle))


def _polygons(segmentation: list[list[float]]) -> list[list[float]]:
    """Those that enclose something; pycocotools takes four numbers for a box."""
    return [polygon for polygon in segmentation if len(polygon) >= _LEAST_NUMBERS]


def _runs(counts: str | bytes) -> list[int]:
    """The numbers that compressed counts stand for (pycocotools' `rleFrString`).

    Each is written in digits of 5 bits, the lowest first, in characters from "0" on, whose sixth
    bit says that more follow; from the fourth on it is the difference to the last but one.

    Raises:
      InputError: there are other characters, or the last number has no end: pycocotools would read
        on behind it.
    """
    runs, value, shift = list[int](), 0, 0
    for code in map(ord, counts) if isinstance(counts, str) else counts:
        digit = code - ord("0")
        if not 0 <= digit < 64:
            raise InputError("the counts of its RLE must be of characters from `0` to `o`")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise InputError("the counts of its RLE must be whole numbers, and the last has no end")
    return runs


def _tools() -> Any:
    with needed_for("COCO's masks", "predict"):
        from pycocotools import mask
    return mask
