"""Bicubic resizing and affine transforms of RGB images: Pillow's pixels in a fraction of its time.

Most of what Pillow needs for the training transform goes to resampling, one value after the other.
`resample_kernels` does the same arithmetic on many values at once. Images below a size that makes
this worth its start are left to Pillow.
"""

import math

import numpy as np
import PIL
import pyarrow
from PIL import Image

# (left, top, right, bottom) in pixels, as Pillow has them.
Corners = tuple[int, int, int, int]

# Sides up to this go to Pillow: loading the compiled functions would take longer than it saves.
_SMALL = 64
# From version 13 on, Pillow reduces the height first where that is the larger reduction. The
# rounding between the passes then differs in the last bit.
_CAN_START_VERTICALLY = int(PIL.__version__.partition(".")[0]) >= 13


def resize(
    image: Image.Image,
    size: tuple[int, int],
    *,
    box: Corners | None = None,
    part: Corners | None = None,
) -> Image.Image:
    """Cuts `box` out, resizes it, bicubic with antialiasing, and cuts `part` out of the result.

    Source: the same three steps with Pillow's `crop` and `resize`; a test compares the pixels.
    (`Image.resize(box=...)` is something else: it lets pixels from outside the box in.)

    Args:
      image: RGB image.
      size: (width, height) that the box gets.
      box: lies inside the image; None: all of it.
      part: lies inside `size`; None: all of it. Only this is computed.
    """
    box = (0, 0, *image.size) if box is None else box
    part = (0, 0, *size) if part is None else part
    before = (box[2] - box[0], box[3] - box[1])
    if before == size or max(*before, *size) <= _SMALL:
        return image.crop(box).resize(size, Image.Resampling.BICUBIC).crop(part)
    from convnext_jax.data import resample_kernels  # Numba takes a while to import.

    pixels = _pixels(image)[box[1] : box[3], box[0] : box[2]]
    return Image.fromarray(resample_kernels.resize(pixels, *size, *part, _CAN_START_VERTICALLY))


def affine(image: Image.Image, matrix: tuple[float, ...], fill: tuple[int, ...]) -> Image.Image:
    """Takes the pixel at (x, y) from (a x + b y + c, d x + e y + f) of `image`, bicubic.

    Source: Pillow's `Image.transform` with `AFFINE`; a test compares the pixels.

    Args:
      image: RGB image; the result has its size.
      matrix: a, b, c, d, e, f.
      fill: the colour of what comes from outside the image.
    """
    if max(image.size) <= _SMALL:
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill
        )
    from convnext_jax.data import resample_kernels

    coefficients = (float(value) for value in matrix)
    return Image.fromarray(
        resample_kernels.affine(_pixels(image), *coefficients, np.array(fill, np.uint8))
    )


def rotate(image: Image.Image, degrees: float, fill: tuple[int, ...]) -> Image.Image:
    """Turns an RGB image counter-clockwise about its centre, bicubic; the size stays.

    Source: Pillow's `Image.rotate`; a test compares the pixels.
    """
    angle = math.radians(-(degrees % 360.0))
    # Rounded as Pillow does, so that a quarter turn is exact.
    cosine, sine, minus_sine = (
        round(value, 15) for value in (math.cos(angle), math.sin(angle), -math.sin(angle))
    )
    x, y = image.width / 2, image.height / 2
    c = cosine * -x + sine * -y + x
    f = minus_sine * -x + cosine * -y + y
    return affine(image, (cosine, sine, c, minus_sine, cosine, f), fill)


def _pixels(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB image as uint8 [H, W, 4], where they are; the fourth value is unused."""
    try:
        values = pyarrow.array(image).values  # pyright: ignore[reportAttributeAccessIssue]
    except ValueError:  # Pillow keeps an image of more than 16 MB in several pieces.
        return np.asarray(image)
    return values.to_numpy(zero_copy_only=True).reshape(image.height, image.width, 4)
