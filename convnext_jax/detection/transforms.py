"""From an image with objects to a row of a batch, on the host, with OpenCV's pixels.

The order is that of the reference's configs for COCO, on mmdetection 2.11: flip; then with
probability 1/2 each, resize, or resize, crop and resize again. Normalising and padding with zeros
happen later, inside the step. What is drawn are numbers in [0, 1) that do not depend on the image,
and come first, so that an image's final size follows from them and from its size, and no image has
to be decoded for it (`detection.ordering`).

**One canvas.** A batch has images of one orientation, on a landscape canvas: a portrait image,
taller than wide, lies there on its side, rows and columns swapped, and so do its masks. Boxes and
sizes are always upright.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from convnext_jax.data.instances import Example
from convnext_jax.data.opencv import resize_bilinear
from convnext_jax.detection.geometry import (
    Geometry,
    fitted,
    moved_boxes,
    moved_image,
    packed_masks,
)
from convnext_jax.errors import InputError
from convnext_jax.models.variants import Preprocessing

# Numbers that are drawn for an image: whether it is flipped, whether it is cropped, the last scale,
# the first one, the crop's height and width, and its place down and across.
DRAWS = 8
_FLIP, _CROP, _LAST, _FIRST, _HEIGHT, _WIDTH, _TOP, _LEFT = range(DRAWS)
# The canvas's sides are multiples of the coarsest stride of the backbone.
_STRIDE = 32
# The label of places that hold no object.
_NONE = -1


def draw(rng: np.random.Generator) -> np.ndarray:
    """Draws what `TrainCanvas.geometry` takes for one image: float64 [DRAWS], in [0, 1)."""
    return rng.random(DRAWS)


def canvas_of(shorter: int, longer: int) -> tuple[int, int]:
    """Height and width of the canvas for images of up to so many pixels a side."""
    height, width = (-(-side // _STRIDE) * _STRIDE for side in (shorter, longer))
    return height, width


class Canvas:
    """What rows for training and for evaluation share."""

    canvas: tuple[int, int]
    longer: int

    def _check(self, shorter: int) -> None:
        """Raises InputError unless images with the given shorter side fit on the canvas."""
        height, width = self.canvas
        if height > width or height < _STRIDE or height % _STRIDE or width % _STRIDE:
            raise InputError(
                f"`canvas` (={self.canvas}) must be a height and a width that is no less, multiples"
                f" of {_STRIDE} pixels"
            )
        if not 1 <= shorter <= min(height, self.longer) or self.longer > width:
            raise InputError(
                f"images with a shorter side of {shorter} and a longer one of up to {self.longer}"
                f" pixels must fit on the `canvas` (={self.canvas})"
            )

    def _laid(self, image: np.ndarray) -> dict[str, Any]:
        """An upright image on the canvas, with its size and orientation."""
        height, width = image.shape[:2]
        row = self._empty(height > width)
        row["size"][:] = height, width
        if height > width:
            image = image.swapaxes(0, 1)
        row["image"][: image.shape[0], : image.shape[1]] = image
        return row

    def _empty(self, portrait: bool) -> dict[str, Any]:
        return {
            "image": np.zeros((*self.canvas, 3), np.uint8),
            # Not 0, by which something might be divided.
            "size": np.full(2, _STRIDE, np.int32),
            "portrait": np.int32(portrait),
        }


@dataclasses.dataclass(frozen=True)
class TrainCanvas(Canvas):
    """Makes a row of a batch of an image with its objects: flipped, resized, cropped or not.

    Attributes:
      canvas: height and width of the canvas, pixels.
      longer: what the longer side may have at most.
      scales: what the shorter side is resized to, one of them.
      crops: crop half of the images, out of another size.
      first_scales: which is that, one of these.
      crop: what the crop's height and width are drawn from, each for itself, both inclusive;
        where the image has less, from what it has.
      flip: probability of mirroring, left to right.
      max_objects: objects of a row. Where more are left, the largest boxes are kept, in their
        order: what is lost then are the smallest of a crowded image. (Of COCO's images none has
        more than 100.)
    """

    canvas: tuple[int, int] = (800, 1344)
    longer: int = 1333
    scales: tuple[int, ...] = tuple(range(480, 801, 32))
    crops: bool = True
    first_scales: tuple[int, ...] = (400, 500, 600)
    crop: tuple[int, int] = (384, 600)
    flip: float = 0.5
    max_objects: int = 100

    def __post_init__(self) -> None:
        """Raises InputError where a field is out of range."""
        for name in ("scales", "first_scales"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise InputError(f"`{name}` (={getattr(self, name)}) must be 1 pixel or more each")
        if not 1 <= self.crop[0] <= self.crop[1]:
            raise InputError(f"`crop` (={self.crop}) must be a range of 1 pixel or more")
        if not 0 <= self.flip <= 1:
            raise InputError(f"`flip` (={self.flip}) must be a probability, 0 to 1")
        if self.max_objects < 1:
            raise InputError(f"`max_objects` (={self.max_objects}) must be 1 or more")
        self._check(max(self.scales))

    def geometry(self, drawn: np.ndarray, sizes: np.ndarray) -> Geometry:
        """Where the pixels of images go.

        Args:
          drawn: float64 [n, DRAWS], in [0, 1), as `draw` gives them.
          sizes: int [n, 2], heights and widths of the images as they are stored.
        """
        sizes = np.asarray(sizes, np.int64)
        cropped = (self.crops & (drawn[:, _CROP] >= 0.5))[:, None]
        first = fitted(sizes, self.longer, _one_of(self.first_scales, drawn[:, _FIRST]))
        first = np.where(cropped, first, sizes)
        least, most = (np.minimum(first, side) for side in self.crop)
        crop = least + _below(most - least + 1, drawn[:, [_HEIGHT, _WIDTH]])
        crop = np.where(cropped, crop, first)
        return Geometry(
            flip=drawn[:, _FLIP] < self.flip,
            cropped=cropped[:, 0],
            first=first,
            corner=_below(first - crop + 1, drawn[:, [_TOP, _LEFT]]),
            crop=crop,
            size=fitted(crop, self.longer, _one_of(self.scales, drawn[:, _LAST])),
        )

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        """Makes a row. Crowds are left out: they take no part in training.

        Args:
          example: an RGB image, and its objects.
          rng: generator to draw with, not used before.

        Returns:
          `image`: uint8 [canvas height, canvas width, 3], in the canvas's frame, upper left, beside
          zeros. `size`: int32 [2], height and width of it, upright. `portrait`: int32, 1 if it lies
          on its side. `boxes`: float32 [max_objects, 4], left, top, right, bottom, pixels of the
          upright image. `labels`: int32 [max_objects], -1 where there is no object. `masks`: uint8
          [max_objects, canvas height, canvas width // 8], in the canvas's frame, as `packed_masks`.
        """
        image, objects = example
        own = objects.height, objects.width
        geometry = self.geometry(draw(rng)[None], np.array([own]))
        objects = objects.chosen(~objects.is_crowd)
        boxes = moved_boxes(objects.boxes, own, geometry)
        keep = self._kept(boxes)
        boxes, objects = boxes[keep], objects.chosen(keep)
        row = self._laid(moved_image(np.asarray(image), geometry))
        row |= self._no_objects()
        row["boxes"][: len(boxes)] = boxes
        row["labels"][: len(boxes)] = objects.labels
        row["masks"] = packed_masks(objects, geometry, self.canvas, self.max_objects)
        return row

    def _kept(self, boxes: np.ndarray) -> np.ndarray:
        """Which objects stay in the row, bool [n]."""
        width, height = (boxes[:, 2:] - boxes[:, :2]).T
        keep = (width > 0) & (height > 0)
        if keep.sum() > self.max_objects:
            areas = np.where(keep, width * height, 0)
            keep[:] = False
            keep[np.argsort(-areas, kind="stable")[: self.max_objects]] = True
        return keep

    def _no_objects(self) -> dict[str, Any]:
        height, width = self.canvas
        return {
            "boxes": np.zeros((self.max_objects, 4), np.float32),
            "labels": np.full(self.max_objects, _NONE, np.int32),
            "masks": np.zeros((self.max_objects, height, width // 8), np.uint8),
        }

    @property
    def blank(self) -> dict[str, Any]:
        """A row of nothing but filling, landscape."""
        return self._empty(portrait=False) | self._no_objects()


@dataclasses.dataclass(frozen=True)
class EvalCanvas(Canvas):
    """Makes a row of a batch of an image, resized to fit.

    Attributes:
      canvas: height and width of the canvas, pixels.
      longer: what the longer side may have at most.
      shorter: what the shorter side is resized to, up or down, unless the longer one forbids.
    """

    canvas: tuple[int, int] = (800, 1344)
    longer: int = 1333
    shorter: int = 800

    def __post_init__(self) -> None:
        """Raises InputError where a field is out of range."""
        self._check(self.shorter)

    @classmethod
    def of(cls, feeding: Preprocessing) -> "EvalCanvas":
        """Rows as a model wants them."""
        longer = feeding.longest_side
        assert longer is not None, "models that detect say so"
        return cls(canvas_of(feeding.input_size, longer), longer, feeding.input_size)

    def sizes(self, sizes: np.ndarray) -> np.ndarray:
        """Heights and widths of images after resizing, int64 [n, 2], from those before."""
        return fitted(np.asarray(sizes, np.int64), self.longer, self.shorter)

    def __call__(self, example: Example) -> dict[str, Any]:
        """Makes a row.

        Args:
          example: an RGB image, and its objects, of which only the place in the source is used.

        Returns:
          `image`, `size` and `portrait` as `TrainCanvas`; `original`: int32 [2], height and width
          of the image as it is stored; `index`: int32, its place in the source.
        """
        pixels = np.asarray(example[0])
        original = np.array(pixels.shape[:2], np.int32)
        row = self._laid(resize_bilinear(pixels, *self.sizes(original[None])[0].tolist()))
        return row | {"original": original, "index": np.int32(example[1].index)}

    def filling(self, portrait: bool) -> dict[str, Any]:
        """A row of nothing, to fill up a batch of portrait images or of others; `index` is -1."""
        rest = {"original": np.full(2, _STRIDE, np.int32), "index": np.int32(-1)}
        return self._empty(portrait) | rest

    @property
    def blank(self) -> dict[str, Any]:
        """A row of nothing but filling, landscape."""
        return self.filling(portrait=False)


def _one_of(values: Sequence[int], drawn: np.ndarray) -> np.ndarray:
    """The value that each number in [0, 1) stands for, [n]."""
    return np.array(values)[_below(np.array(len(values)), drawn)]


def _below(count: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Whole numbers 0..count-1, evenly, of numbers in [0, 1)."""
    # Rounding might lift a product up to `count`.
    return np.minimum((drawn * count).astype(np.int64), count - 1)
