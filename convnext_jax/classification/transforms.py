"""Image transforms on the host, with PIL's semantics: an RGB image in, uint8 pixels out.

Each random transform is two functions, one that draws (needs a generator) and one that applies, so
that what is drawn can be given. Pixels equal those of torchvision's and timm's transforms on PIL
images; normalising happens later, inside the training step.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from convnext_jax.classification import randaugment
from convnext_jax.data import resample
from convnext_jax.errors import InputError

# From this size on the reference evaluates the whole image, warped, instead of a centre crop.
WARP_FROM_SIZE = 384
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_TRIES = 10


class Box(NamedTuple):
    """A part of an image, in whole pixels from its upper left corner."""

    top: int
    left: int
    height: int
    width: int


def draw_resized_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws the box of a random resized crop.

    Source: torchvision's `RandomResizedCrop.get_params`, which timm's classification transform
    repeats: ten tries, then the largest centred box whose ratio is in range.

    Args:
      width: of the image, pixels.
      height: of the image, pixels.
      rng: generator to draw with.
      scale: smallest and largest area of the box, as a fraction of the image's.
      ratio: smallest and largest width / height of the box; drawn log-uniformly.
    """
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return Box(top, left, h, w)
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def crop_and_resize(image: Image.Image, box: Box, size: int) -> Image.Image:
    """Cuts `box` out of `image` and resizes it to (size, size), bicubic with antialiasing."""
    top, left, height, width = box
    return resample.resize(image, (size, size), box=(left, top, left + width, top + height))


def draw_padded_crop_offset(rng: np.random.Generator, padding: int) -> tuple[int, int]:
    """Draws (top, left) of a crop from an image with `padding` pixels added on each side."""
    top, left = rng.integers(0, 2 * padding + 1, size=2)
    return int(top), int(left)


def padded_crop(image: Image.Image, offset: tuple[int, int], padding: int) -> Image.Image:
    """Pads each side of `image` with black and cuts an image of the old size at `offset`.

    Args:
      image: RGB image.
      offset: (top, left) in the padded image, each in 0..2 * padding.
      padding: black pixels on each side.
    """
    top, left = offset[0] - padding, offset[1] - padding
    # PIL's crop fills what lies outside the image with black.
    return image.crop((left, top, left + image.width, top + image.height))


def shorter_side_to(side: int, width: int, height: int) -> tuple[int, int]:
    """(width, height) after resizing so that the shorter one is `side`; the longer is cut off."""
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def center_corners(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the square of `size` in the centre; it may be outside.

    Source: torchvision's `center_crop`, whose offsets round halves to the even pixel and whose
    padding puts the odd pixel to the right and below.
    """

    def start(length: int) -> int:
        return -((size - length) // 2) if length < size else round((length - size) / 2)

    left, top = start(width), start(height)
    return left, top, left + size, top + size


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cuts (size, size) from the centre; a smaller image is first padded with black."""
    # PIL's crop fills what lies outside the image with black.
    return image.crop(center_corners(image.width, image.height, size))


def to_uint8(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB image, uint8 [H, W, 3] in 0..255."""
    return np.asarray(image, dtype=np.uint8)


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Random crop and horizontal flip, then RandAugment or colour jitter where they are asked for.

    Attributes:
      image_size: height and width of the result, pixels.
      crop: `random_resized`, or `padded` for images of few pixels: those are warped to `image_size`
        if they do not have it, padded with black and cut at random.
      flip: probability of flipping left and right.
      scale: area of the random resized crop, as a fraction of the image's.
      ratio: width / height of the random resized crop.
      padding: black pixels on each side before the padded crop.
      auto_augment: RandAugment's policy, as `randaugment.parse_policy` reads it; empty: none.
      color_jitter: range of the brightness, contrast and saturation factors around 1; 0: none.
        Not with `auto_augment`: where both are given, timm leaves the jitter out without a word.
    """

    image_size: int
    crop: str = "random_resized"
    flip: float = 0.5
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int = 4
    auto_augment: str = ""
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        """Raises InputError where a field is out of range."""
        _check_size(self.image_size)
        if self.crop not in ("random_resized", "padded"):
            raise InputError(f"`crop` (={self.crop!r}) must be 'random_resized' or 'padded'")
        if not 0 <= self.flip <= 1:
            raise InputError(f"`flip` (={self.flip}) must be a probability, from 0 to 1")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"`scale` (={self.scale}) must be two rising fractions in (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"`ratio` (={self.ratio}) must be two rising positive numbers")
        if self.padding < 0:
            raise InputError(f"`padding` (={self.padding}) must be 0 or more pixels")
        if not 0 <= self.color_jitter < math.inf:
            raise InputError(f"`color_jitter` (={self.color_jitter}) must be 0 or more, and finite")
        if self._policy is not None and self.color_jitter:
            raise InputError(
                f"`color_jitter` (={self.color_jitter}) must be 0 where `auto_augment`"
                f" (={self.auto_augment!r}) is given"
            )

    @functools.cached_property
    def _policy(self) -> randaugment.RandAugment | None:
        return randaugment.parse_policy(self.auto_augment)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Transforms an RGB image into uint8 [image_size, image_size, 3] in 0..255."""
        size = self.image_size
        if self.crop == "random_resized":
            box = draw_resized_crop_box(image.width, image.height, rng, self.scale, self.ratio)
            image = crop_and_resize(image, box, size)
        else:
            if image.size != (size, size):
                image = resample.resize(image, (size, size))
            image = padded_crop(image, draw_padded_crop_offset(rng, self.padding), self.padding)
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._policy is not None:
            image = self._policy(image, rng)
        elif self.color_jitter:
            jitter = randaugment.draw_color_jitter(rng, self.color_jitter)
            image = randaugment.apply(image, jitter)
        return to_uint8(image)


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resizes an image and cuts out its centre; by default the reference's evaluation transform.

    Attributes:
      image_size: height and width of the result, pixels.
      crop_fraction: the result's share of the resized image's side, in (0, 1].
      crop_mode: `center`: the shorter side is resized to int(image_size / crop_fraction); `squash`:
        both sides are, without keeping the aspect ratio. None is the reference's rule: `center`
        below 384 pixels; from 384 on the whole image is warped to a square, and `crop_fraction` has
        no part.
      interpolation: one of `INTERPOLATIONS`; with antialiasing.
    """

    image_size: int
    crop_fraction: float = 224 / 256
    crop_mode: str | None = None
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        """Raises InputError where a field is out of range."""
        _check_size(self.image_size)
        if not 0 < self.crop_fraction <= 1:
            raise InputError(f"`crop_fraction` (={self.crop_fraction}) must be in (0, 1]")
        if self.crop_mode not in (None, "center", "squash"):
            raise InputError(f"`crop_mode` (={self.crop_mode!r}) must be 'center' or 'squash'")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"`interpolation` (={self.interpolation!r}) must be one of"
                f" {', '.join(INTERPOLATIONS)}"
            )

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Transforms an RGB image into uint8 [image_size, image_size, 3] in 0..255."""
        size = self.image_size
        if self.crop_mode is None and size >= WARP_FROM_SIZE:
            new = (size, size)
        else:
            side = int(size / self.crop_fraction)
            squash = self.crop_mode == "squash"
            new = (side, side) if squash else shorter_side_to(side, image.width, image.height)
        part = center_corners(*new, size)
        if self.interpolation == "bicubic":
            return to_uint8(resample.resize(image, new, part=part))
        return to_uint8(image.resize(new, INTERPOLATIONS[self.interpolation]).crop(part))


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Makes a row of a batch of an image with its label.

    Attributes:
      transform: of the image; a random one is given a generator, too.
    """

    transform: TrainTransform | EvalTransform

    def __call__(
        self, example: tuple[Image.Image, int], *rng: np.random.Generator
    ) -> dict[str, Any]:
        """{"image": uint8 [image_size, image_size, 3] in 0..255, "label": int32}."""
        image, label = example
        return {"image": self.transform(image, *rng), "label": np.int32(label)}

    @property
    def blank(self) -> dict[str, Any]:
        """A black image of label 0."""
        size = self.transform.image_size
        return {"image": np.zeros((size, size, 3), np.uint8), "label": np.int32(0)}


@dataclasses.dataclass(frozen=True)
class LabelLists:
    """Makes a row of a batch of an image with several labels.

    Attributes:
      transform: of the image.
      num_classes: that labels are of.
    """

    transform: EvalTransform
    num_classes: int

    def __call__(self, example: tuple[Image.Image, Sequence[int]]) -> dict[str, Any]:
        """{"image": as `Labelled` has it, "label": bool [classes], which of them it may be}."""
        image, labels = example
        row = np.zeros(self.num_classes, bool)
        row[list(labels)] = True
        return {"image": self.transform(image), "label": row}

    @property
    def blank(self) -> dict[str, Any]:
        """A black image without a label."""
        size = self.transform.image_size
        return {
            "image": np.zeros((size, size, 3), np.uint8),
            "label": np.zeros(self.num_classes, bool),
        }


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise InputError(f"`image_size` (={image_size}) must be 1 pixel or more")
