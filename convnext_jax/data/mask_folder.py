"""A user's own masks: `ROOT/images/SPLIT/*.jpg` and `ROOT/annotations/SPLIT/*.png` of one name."""

import functools
import os
from concurrent import futures
from pathlib import Path

import numpy as np
from PIL import Image

from convnext_jax.constants import IGNORED, IMAGE_EXTENSIONS
from convnext_jax.data import annotations, folder
from convnext_jax.data.annotations import Labelling, decode_annotation, read_pair
from convnext_jax.data.decode import one_line
from convnext_jax.data.histogram import label_notes
from convnext_jax.data.listing import Names, answered, left_out_notes, listed, subfolders
from convnext_jax.data.parts import ROOT, part_of
from convnext_jax.errors import InputError, did_you_mean

_IMAGES, _ANNOTATIONS, _CLASSES = "images", "annotations", "classes.txt"
_ANNOTATION_EXTENSIONS = (".png",)
# Files that a message names.
_NAMED = 3
# Threads that read headers: a file server answers several as fast as one.
_THREADS = 8


class MaskFolder:
    """One split of a folder of images and annotations, in the order of the images' names.

    An image `images/SPLIT/a/b.jpg` belongs to `annotations/SPLIT/a/b.png`. Whatever begins with a
    dot, and what macOS adds to archives, is not looked at.

    Attributes:
      name: `folder`.
      split: name of the split's two folders, or a part of them, as given.
      class_names: the lines of `ROOT/classes.txt`; a label is a place in them.
      num_classes: how many there are, at most 255.
      num_files: how many files stay open: none.
      notes: sentences about files that are left out, if there are any, and about the labels.
    """

    num_files = 0

    def __init__(
        self,
        root: Path,
        split: str,
        exif: bool = False,
        *,
        first_label: int = 0,
        ignored: int | None = None,
        histogram: bool = False,
    ):
        """Lists the files of the split; opens none but that of the classes.

        Args:
          root: has the folders `images` and `annotations` and the file `classes.txt`.
          split: name of a folder in both, `.` for themselves; or a part, such as `train[:80%]`
            (`data.parts`).
          exif: turn an image and its annotation as the image's EXIF orientation says.
          first_label: value of the first class in the annotations.
          ignored: value of pixels that belong to no class; None: 255.
          histogram: count the labels of up to 200 annotations, for `notes`.

        Raises:
          InputError: a folder, an image, an annotation or the file of classes is missing or cannot
            be used.
          Lost: the file system does not answer.
        """
        self.name = folder.NAME
        self.split = split
        self._root = str(root)
        self._exif = exif
        part = part_of(split, root / _IMAGES)
        _check_split(root, part.folder)
        self.class_names = _read_classes(root / _CLASSES)
        self.num_classes = len(self.class_names)
        self._labelling = Labelling(
            self.num_classes, first_label, IGNORED if ignored is None else ignored
        )
        if ignored is None and first_label + self.num_classes > IGNORED:
            raise InputError(
                f"`ignored` must be given for {self.num_classes} classes from `first_label`"
                f" (={first_label}) on: its default, {IGNORED}, is {self.class_names[-1]}'s value"
            )
        images, other_images = _by_stem(root / _IMAGES, part.folder, IMAGE_EXTENSIONS)
        masks, other_masks = _by_stem(root / _ANNOTATIONS, part.folder, _ANNOTATION_EXTENSIONS)
        _check_pairs(root, images, masks)
        stems = part.of(sorted(images))
        if not stems:
            raise InputError(f"{self} must have images, and has none of {len(images)}")
        self._images = Names([os.fsencode(images[stem]) for stem in stems])
        self._annotations = Names([os.fsencode(masks[stem]) for stem in stems])
        self.notes = left_out_notes(f"{self}, images", other_images, IMAGE_EXTENSIONS)
        self.notes += left_out_notes(f"{self}, annotations", other_masks, _ANNOTATION_EXTENSIONS)
        if histogram:
            self.notes += label_notes(
                str(self), len(self), self.class_names, self._labelling, self._annotation
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Reads and decodes one image with its annotation.

        Args:
          index: 0..len-1.

        Returns:
          The image in RGB, at its own size; and its labels, uint8 [H, W], 0..num_classes-1 or
          `IGNORED`.

        Raises:
          IndexError: there is no such index.
          InputError: one of them cannot be decoded, their sizes differ, or a value is that of no
            class.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"`index` (={index}) must be in 0..{len(self) - 1}")
        image, annotation = self._image_path(index), self._annotation_path(index)
        return read_pair(image, annotation, image, annotation, self._labelling, self._exif)

    def __str__(self) -> str:
        """Dataset and split, as messages name them."""
        return f"dataset `{self.name}`, split `{self.split}`"

    @functools.cached_property
    def largest(self) -> tuple[int, int]:
        """Height and width that no mask exceeds; reads the first bytes of every annotation, once.

        Raises:
          InputError: an annotation is no such PNG.
          Lost: the file system does not answer.
        """
        with futures.ThreadPoolExecutor(_THREADS) as threads:
            sizes = list(threads.map(self._size, range(len(self))))
        height, width = map(max, zip(*sizes, strict=True))
        # An image may be turned by a quarter.
        return (max(height, width),) * 2 if self._exif else (height, width)

    def _size(self, index: int) -> tuple[int, int]:
        path = self._annotation_path(index)

        def read() -> bytes:
            try:
                with open(path, "rb", buffering=0) as file:
                    return file.read(annotations.HEADER_BYTES)
            except OSError as error:
                raise InputError(
                    f"the annotation {path} cannot be read: {one_line(error)}"
                ) from error

        return annotations.size_of(answered(read), path)

    def _annotation(self, index: int) -> tuple[Image.Image, str]:
        path = self._annotation_path(index)
        return answered(lambda: decode_annotation(path, path)), path

    def path_of(self, index: int) -> str:
        """The file of an image, by its index."""
        return self._image_path(index)

    def _image_path(self, index: int) -> str:
        return os.path.join(self._root, _IMAGES, self._images[index])

    def _annotation_path(self, index: int) -> str:
        return os.path.join(self._root, _ANNOTATIONS, self._annotations[index])


def _check_split(root: Path, split: str) -> None:
    """Raises InputError unless the split has a folder of images and one of annotations."""
    places = {part: root / part for part in (_IMAGES, _ANNOTATIONS)}
    there = {part: subfolders(path) if path.is_dir() else [] for part, path in places.items()}
    if all(split in (*splits, ROOT) and places[part].is_dir() for part, splits in there.items()):
        return
    found = "; ".join(
        f"{places[part]} has {', '.join(splits) or 'no folders'}" for part, splits in there.items()
    )
    common = set(there[_IMAGES]) & set(there[_ANNOTATIONS])
    raise InputError(
        f"split `{split}` must be a folder in {places[_IMAGES]} and in {places[_ANNOTATIONS]};"
        f" {found}{did_you_mean(split, common)}"
    )


def _read_classes(path: Path) -> tuple[str, ...]:
    """The names of the classes, one a line."""
    try:
        text = answered(lambda: path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} must have the name of each class, one a line, as UTF-8 text: {one_line(error)}"
        ) from error
    names: dict[str, int] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        name = line.strip()
        if not name:
            raise InputError(f"{path} must name a class in each line, and line {number} is empty")
        if name in names:
            raise InputError(
                f"{path} must have each class once, and has `{name}` in lines {names[name]} and"
                f" {number}"
            )
        names[name] = number
    return tuple(names)


def _by_stem(root: Path, split: str, endings: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """The files of a split by their paths without ending; and the others that are there."""
    found, others = (
        [os.path.normpath(f) for f in files] for files in listed(str(root), split, endings)
    )
    if not found:
        raise InputError(f"{root / split} must have files ({', '.join(endings)}), and has none")
    by_stem = {os.path.splitext(path)[0]: path for path in found}
    if len(by_stem) < len(found):
        twice = next(path for path in sorted(found) if by_stem[os.path.splitext(path)[0]] != path)
        other = by_stem[os.path.splitext(twice)[0]]
        raise InputError(
            f"files in {root / split} must differ in more than their ending, and {root} has"
            f" {twice} and {other}"
        )
    return by_stem, others


def _check_pairs(root: Path, images: dict[str, str], masks: dict[str, str]) -> None:
    """Raises InputError unless every image has an annotation and every annotation an image."""
    for what, files, of, others in (
        ("an annotation", images, _IMAGES, masks),
        ("an image", masks, _ANNOTATIONS, images),
    ):
        alone = sorted(files[stem] for stem in files.keys() - others.keys())
        if alone:
            named = ", ".join(alone[:_NAMED]) + (", ..." if len(alone) > _NAMED else "")
            raise InputError(
                f"each file in {root / of} must have {what} of the same name without the ending,"
                f" and {len(alone)} of {len(files)} have none: {named}"
            )
