"""Draws scanned digits on photographs, and tells exactly which pixels each covers."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Height and width of a scene, pixels.
SIZE = 96
# Height and width that the 8 x 8 pixels of a scan are drawn at.
_SCAN_SIZES = (40.0, 64.0)
# Less than half-way to where a 6 looks like a 9.
_DEGREES = (-20.0, 20.0)
# Digits that are tried; what finds no free place is left out, and five hardly ever fit.
_MOST_DIGITS = 5
# Sides of the parts of photographs that become a scene.
_CROP_SIDES = (SIZE, 160)
_OPACITIES = (0.85, 1.0)
# How much of the ink a scan has where strokes begin and where they are full, of 255.
_INK = (60.0, 170.0)
# Pixels that are ink at least by half are the digit's.
_COVERED = 0.5
# Places that are tried.
_TRIES = 30
# Photographs are dimmed to this share, and no colour of a digit has less of red, green or blue than
# this, of 255: a digit is lighter than all that is under it.
_DIMMED = 0.5
_LIGHT = 195.0


@dataclasses.dataclass(frozen=True)
class Scene:
    """A drawn scene of n digits.

    Attributes:
      image: uint8 [SIZE, SIZE, 3], RGB.
      label: uint8 [SIZE, SIZE]; 0 for the photograph, 1 + its digit where a digit is.
      instances: uint8 [SIZE, SIZE]; 0 for the photograph, i + 1 where the i-th digit is.
      boxes: top, left, bottom, right of the pixels of each digit, the last two exclusive.
      digits: 0..9, of each.
    """

    image: np.ndarray
    label: np.ndarray
    instances: np.ndarray
    boxes: tuple[tuple[int, int, int, int], ...]
    digits: tuple[int, ...]


def draw_scene(
    rng: np.random.Generator,
    photographs: Sequence[Image.Image],
    scans: np.ndarray,
    digits: np.ndarray,
) -> Scene:
    """Draws some light digits, wholly inside and apart from each other, on a dim photograph.

    Args:
      rng: all that is random comes from it.
      photographs: RGB, 160 x 160 pixels or more; one is chosen, a wide one rather than another.
      scans: uint8 [n, 8, 8], ink 0..255; some are chosen.
      digits: which digit each is, [n].
    """
    pixels = _background(rng, photographs)
    label = np.zeros((SIZE, SIZE), np.uint8)
    instances = np.zeros((SIZE, SIZE), np.uint8)
    taken = np.zeros((SIZE, SIZE), bool)
    boxes, drawn = [], []
    for _ in range(rng.integers(1, _MOST_DIGITS + 1)):
        scan = int(rng.integers(len(scans)))
        ink = _ink(rng, scans[scan])
        place = _free_place(rng, taken, ink > 0)
        if place is None:
            continue  # the first one always has a place
        part = (
            slice(place[0], place[0] + ink.shape[0]),
            slice(place[1], place[1] + ink.shape[1]),
        )
        covered = ink >= _COVERED
        alpha = ink[..., None] * rng.uniform(*_OPACITIES)
        colour = rng.uniform(_LIGHT, 255.0, 3)
        pixels[part] = (1 - alpha) * pixels[part] + alpha * colour
        taken[part] |= ink > 0
        drawn.append(int(digits[scan]))
        label[part][covered] = 1 + drawn[-1]
        instances[part][covered] = len(drawn)
        rows, columns = np.nonzero(covered)
        top, left = place[0] + int(rows.min()), place[1] + int(columns.min())
        boxes.append((top, left, place[0] + int(rows.max()) + 1, place[1] + int(columns.max()) + 1))
    image = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    return Scene(image, label, instances, tuple(boxes), tuple(drawn))


def _background(rng: np.random.Generator, photographs: Sequence[Image.Image]) -> np.ndarray:
    """A part of a photograph, dimmed, float [SIZE, SIZE, 3] of 0..255."""
    widths = np.array([photograph.width for photograph in photographs])
    photograph = photographs[int(rng.choice(len(photographs), p=widths / widths.sum()))]
    side = int(rng.integers(_CROP_SIDES[0], _CROP_SIDES[1] + 1))
    left = int(rng.integers(photograph.width - side + 1))
    top = int(rng.integers(photograph.height - side + 1))
    crop = photograph.crop((left, top, left + side, top + side))
    pixels = np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float64)
    return _DIMMED * (pixels[:, ::-1] if rng.random() < 0.5 else pixels)


def _ink(rng: np.random.Generator, scan: np.ndarray) -> np.ndarray:
    """How much of each pixel a scan's ink hides, 0..1, at a random size and angle; [h, w]."""
    scale = rng.uniform(*_SCAN_SIZES) / len(scan)
    angle = math.radians(rng.uniform(*_DEGREES))
    margin = 2
    source = Image.fromarray(np.pad(scan, margin).astype(np.float32))
    side = math.ceil(source.width * scale * math.sqrt(2))
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    middle, center = source.width / 2, side / 2
    # Where in the scan a pixel of the result comes from.
    affine = (
        *(cos, sin, middle - center * (cos + sin)),
        *(-sin, cos, middle - center * (cos - sin)),
    )
    turned = source.transform(
        (side, side), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
    )
    empty, full = _INK
    ink = np.clip((np.asarray(turned, np.float64) - empty) / (full - empty), 0, 1)
    rows, columns = np.nonzero(ink)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _free_place(
    rng: np.random.Generator, taken: np.ndarray, ink: np.ndarray
) -> tuple[int, int] | None:
    """Row and column where all of `ink` is inside and on nothing that is taken, if one is found."""
    height, width = ink.shape
    for _ in range(_TRIES):
        top, left = int(rng.integers(SIZE - height + 1)), int(rng.integers(SIZE - width + 1))
        if not (taken[top : top + height, left : left + width] & ink).any():
            return top, left
    return None
