"""From image files to the pixels that a model is fed with."""

import os

import numpy as np
from PIL import Image

from convnext_jax.classification.transforms import EvalTransform
from convnext_jax.data.decode import upright
from convnext_jax.models.variants import Preprocessing

ImageLike = str | os.PathLike[str] | Image.Image


class ImageError(Exception):
    """An image cannot be used; the message says why, without the image's name."""


class Preprocess:
    """Preprocessing on the host; pixels equal those of timm's and torchvision's transforms on PIL.

    The EXIF orientation is respected where the record says so. Normalising with mean and standard
    deviation happens later, on the accelerator.

    Attributes:
      size: height and width of the result, pixels.
    """

    def __init__(self, preprocessing: Preprocessing):
        """Checks the record.

        Raises:
          InputError: a field is out of range.
        """
        self.size = preprocessing.input_size
        self._exif = preprocessing.exif
        self._transform = EvalTransform(
            preprocessing.input_size,
            preprocessing.crop_fraction,
            preprocessing.crop_mode,
            preprocessing.interpolation,
        )

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Transforms an image of any mode into uint8 [input_size, input_size, 3] in 0..255.

        PIL drops transparency and, in training and torchvision's loader too, cuts off 16-bit values
        at 255. Of an animation this is the first frame, and damaged EXIF says nothing.

        Raises:
          ImageError: the image is a strip so thin that it would be resized to too many pixels.
        """
        image.load()  # Damaged pixels raise here.
        image = (upright(image) if self._exif else image).convert("RGB")
        shorter, longer = sorted(image.size)
        side = self.size / self._transform.crop_fraction
        most = Image.MAX_IMAGE_PIXELS
        squash = self._transform.crop_mode == "squash"
        if not squash and most is not None and side * side * longer > most * shorter:
            raise ImageError(
                f"its sides, {image.width} and {image.height} pixels, differ too much to resize the"
                f" shorter one to {side:.0f}"
            )
        return self._transform(image)

    def read(self, image: ImageLike) -> np.ndarray:
        """Opens and decodes an image, unless it is one already, and transforms it.

        Raises:
          ImageError: that cannot be done.
        """
        try:
            if isinstance(image, Image.Image):
                return self(image)
            with Image.open(image) as opened:
                return self(opened)
        except (ImageError, ImportError):  # a package is missing, which is not the image's fault
            raise
        except Image.UnidentifiedImageError as error:
            raise ImageError("it is no image of a kind that PIL knows") from error
        except FileNotFoundError as error:
            raise ImageError("there is no such file") from error
        except Exception as error:  # PIL's readers raise nearly anything on damaged data.
            message = " ".join(f"{type(error).__name__}: {error}".split())
            raise ImageError(f"it cannot be read: {message}") from error
