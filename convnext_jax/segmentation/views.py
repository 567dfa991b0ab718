"""How an image is seen in evaluation, and how its logits come back to the annotation's size.

An image is resized, with its ratio kept, and seen in one or several views: windows that slide over
it, whose logits are averaged; or the whole of it in several sizes, also mirrored, whose
probabilities are. Logits of a view are upsampled to the view's size, put where the view lies, and
resized to the annotation's: all of that is linear along each axis, so it is one matrix along each,
with at most four weights in a row. Those weights go with the image to the device, which computes
the annotation's pixels a tile at a time: no image has its logits at full size.
(mmsegmentation 0.11, `slide_inference`, `whole_inference`, `aug_test`.)
"""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
from PIL import Image

from convnext_jax.constants import IGNORED
from convnext_jax.data.opencv import resize_bilinear
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelDescription
from convnext_jax.models.variants import Preprocessing
from convnext_jax.segmentation.resize import bilinear_taps
from convnext_jax.segmentation.transforms import ASPECT, rescaled
from convnext_jax.segmentation.windows import stride_of, window_counts, window_starts

# Sides of the tiles in which the annotation's pixels are computed.
TILE = (64, 256)
# Of the reference's evaluation in several sizes, each plain and mirrored.
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_TAPS = 4
# Of a side in pixels, so that the last stage sees something.
_SMALLEST = 32
# Of an image that is so thin that its longer side decides, the shorter one.
_PATCH = 4


def canvas(largest: tuple[int, int]) -> tuple[int, int]:
    """The size of arrays that hold annotations of up to `largest` pixels, in whole tiles."""
    height, width = (-(-side // tile) * tile for side, tile in zip(largest, TILE, strict=True))
    return height, width


@dataclasses.dataclass(frozen=True)
class Views:
    """What both ways of looking have in common.

    Attributes:
      crop: height and width of a window, pixels.
      side: what the shorter side of an image is resized to; the longer gets at most four times it.
      largest: height and width of the largest annotation.
      rounded_up: a side of n pixels has n / 4 logits rounded up, with stems that overlap, instead
        of n // 4.
    """

    crop: int
    side: int
    largest: tuple[int, int]
    rounded_up: bool = False

    def _logits(self, pixels: int) -> int:
        return -(-pixels // 4) if self.rounded_up else pixels // 4

    def _annotation(self, labels: np.ndarray | None, shape: tuple[int, int]) -> dict[str, Any]:
        held = np.full(canvas(self.largest), IGNORED, np.uint8)
        if labels is not None:
            held[: shape[0], : shape[1]] = labels
        return {"label": held, "shape": np.array(shape, np.int32)}

    def _no_weights(self, views: int) -> dict[str, Any]:
        rows = max(canvas(self.largest))
        return {
            "places": np.zeros((views, 2, _TAPS, rows), np.int16),
            "weights": np.zeros((views, 2, _TAPS, rows), np.float32),
        }


@dataclasses.dataclass(frozen=True)
class Windows(Views):
    """Makes a row of a batch of an image and its annotation: windows that slide over the image."""

    @property
    def most(self) -> int:
        """How many windows an image has at most: one with four times as long a side."""
        return math.prod(len(self._starts(side)) for side in (self.side, ASPECT * self.side))

    def _starts(self, side: int) -> list[int]:
        return window_starts(side, self.crop, stride_of(self.crop))

    @property
    def blank(self) -> dict[str, Any]:
        """A row of nothing."""
        return {
            "image": np.zeros((self.most, self.crop, self.crop, 3), np.uint8),
            "size": np.zeros((self.most, 2), np.int32),
            "views": np.int32(0),
            **self._no_weights(self.most),
            **self._annotation(None, (0, 0)),
        }

    def __call__(self, example: tuple[Image.Image, np.ndarray | None]) -> dict[str, Any]:
        """Makes a row.

        Args:
          example: an RGB image, and its labels: uint8 [H, W], `IGNORED` where there is no class; or
            None, where only predictions are wanted.

        Returns:
          Of `most` windows, of which `views` are there: `image`, uint8 [most, crop, crop, 3], and
          `size`, int32 [most, 2], what is no filling of each. Of the annotation `label`, uint8
          [H, W], filled up with `IGNORED` to whole tiles of the largest, and `shape`, int32 [2].
          `places` and `weights`, [most, 2 axes, 4, rows]: where each row and column of it looks at
          the logits of each window.
        """
        image, labels = np.asarray(example[0]), example[1]
        shape = image.shape[:2] if labels is None else labels.shape
        width, height = _seen_size(image.shape[1], image.shape[0], ASPECT * self.side, self.side)
        image = resize_bilinear(image, height, width)
        row = self.blank | self._annotation(labels, (shape[0], shape[1]))
        counts = [window_counts(s, self.crop, stride_of(self.crop)) for s in (height, width)]
        corners = list(itertools.product(self._starts(height), self._starts(width)))
        row["views"] = np.int32(len(corners))
        for i, corner in enumerate(corners):
            part = image[corner[0] :, corner[1] :][: self.crop, : self.crop]
            row["image"][i, : part.shape[0], : part.shape[1]] = part
            row["size"][i] = part.shape[:2]
            for axis in (0, 1):
                row["places"][i, axis], row["weights"][i, axis] = taps(
                    image.shape[axis],
                    shape[axis],
                    row["places"].shape[-1],
                    logits=self._logits(part.shape[axis]),
                    view=part.shape[axis],
                    first=corner[axis],
                    counts=counts[axis],
                )
        return row


@dataclasses.dataclass(frozen=True)
class Whole(Views):
    """Makes a row of an image and its annotation: all of the image, in several sizes.

    Attributes:
      ratios: what `side` is multiplied by, for each size.
      shape: height and width that arrays have for an image at ratio 1; what is larger does not fit.
      mirrored: each size also mirrored, left to right.
    """

    ratios: tuple[float, ...] = (1.0,)
    shape: tuple[int, int] = (0, 0)
    mirrored: bool = False

    @property
    def _ways(self) -> int:
        return 2 if self.mirrored else 1

    def _size(self, width: int, height: int, ratio: float) -> tuple[int, int]:
        longer, shorter = int(ASPECT * self.side * ratio), int(self.side * ratio)
        new_width, new_height = _seen_size(width, height, longer, shorter)
        return new_height, new_width

    def bucket(self, width: int, height: int) -> tuple[int, int]:
        """The `shape` that takes an image of this size: sides in steps of half of `side`."""
        step = self.side // 2
        sizes = self._size(width, height, 1.0)
        return (-(-sizes[0] // step) * step, -(-sizes[1] // step) * step)

    def of_shape(self, shape: tuple[int, int]) -> "Whole":
        """The same, for images of a bucket."""
        return dataclasses.replace(self, shape=shape)

    def _array(self, ratio: float) -> tuple[int, int]:
        # Sizes are rounded, at ratio 1 and again at this one: by up to 1.4 pixels in all.
        height, width = (math.ceil(side * ratio) + 1 for side in self.shape)
        return height, width

    @property
    def blank(self) -> dict[str, Any]:
        """A row of nothing."""
        images = {
            f"image{i}": np.zeros((self._ways, *self._array(ratio), 3), np.uint8)
            for i, ratio in enumerate(self.ratios)
        }
        views = len(self.ratios) * self._ways
        return {
            **images,
            "size": np.zeros((len(self.ratios), 2), np.int32),
            **self._no_weights(views),
            **self._annotation(None, (0, 0)),
        }

    def __call__(self, example: tuple[Image.Image, np.ndarray | None]) -> dict[str, Any]:
        """Makes a row.

        Args:
          example: as for `Windows`.

        Returns:
          For ratio i `image{i}`, uint8 [1 or 2, H, W, 3], the image and perhaps its mirror image in
          the upper left; `size`, int32 [ratios, 2], their heights and widths. The rest as for
          `Windows`, with views in the order of ratios, the mirrored one after the plain one.
        """
        original, labels = np.asarray(example[0]), example[1]
        shape = original.shape[:2] if labels is None else labels.shape
        row = self.blank | self._annotation(labels, (shape[0], shape[1]))
        for i, ratio in enumerate(self.ratios):
            size = self._size(original.shape[1], original.shape[0], ratio)
            image = resize_bilinear(original, *size)
            row["size"][i] = size
            for way in range(self._ways):
                row[f"image{i}"][way, : size[0], : size[1]] = image[:, ::-1] if way else image
                view = i * self._ways + way
                for axis in (0, 1):
                    places, weights = taps(
                        size[axis],
                        shape[axis],
                        row["places"].shape[-1],
                        logits=self._logits(size[axis]),
                        view=size[axis],
                    )
                    if way and axis:  # mirrored back
                        shown = slice(0, shape[axis])
                        places[:, shown] = places[:, shown][:, ::-1].copy()
                        weights[:, shown] = weights[:, shown][:, ::-1].copy()
                    row["places"][view, axis], row["weights"][view, axis] = places, weights
        return row


def taps(
    seen: int,
    shown: int,
    rows: int,
    *,
    logits: int,
    view: int,
    first: int = 0,
    counts: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Where the logits of a view are looked at, for each row of the annotation.

    Args:
      seen: length of the axis in the resized image.
      shown: in the annotation.
      rows: of the array that holds the annotation.
      logits: of the view.
      view: its pixels.
      first: where the view begins in the resized image.
      counts: how many views see each place of the resized image; None: one.

    Returns:
      Places in the logits, int16 [4, rows], and their weights, float32 [4, rows].
    """
    places, weights = np.zeros((_TAPS, rows), np.int16), np.zeros((_TAPS, rows), np.float32)
    lower, upper, share = bilinear_taps(seen, shown, shown)
    for i, (at, part) in enumerate(((lower, 1 - share), (upper, share))):
        part = part if counts is None else part / counts[at]
        here = at - first
        visible = (here >= 0) & (here < view)
        here = np.where(visible, here, 0)
        low, high, inner = (x[here] for x in bilinear_taps(logits, view, view))
        places[2 * i, :shown], places[2 * i + 1, :shown] = low, high
        weights[2 * i, :shown] = np.where(visible, part * (1 - inner), 0)
        weights[2 * i + 1, :shown] = np.where(visible, part * inner, 0)
    return places, weights


def side_of(feeding: Preprocessing) -> int:
    """What the shorter side of images is resized to before windows are cut out, pixels."""
    return round(feeding.input_size / feeding.crop_fraction)


def windows(model: ModelDescription, largest: tuple[int, int]) -> Windows:
    """How a model sees images of which the largest has this height and width."""
    return Windows(*_views(model, largest))


def whole(model: ModelDescription, largest: tuple[int, int], ratios: tuple[float, ...]) -> Whole:
    """The same in whole images of several sizes, plain and mirrored."""
    views = _views(model, largest)
    if views[1] * min(ratios) < _SMALLEST:
        raise InputError(
            f"the shorter side of images (={views[1]} pixels, `data.image_size` divided by"
            f" `data.eval_crop`) times the smallest ratio of several sizes (={min(ratios)}) must be"
            f" {_SMALLEST} pixels or more"
        )
    return Whole(*views, ratios=ratios, mirrored=True)


def _seen_size(width: int, height: int, longer: int, shorter: int) -> tuple[int, int]:
    """`rescaled`; raises InputError where less than a patch of the stem is left of a side."""
    size = rescaled(width, height, longer, shorter)
    if min(size) < _PATCH:
        raise InputError(
            f"an image of {width} x {height} pixels is too thin: at most {longer} pixels long, it"
            f" would have {min(size)} pixels across, and {_PATCH} are the least"
        )
    return size


def _views(
    model: ModelDescription, largest: tuple[int, int]
) -> tuple[int, int, tuple[int, int], bool]:
    feeding = model.preprocessing
    if feeding.input_size < _SMALLEST:
        raise InputError(
            f"`data.image_size` (={feeding.input_size}) must be {_SMALLEST} pixels or more"
        )
    overlapping = get_variant(model.spec.name).stem != "patch"
    return feeding.input_size, side_of(feeding), largest, overlapping
