"""Decodes image files, in one place for all sources."""

import io

from PIL import Image, ImageOps

from convnext_jax.errors import InputError


def decode(file: str | bytes, name: str, exif: bool = False) -> Image.Image:
    """Decodes an image.

    Args:
      file: path, or the contents of a file.
      name: what to call the image in an error.
      exif: turn it as its EXIF orientation says; torchvision and the reference do not.

    Returns:
      The image in RGB, at its own size.

    Raises:
      InputError: it cannot be decoded.
    """
    try:
        # No `draft` mode, fast as it is: its pixels are others than torchvision's.
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            if exif:
                image = upright(image)
            # Converting RGB to RGB would copy it.
            return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # PIL's readers raise nearly anything on damaged data.
        raise InputError(f"the image {name} cannot be decoded: {one_line(error)}") from error


def upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Damaged EXIF is no reason to refuse the pixels: they stay as they are.
        return image


def one_line(error: BaseException) -> str:
    """Type and message of an error, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
