"""Training's transforms of an image with its labels, on the host, with OpenCV's semantics.

Each random transform is two functions, one that draws (needs a generator) and one that applies, so
that what is drawn can be given. Order and draws are those of mmsegmentation 0.11, on which the
reference's runs stand; normalising happens later, inside the training step.
"""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from convnext_jax.constants import IGNORED
from convnext_jax.data.opencv import recolour, resize_bilinear, resize_nearest
from convnext_jax.errors import InputError

# The longer side of an image at most, relative to the shorter one that is aimed at.
ASPECT = 4
# A crop is drawn again, so often, while one class has this share of what counts in it.
_MOST_OF_ONE_CLASS = 0.75
_TRIES = 10
_BRIGHTNESS = 32
_FACTORS = (0.5, 1.5)
_HUE = 18


def rescaled(width: int, height: int, longer: int, shorter: int) -> tuple[int, int]:
    """Width and height of an image that is resized to fit, with its ratio kept.

    Args:
      width: of the image, pixels.
      height: likewise.
      longer: what its longer side may have at most.
      shorter: likewise.
    """
    factor = min(longer / max(width, height), shorter / min(width, height))
    # The reference has no image so thin that nothing would be left of a side.
    return max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))


def draw_scale(
    rng: np.random.Generator, side: int, scales: tuple[float, float] = (0.5, 2.0)
) -> tuple[int, int]:
    """Draws what the longer and the shorter side may have: `side` times a factor."""
    low, high = scales
    ratio = rng.random() * (high - low) + low
    return int(ASPECT * side * ratio), int(side * ratio)


def draw_crop(labels: np.ndarray, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draws the upper left corner of a crop, so that no class has nearly all of it.

    Args:
      labels: uint8 [H, W].
      side: of the crop; where the image is smaller, the crop is.
      rng: generator to draw with.
    """
    height, width = labels.shape

    def draw() -> tuple[int, int]:
        top = int(rng.integers(0, max(height - side, 0) + 1))
        return top, int(rng.integers(0, max(width - side, 0) + 1))

    corner = draw()
    for _ in range(_TRIES):
        top, left = corner
        counts = np.bincount(labels[top : top + side, left : left + side].ravel(), minlength=256)
        counts = np.delete(counts, IGNORED)
        if np.count_nonzero(counts) > 1 and counts.max() < _MOST_OF_ONE_CLASS * counts.sum():
            break
        corner = draw()
    return corner


@dataclasses.dataclass(frozen=True)
class Photometric:
    """What is drawn for one image; None: that step is left out.

    Attributes:
      brightness: added to every value.
      contrast: every value is multiplied by it.
      contrast_first: before saturation and hue, instead of after them.
      saturation: of HSV, multiplied by it.
      hue: of HSV, in 0..179, added to it.
    """

    brightness: float | None = None
    contrast: float | None = None
    contrast_first: bool = True
    saturation: float | None = None
    hue: int | None = None


def draw_photometric(rng: np.random.Generator) -> Photometric:
    """Draws the steps of `photometric`, each with probability 1/2."""

    def maybe(draw: Any) -> Any:
        return draw() if rng.integers(2) else None

    def factor() -> float:
        return rng.uniform(*_FACTORS)

    brightness = maybe(lambda: rng.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    contrast_first = bool(rng.integers(2))
    contrast = maybe(factor) if contrast_first else None
    saturation = maybe(factor)
    hue = maybe(lambda: int(rng.integers(-_HUE, _HUE)))
    if not contrast_first:
        contrast = maybe(factor)
    return Photometric(brightness, contrast, contrast_first, saturation, hue)


def photometric(image: np.ndarray, drawn: Photometric) -> np.ndarray:
    """Distorts colours; values are clipped and cut off to uint8 after each step.

    (mmsegmentation 0.11, `PhotoMetricDistortion`.)

    Args:
      image: uint8 [H, W, 3], RGB.
      drawn: what to do.
    """
    if drawn.brightness is not None:
        image = _line(1.0, drawn.brightness)[image]
    if drawn.contrast is not None and drawn.contrast_first:
        image = _line(drawn.contrast, 0.0)[image]
    hues = np.arange(180, dtype=np.uint8)
    if drawn.saturation is not None:
        image = recolour(image, hues, _line(drawn.saturation, 0.0))
    if drawn.hue is not None:
        image = recolour(image, np.roll(hues, -drawn.hue), _line(1.0, 0.0))
    if drawn.contrast is not None and not drawn.contrast_first:
        image = _line(drawn.contrast, 0.0)[image]
    return image


def _line(factor: float, summand: float) -> np.ndarray:
    """What each of 256 values becomes: multiplied and added to, clipped and cut off."""
    moved = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(summand)
    return np.clip(moved, 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class TrainCrops:
    """Makes a row of a batch of an image with its labels: resized, cropped, flipped, distorted.

    Attributes:
      crop_size: height and width of the result, pixels.
      side: what the shorter side is resized to, before a factor; the crop's, in the reference.
      scales: the least and the largest factor.
      flip: probability of mirroring, left to right.
      distort: whether to distort colours.
    """

    crop_size: int
    side: int
    scales: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    distort: bool = True

    def __post_init__(self) -> None:
        """Raises InputError where a field is out of range."""
        for name in ("crop_size", "side"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` (={getattr(self, name)}) must be 1 pixel or more")

    def __call__(
        self, example: tuple[Image.Image, np.ndarray], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Makes a row.

        Args:
          example: an RGB image, and its labels: uint8 [H, W], `IGNORED` where there is no class.
          rng: generator to draw with.

        Returns:
          `image`, uint8 [crop_size, crop_size, 3], `label`, uint8 [crop_size, crop_size], and
          `size`, int32 [2], the height and width of what is no filling: smaller images lie in the
          upper left, beside zeros and `IGNORED`.
        """
        image, labels = np.asarray(example[0]), example[1]
        size = rescaled(image.shape[1], image.shape[0], *draw_scale(rng, self.side, self.scales))
        labels = resize_nearest(labels, size[1], size[0])
        top, left = draw_crop(labels, self.crop_size, rng)
        labels = labels[top : top + self.crop_size, left : left + self.crop_size]
        image = resize_bilinear(image, size[1], size[0], part=(top, left, *labels.shape))
        if rng.random() < self.flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if self.distort:
            image = photometric(image, draw_photometric(rng))
        row = self.blank
        height, width = labels.shape
        row["image"][:height, :width] = image
        row["label"][:height, :width] = labels
        row["size"][:] = height, width
        return row

    @property
    def blank(self) -> dict[str, Any]:
        """A row of nothing but filling."""
        side = self.crop_size
        return {
            "image": np.zeros((side, side, 3), np.uint8),
            "label": np.full((side, side), IGNORED, np.uint8),
            "size": np.zeros(2, np.int32),
        }
