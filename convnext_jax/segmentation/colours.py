"""Colours of classes, and pictures of labels."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from convnext_jax.constants import IGNORED
from convnext_jax.data import ade20k_classes

# Of pixels that are of no class.
_OF_NONE = (0, 0, 0)
# A turn of hue by this share of the circle never comes near an earlier one.
_GOLDEN = 0.618034


def palette(num_classes: int, class_names: Sequence[str] | None = None) -> np.ndarray:
    """A colour for each class: ADE20K's usual ones for its classes, else colours far apart.

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
    width = max(image.width for image, _, _ in rows) + gap
    height = max(image.height for image, _, _ in rows) + gap
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * (3 * width + gap), lines * height), "white")
    for number, (image, truth, found) in enumerate(rows):
        left, top = number % columns * (3 * width + gap), number // columns * height
        pictures = (image, overlay(image, truth, colours), overlay(image, found, colours))
        for i, picture in enumerate(pictures):
            sheet.paste(picture, (left + i * width, top))
    return sheet
