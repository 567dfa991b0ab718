"""Decodes image files, in one place for all sources."""

import io

from PIL import Image

from convnext_jax.errors import InputError


def decode(file: str | bytes, name: str) -> Image.Image:
    """Decodes an image.

    Args:
      file: path, or the contents of a file.
      name: what to call the image in an error.

    Returns:
      The image in RGB, at its own size and ignoring EXIF orientation, as torchvision loads it.

    Raises:
      InputError: it cannot be decoded.
    """
    try:
        # No `draft` mode, fast as it is: its pixels are others than torchvision's.
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            # Converting RGB to RGB would copy it.
            return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # PIL's readers raise nearly anything on damaged data.
        raise InputError(f"the image {name} cannot be decoded: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Type and message of an error, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
