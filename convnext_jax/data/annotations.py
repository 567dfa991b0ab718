"""Annotations: PNG files whose values say of each pixel what it is."""

import dataclasses
import functools
import io
import struct

import numpy as np
from PIL import Image

from convnext_jax.constants import IGNORED
from convnext_jax.data.decode import decode_with_turn, one_line
from convnext_jax.errors import InputError

# The first bytes of a PNG: signature, length and name of the header, width, height, bits of a
# value, kind of colours. (PNG specification, sections 5.2 and 11.2.1.)
HEADER_BYTES = 26
_HEADER = struct.Struct(">16sIIBB")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3
_KINDS = {
    _GREY: "grey",
    2: "RGB",
    _PALETTE: "palette",
    4: "grey with transparency",
    6: "RGB with transparency",
}


def size_of(content: bytes, name: str) -> tuple[int, int]:
    """Height and width of an annotation, from the first `HEADER_BYTES` of its file.

    Raises:
      InputError: it is not a PNG that has one value of 8 bits, or an index, for each pixel.
    """
    if len(content) < HEADER_BYTES or not content.startswith(_SIGNATURE):
        raise InputError(f"the annotation {name} must be a PNG file, and does not begin as one")
    _, width, height, bits, kind = _HEADER.unpack(content[:HEADER_BYTES])
    if kind == _PALETTE or (kind == _GREY and bits == 8):
        return height, width
    if kind in (_GREY, 4):
        # Of fewer bits, too: decoders stretch these values to 0..255.
        remedy = "save its values with 8 bits each, and no transparency"
    else:
        remedy = "save for each pixel the number that its colour stands for"
    raise InputError(
        f"the annotation {name} is an image of kind {_KINDS.get(kind, kind)} with {bits} bits a"
        f" value, and must be grey with 8 bits or have a palette; {remedy}"
    )


def decode_annotation(file: str | bytes, name: str) -> Image.Image:
    """Decodes an annotation.

    Args:
      file: path, or the contents of a file.
      name: what to call the annotation in an error.

    Returns:
      The image, at its own size, of mode L or P: values or indices 0..255. The colours of a
      palette mean nothing.

    Raises:
      InputError: it cannot be decoded, or is of another kind.
    """
    try:
        content = file if isinstance(file, bytes) else _content(file)
        size_of(content, name)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            return image
    except InputError:
        raise
    except Exception as error:  # PIL's readers raise nearly anything on damaged data.
        raise InputError(f"the annotation {name} cannot be decoded: {one_line(error)}") from error


@dataclasses.dataclass(frozen=True)
class Labelling:
    """How the values of annotations become labels.

    Attributes:
      num_classes: how many classes there are.
      first_label: value of the first class; that of class c is `first_label` + c.
      ignored: value of pixels that belong to no class, also where a class would have it; None: no
        value.
    """

    num_classes: int
    first_label: int = 0
    ignored: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError where a field is out of range."""
        if not 0 <= self.first_label <= 255:
            raise InputError(f"`first_label` (={self.first_label}) must be in 0..255")
        if self.ignored is not None and not 0 <= self.ignored <= 255:
            raise InputError(f"`ignored` (={self.ignored}) must be in 0..255, or None for no value")
        most = min(IGNORED, 256 - self.first_label)
        if not 1 <= self.num_classes <= most:
            raise InputError(
                f"there must be 1 to {most} classes, not {self.num_classes}: values are in 0..255,"
                f" the first class has {self.first_label}, and the label {IGNORED} is no class's"
            )

    def __call__(self, annotation: Image.Image, name: str) -> np.ndarray:
        """The labels of an annotation.

        Args:
          annotation: of mode L or P, [H, W].
          name: what to call it in an error.

        Returns:
          Labels, uint8 [H, W]: 0..num_classes-1, or `IGNORED`.

        Raises:
          InputError: a value is that of no class.
        """
        self.check(annotation, name)
        return np.array(annotation.point(self._labels))  # a third of the time of NumPy's indexing

    def check(self, annotation: Image.Image, name: str) -> np.ndarray:
        """Counts the pixels of each value, int64 [256]; raises InputError as a call does."""
        counts = np.array(annotation.histogram())
        stray = np.flatnonzero((counts > 0) & ~self._known)
        if not len(stray):
            return counts
        last = self.first_label + self.num_classes - 1
        others = f", and pixels of {len(stray) - 1} other such values" if len(stray) > 1 else ""
        ignored = "; no value is ignored" if self.ignored is None else f", or {self.ignored}"
        of_ignored = "" if self.ignored is None else f", and `ignored` (={self.ignored}) of none"
        raise InputError(
            f"the annotation {name} has {counts[stray[0]]} pixels of value {stray[0]}{others};"
            f" values must be in {self.first_label}..{last}{ignored}, as `first_label`"
            f" (={self.first_label}) is that of the first of {self.num_classes} classes{of_ignored}"
        )

    def label_counts(self, counts: np.ndarray) -> tuple[np.ndarray, int]:
        """Pixels of each label, [num_classes], and ignored ones, from those of each value."""
        kept = counts.copy()
        ignored = 0
        if self.ignored is not None:
            ignored, kept[self.ignored] = int(counts[self.ignored]), 0
        return kept[self.first_label : self.first_label + self.num_classes], ignored

    @functools.cached_property
    def _known(self) -> np.ndarray:
        """Whether a value may occur, [256]."""
        known = np.zeros(256, bool)
        known[self.first_label : self.first_label + self.num_classes] = True
        if self.ignored is not None:
            known[self.ignored] = True
        return known

    @functools.cached_property
    def _labels(self) -> list[int]:
        """The label of each value, [256]."""
        labels = [IGNORED] * 256
        labels[self.first_label : self.first_label + self.num_classes] = range(self.num_classes)
        if self.ignored is not None:
            labels[self.ignored] = IGNORED
        return labels


def read_pair(
    image_file: str | bytes,
    annotation_file: str | bytes,
    image_name: str,
    annotation_name: str,
    labelling: Labelling,
    exif: bool = False,
) -> tuple[Image.Image, np.ndarray]:
    """Decodes an image with its annotation, which is turned as the image is.

    Args:
      image_file: path, or the contents of a file.
      annotation_file: likewise.
      image_name: what to call the image in an error.
      annotation_name: likewise.
      labelling: how values become labels.
      exif: turn both as the image's EXIF orientation says; the annotation's own does not count.

    Returns:
      The image in RGB, at its own size; and its labels, uint8 [H, W].

    Raises:
      InputError: one cannot be decoded, their sizes differ, or a value is that of no class.
    """
    image, turn = decode_with_turn(image_file, image_name, exif)
    annotation = decode_annotation(annotation_file, annotation_name)
    if turn is not None:
        annotation = annotation.transpose(turn)
    if image.size != annotation.size:
        (width, height), (annotation_width, annotation_height) = image.size, annotation.size
        turned = "" if turn is None else ", both turned by the image's EXIF orientation"
        raise InputError(
            f"the image {image_name} has {height} x {width} pixels (height x width) and its"
            f" annotation {annotation_height} x {annotation_width}{turned}; they must have the same"
        )
    return image, labelling(annotation, annotation_name)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
