"""Pictures of detections: boxes, masks, names and scores over an image."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convnext_jax.detection.pasting import Pasted

# Pictures with a shorter longer side are enlarged, whole times, so that names can be read.
_LEAST_SIDE = 480
# Of letters, pixels at least, and a letter in so many of the longer side.
_LEAST_LETTER, _LETTERS = 12, 60
# Colours are chosen among those of this grid that are neither too dark, too bright nor too grey,
# in CIE L*a*b*.
_GRID, _LIGHTNESS, _CHROMA = 17, (40.0, 88.0), 30.0
# How much of an object's pixels is its colour.
_SHARE = 0.45


@functools.lru_cache(maxsize=4)
def _colours(count: int) -> np.ndarray:
    steps = np.linspace(0, 255, _GRID).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    places = _lab(grid)
    lightness, chroma = places[:, 0], np.hypot(places[:, 1], places[:, 2])
    fine = (lightness > _LIGHTNESS[0]) & (lightness < _LIGHTNESS[1]) & (chroma > _CHROMA)
    grid, places = grid[fine], places[fine]
    chosen = [int(np.argmax(chroma[fine]))]
    nearest = np.full(len(grid), np.inf)
    for _ in range(min(count, len(grid)) - 1):
        nearest = np.minimum(nearest, np.linalg.norm(places - places[chosen[-1]], axis=1))
        chosen.append(int(np.argmax(nearest)))
    return np.resize(grid[chosen], (count, 3))


def palette(num_classes: int) -> np.ndarray:
    """A colour for each class, each as far as can be from all before it, as people see them.

    Those of the first classes do not depend on how many there are.

    Args:
      num_classes: how many.

    Returns:
      uint8 [num_classes, 3], RGB; all different up to some 2,000.
    """
    return _colours(num_classes).copy()


def draw(
    image: Image.Image,
    boxes: np.ndarray,
    names: Sequence[str],
    colours: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    masks: Sequence[Pasted] = (),
) -> Image.Image:
    """Draws objects over an image.

    Args:
      image: in RGB.
      boxes: float [D, 4], x1, y1, x2, y2, pixels of the image.
      names: of each; of two that cannot but hide each other, the first is seen.
      colours: uint8 [D, 3], of each.
      scores: float [D], 0..1, shown in percent; None: there are none.
      masks: pixels of each; none: boxes alone.

    Returns:
      RGB, as large as the image, or some whole times as large.
    """
    factor = max(1, -(-_LEAST_SIDE // max(image.size)))
    picture = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    letter = max(_LEAST_LETTER, round(max(picture.size) / _LETTERS))
    line = max(1, letter // 7)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    # Large ones first, so that small ones are not hidden.
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable").tolist()
    if masks:
        pixels = np.array(picture)
        for i in order:
            _cover(pixels, masks[i], colours[i], factor, line)
        picture = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(picture)
    limits = np.array([picture.width, picture.height] * 2) - 1
    corners = np.clip(np.rint(boxes * factor), 0, limits).astype(int)
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2])
    for i in order:
        canvas.rectangle(corners[i].tolist(), outline=tuple(colours[i].tolist()), width=line)
    font = ImageFont.load_default(letter)
    taken: list[tuple[int, int, int, int]] = []
    ends = [""] * len(boxes) if scores is None else [f" {score:.0%}" for score in scores]
    captions = [
        _caption(canvas, font, name, end, corner, picture.size, taken)
        for name, end, corner in zip(names, ends, corners.tolist(), strict=True)
    ]
    for i, (text, (left, top, right, bottom)) in reversed(list(enumerate(captions))):
        colour = colours[i].tolist()
        canvas.rectangle((left, top, right, bottom), fill=tuple(colour))
        dark = _lab(colours[i][None])[0, 0] > 60
        canvas.text((left + 2, top + 1), text, fill="black" if dark else "white", font=font)
    return picture


def side_by_side(pictures: Sequence[Sequence[Image.Image]], side: int = 480) -> Image.Image:
    """Rows of pictures on one sheet, each within a square of `side` pixels."""
    gap = 6
    small = [[_within(picture, side) for picture in row] for row in pictures]
    heights = [max(picture.height for picture in row) for row in small]
    columns = max(map(len, small))
    size = (columns * (side + gap) + gap, sum(heights) + gap * (len(heights) + 1))
    sheet = Image.new("RGB", size, "white")
    top = gap
    for row, height in zip(small, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (gap + column * (side + gap), top))
        top += height + gap
    return sheet


def _within(picture: Image.Image, side: int) -> Image.Image:
    factor = min(1.0, side / max(picture.size))
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _cover(pixels: np.ndarray, mask: Pasted, colour: np.ndarray, factor: int, line: int) -> None:
    """Colours an object's pixels, and its outline fully."""
    inside = mask.bitmap.astype(bool).repeat(factor, 0).repeat(factor, 1)
    top, left = mask.top * factor, mask.left * factor
    part = pixels[top : top + inside.shape[0], left : left + inside.shape[1]]
    inner = inside
    for _ in range(line):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    mixed = part[inner] * (1 - _SHARE) + colour.astype(np.float64) * _SHARE
    part[inner] = np.rint(mixed).astype(np.uint8)
    part[inside & ~inner] = colour


def _caption(
    canvas: ImageDraw.ImageDraw,
    font: Any,
    name: str,
    end: str,
    corner: Sequence[int],
    size: tuple[int, int],
    taken: list[tuple[int, int, int, int]],
) -> tuple[str, tuple[int, int, int, int]]:
    """What is written and where: above the box, inside or below, where nothing is `taken`.

    All of it lies in the picture; a name that is too long for that is cut.
    """
    name = " ".join(name.split())
    if not isinstance(font, ImageFont.FreeTypeFont):  # that of a Pillow without FreeType
        name = name.encode("latin-1", "replace").decode("latin-1")

    def extent(text: str) -> tuple[int, int]:
        width, height = canvas.textbbox((0, 0), text, font=font)[2:]
        return math.ceil(width), math.ceil(height)

    text = name + end
    for length in range(len(name) - 1, -1, -1):
        if extent(text)[0] + 4 <= size[0]:
            break
        text = f"{name[:length].rstrip()}...{end}"
    width, height = extent(text)
    width, height = min(width + 4, size[0]), min(height + 3, size[1])
    left = min(max(corner[0], 0), size[0] - width)
    tops = (corner[1] - height, corner[1], corner[3], corner[3] - height)
    rows = [top for top in tops if 0 <= top <= size[1] - height]
    rows = rows or [min(max(corner[1], 0), size[1] - height)]
    choices = [(left, top, left + width - 1, top + height - 1) for top in rows]
    free = [one for one in choices if not any(_touch(one, other) for other in taken)]
    place = (free or choices)[0]
    taken.append(place)
    return text, place


def _touch(one: Sequence[int], other: Sequence[int]) -> bool:
    return all(one[i] <= other[i + 2] and other[i] <= one[i + 2] for i in (0, 1))


def _lab(colours: np.ndarray) -> np.ndarray:
    """sRGB, uint8 [N, 3], in CIE L*a*b* with white D65: float64 [N, 3]."""
    values = colours.astype(np.float64) / 255
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    matrix = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    ratios = linear @ (matrix / matrix.sum(1, keepdims=True)).T
    roots = np.where(ratios > (6 / 29) ** 3, np.cbrt(ratios), ratios / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = roots.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
