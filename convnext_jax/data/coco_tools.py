"""COCO's masks, by pycocotools: polygons and run lengths, and bitmaps of them.

A run-length encoding (RLE) is pycocotools' dictionary: `size`, [height, width], and `counts`, its
compressed bytes. What COCO calls a segmentation is an RLE, one whose counts are still a list of
numbers, or a list of polygons, each x1, y1, x2, y2, ... in pixels.
"""

import math
from typing import Any

import numpy as np

from convnext_jax.errors import InputError, needed_for

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
        if not isinstance(counts, list | str | bytes) or size is None:
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
    for polygon in segmentation:
        # The sum of numbers is finite if all of them are; not one by one, which takes ten times as
        # long.
        if len(polygon) % 2 or not (
            set(map(type, polygon)) <= {int, float} and math.isfinite(sum(polygon))
        ):
            raise InputError("its polygons must be lists of numbers x1, y1, x2, y2, ...")


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
    """
    runs, value, shift = list[int](), 0, 0
    for code in counts.encode() if isinstance(counts, str) else counts:
        digit = code - ord("0")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return runs


def _tools() -> Any:
    with needed_for("COCO's masks", "predict"):
        from pycocotools import mask
    return mask
