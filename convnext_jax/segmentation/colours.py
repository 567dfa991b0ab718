"""Colours of classes, and pictures of labels."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from convnext_jax.constants import IGNORED
from convnext_jax.data import ade20k_classes

# Of pixels that are of no class.
_OF_NONE = (0, 0, 0)
# A turn of hue by this share of the circle stays away from the turns just before it.
_GOLDEN = 0.618034

# Of an example on a page, pixels.
_SIDE = 400


def palette(num_classes: int, class_names: Sequence[str] | None = None) -> np.ndarray:
    """A colour for each class: ADE20K's usual ones for its classes, else hues all around.

    Up to some 20 classes can be told apart; of more, some look alike.
    Two of ADE20K's classes, road and skyscraper, share a colour: pictures are to look at, not to
    read labels from.

    Args:
      num_classes: how many.
      class_names: their names; None: unknown.

    Returns:
      uint8 [num_classes, 3], RGB.
    """
    if class_names is not None and tuple(class_names) == ade20k_classes.CLASSES:
        return np.array(ade20k_classes.PALETTE, np.uint8)
    colours = [
        colorsys.hsv_to_rgb(i * _GOLDEN % 1, 1 - 0.4 * (i % 2), 1 - 0.25 * (i % 3))
        for i in range(num_classes)
    ]
    return np.rint(255 * np.array(colours)).astype(np.uint8)


def label_picture(labels: np.ndarray, colours: np.ndarray) -> Image.Image:
    """Labels as a picture whose values are the labels, and which shows as their colours.

    Args:
      labels: uint8 [H, W].
      colours: uint8 [classes, 3].
    """
    table = np.tile(np.array(_OF_NONE, np.uint8), (IGNORED + 1, 1))
    table[: len(colours)] = colours
    picture = Image.fromarray(labels)
    picture.putpalette(table.tobytes())
    return picture


def overlay(image: Image.Image, labels: np.ndarray, colours: np.ndarray) -> Image.Image:
    """An image under its labels' colours, half of each."""
    return Image.blend(image, label_picture(labels, colours).convert("RGB"), 0.5)


def page(
    rows: Sequence[tuple[Image.Image, np.ndarray, np.ndarray]],
    colours: np.ndarray,
    columns: int = 3,
) -> Image.Image:
    """Examples to look at, `columns` of them side by side: image, truth, prediction of each.

    Args:
      rows: images, their labels and predictions, uint8 [H, W].
      colours: uint8 [classes, 3].
      columns: examples beside each other.
    """
    gap = 4
    small = [tuple(_small(x) for x in row) for row in rows]
    width = max(image.width for image, _, _ in small) + gap
    height = max(image.height for image, _, _ in small) + gap
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * (3 * width + gap), lines * height), "white")
    for number, (image, *labels) in enumerate(small):
        left, top = number % columns * (3 * width + gap), number // columns * height
        pictures = (image, *(overlay(image, np.asarray(x), colours) for x in labels))
        for i, picture in enumerate(pictures):
            sheet.paste(picture, (left + i * width, top))
    return sheet


def _small(picture: Image.Image | np.ndarray) -> Image.Image:
    """An image, or labels, with sides of `_SIDE` pixels at most."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    factor = min(1.0, _SIDE / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    smooth = isinstance(picture, Image.Image)
    return image.resize(size, Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST)
