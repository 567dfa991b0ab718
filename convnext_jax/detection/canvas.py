"""How an image of any size becomes one of the detector's, in evaluation and prediction."""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from convnext_jax.data.opencv import resize_bilinear
from convnext_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Resizes images, their ratio kept, and lays them on arrays of one shape.

    (mmdet 2.11, `Resize(img_scale=(longest, side), keep_ratio=True)` and mmcv's `imrescale`.)

    Attributes:
      short: rows of the array, pixels, a multiple of 32.
      long: its columns, likewise.
      side: what the shorter side of an image is resized to,
      longest: unless the longer one would exceed this.
    """

    short: int = 800
    long: int = 1344
    side: int = 800
    longest: int = 1333

    def __post_init__(self) -> None:
        """Raises InputError where images would not fit."""
        for name, value, limit in (
            ("side", self.side, self.short),
            ("longest", self.longest, self.long),
        ):
            if not 1 <= value <= limit:
                raise InputError(f"`{name}` (={value}) must lie in 1..{limit}, for the canvas")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing; images that are too small are enlarged."""
        scale = min(self.longest / max(height, width), self.side / min(height, width))
        # Of images a thousand times as long as wide nothing would be left across.
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)

    @property
    def blank(self) -> dict[str, Any]:
        """A row of nothing."""
        return {
            "image": np.zeros((self.short, self.long, 3), np.uint8),
            "size": np.zeros(2, np.int32),
            "portrait": np.int32(0),
            "original": np.zeros(2, np.int32),
        }

    def row(self, image: Image.Image) -> dict[str, Any]:
        """Makes a row of a batch.

        Args:
          image: in RGB.

        Returns:
          `image`, uint8 [short, long, 3], the resized image in the upper left, zeros beyond;
          one that is taller than wide lies on its side, rows and columns swapped. `portrait`, 1 for
          such an image. `size`, int32 [2], height and width of the resized image, upright; and
          `original`, of the image.
        """
        height, width = self.size(image.height, image.width)
        pixels = resize_bilinear(np.asarray(image), height, width)
        row = self.blank
        if image.height > image.width:
            pixels = pixels.swapaxes(0, 1)
            row["portrait"] = np.int32(1)
        row["image"][: pixels.shape[0], : pixels.shape[1]] = pixels
        row["size"][:] = height, width
        row["original"][:] = image.height, image.width
        return row
