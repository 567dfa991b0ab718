"""Where the pixels, boxes and masks of an image go when it is flipped, resized and cropped.

Pixels are OpenCV's, and the arithmetic of sizes and boxes is mmdetection 2.11's (`RandomFlip`,
`Resize`, `RandomCrop`), in float32 as there.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from convnext_jax.data.coco_tools import bitmap
from convnext_jax.data.instances import Objects
from convnext_jax.data.opencv import nearest_places, resize_bilinear


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where the pixels of n images go. All sizes and corners are upright, pixels.

    Attributes:
      flip: bool [n], mirrored first, left to right.
      cropped: bool [n], resized, cropped and resized again, not only resized once.
      first: int [n, 2], height and width before cropping; its own for an image without crop.
      corner: int [n, 2], top and left of the crop.
      crop: int [n, 2], height and width of the crop; all of it for an image without.
      size: int [n, 2], the final height and width.
    """

    flip: np.ndarray
    cropped: np.ndarray
    first: np.ndarray
    corner: np.ndarray
    crop: np.ndarray
    size: np.ndarray

    @property
    def portrait(self) -> np.ndarray:
        """Whether each ends taller than wide, bool [n]."""
        return self.size[:, 0] > self.size[:, 1]


def fitted(sizes: np.ndarray, longer: int, shorter: np.ndarray | int) -> np.ndarray:
    """Sizes of images that are resized to fit, with their ratio kept (mmcv's `rescale_size`).

    Args:
      sizes: int [n, 2], height and width.
      longer: what the longer side may have at most.
      shorter: likewise; for all, or of each, [n].

    Returns:
      int64 [n, 2], each side 1 or more.
    """
    factors = np.minimum(longer / sizes.max(1), shorter / sizes.min(1))
    # The reference has no image so thin that nothing would be left of a side.
    return np.maximum((sizes * factors[:, None] + 0.5).astype(np.int64), 1)


def moved_boxes(boxes: np.ndarray, own: Sequence[int], geometry: Geometry) -> np.ndarray:
    """Flips, resizes and crops boxes as the image; the last two clip them to it.

    Args:
      boxes: float32 [n, 4]: left, top, right, bottom.
      own: height and width of the image as it is stored.
      geometry: of this one image.

    Returns:
      float32 [n, 4]; boxes outside of the crop have no width or height.
    """
    if geometry.flip[0]:
        left, top, right, bottom = boxes.T
        width = np.float32(own[1])
        boxes = np.stack([width - right, top, width - left, bottom], 1)
    if geometry.cropped[0]:
        boxes = _resized_boxes(boxes, own, geometry.first[0])
        top, left = geometry.corner[0]
        boxes = boxes - np.array([left, top, left, top], np.float32)
        boxes = _clipped(boxes, geometry.crop[0])
    return _resized_boxes(boxes, geometry.crop[0], geometry.size[0])


def moved_image(pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Flips, resizes and crops an image, uint8 [H, W, 3]."""
    if geometry.flip[0]:
        pixels = pixels[:, ::-1]
    pixels = np.ascontiguousarray(pixels)
    if geometry.cropped[0]:
        part = (*geometry.corner[0].tolist(), *geometry.crop[0].tolist())
        pixels = resize_bilinear(pixels, *geometry.first[0].tolist(), part=part)
    return resize_bilinear(pixels, *geometry.size[0].tolist())


def packed_masks(
    objects: Objects, geometry: Geometry, canvas: Sequence[int], count: int
) -> np.ndarray:
    """Flips, resizes and crops the masks of objects as the image, taking the nearest pixels.

    Each pixel of the result is one of the mask's own, which one is known beforehand: only the part
    of the result that the object is in is computed.

    Args:
      objects: n of them.
      geometry: of this one image.
      canvas: height and width of the canvas.
      count: masks of the result, n or more; what is left is empty.

    Returns:
      uint8 [count, canvas height, canvas width // 8], in the canvas's frame, 8 pixels in a byte,
      the first in its highest bit.
    """
    places = _places((objects.height, objects.width), geometry)
    portrait = bool(geometry.portrait[0])
    result = np.zeros((count, canvas[0], canvas[1] // 8), np.uint8)
    for number, rle in enumerate(objects.masks):
        pixels = bitmap(rle)
        # Of the canvas's rows and columns those that are from the mask's rows and columns.
        sides = [_span(np.any(pixels, 1 - axis), places[axis]) for axis in (0, 1)]
        if portrait:
            pixels, sides = pixels.T, sides[::-1]
        rows, columns = sides
        if rows is None or columns is None:
            continue
        (top, from_rows), (left, from_columns) = rows, columns
        part = pixels[from_rows][:, from_columns]
        # The first byte may begin before the object.
        bits = np.packbits(np.pad(part, ((0, 0), (left % 8, 0))), axis=1)
        result[number, top : top + len(bits), left // 8 : left // 8 + bits.shape[1]] = bits
    return result


def _places(own: Sequence[int], geometry: Geometry) -> list[np.ndarray]:
    """Of each final row, and of each column, which of the stored image's it is."""
    found = []
    for axis in (0, 1):
        first, corner, crop, size = (
            int(g[0, axis]) for g in (geometry.first, geometry.corner, geometry.crop, geometry.size)
        )
        places = nearest_places(own[axis], first)[nearest_places(crop, size) + corner]
        found.append(own[1] - 1 - places if axis == 1 and geometry.flip[0] else places)
    return found


def _span(there: Any, places: np.ndarray) -> tuple[int, np.ndarray] | None:
    """The first of the final rows that have any of an object, and the places from it to the last.

    Args:
      there: whether each stored row has any of the object, bool [rows].
      places: the stored row of each final one.
    """
    hits = np.flatnonzero(there[places])
    return (int(hits[0]), places[hits[0] : hits[-1] + 1]) if len(hits) else None


def _resized_boxes(boxes: np.ndarray, before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    """Boxes times the factor of each axis, clipped."""
    vertical, horizontal = (np.float32(b / a) for a, b in zip(before, after, strict=True))
    factors = np.array([horizontal, vertical, horizontal, vertical])
    return _clipped(boxes * factors, after)


def _clipped(boxes: np.ndarray, size: Sequence[int]) -> np.ndarray:
    height, width = size
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
