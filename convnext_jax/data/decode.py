"""Decodes image files, in one place for all sources."""

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

from PIL import ExifTags, Image, ImageOps

from convnext_jax.errors import InputError

# How an image is turned upright, by its EXIF orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    return decode_with_turn(file, name, exif)[0]


def decode_with_turn(
    file: str | bytes, name: str, exif: bool = False
) -> tuple[Image.Image, Image.Transpose | None]:
    """Decodes an image, as `decode`, and tells how it was turned, for what belongs to its pixels.

    A TIFF is turned in any case, by Pillow.
    """
    try:
        # No `draft` mode, fast as it is: its pixels are others than torchvision's.
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            turn = _turn_of(image) if image.format == "TIFF" else None
            image.load()
            if exif:
                turn = _turn_of(image) if turn is None else turn
                stored, image = image, upright(image)
                turn = None if image is stored else turn
            # Converting RGB to RGB would copy it.
            return image if image.mode == "RGB" else image.convert("RGB"), turn
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


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """What `upright` does to an image."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return None


def opened(image: str | Image.Image, exif: bool) -> Image.Image:
    """An image in RGB, from a file or as PIL has it; arguments and errors are those of `decode`."""
    if isinstance(image, Image.Image):
        return (upright(image) if exif else image).convert("RGB")
    return decode(image, image, exif)


def one_ahead(prepare: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """What `prepare` makes of each item, in their order; a thread has the next one ready."""
    with futures.ThreadPoolExecutor(2) as threads:
        items = iter(items)
        waiting = [threads.submit(prepare, item) for item in itertools.islice(items, 2)]
        while waiting:
            prepared = waiting.pop(0).result()
            waiting += [threads.submit(prepare, item) for item in itertools.islice(items, 1)]
            yield prepared
