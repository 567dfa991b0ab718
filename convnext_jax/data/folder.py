"""A user's own images: in a folder for each class, as torchvision has them, or with a table."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from convnext_jax.constants import IMAGE_EXTENSIONS
from convnext_jax.data.decode import decode
from convnext_jax.data.labels_table import INSIDE, files_by_class, labels_images
from convnext_jax.data.listing import Names, left_out_notes, listed, subfolders
from convnext_jax.data.parts import ROOT, part_of
from convnext_jax.errors import InputError, did_you_mean

# What a config calls such a dataset; its root is `data.dir`.
NAME = "folder"
# Files and classes that a note names; folders that a message lists.
_NAMED, _LISTED = 3, 20


class FolderSource:
    """One split of a folder of images, in the order of class and file names.

    A class is a folder in that of the split; or what a table says: `metadata.csv` in the split's
    folder, with columns `file_name` and `label`, or `SPLIT.csv` beside it where no folder is in it.
    Whatever begins with a dot, and what macOS adds to archives, is not looked at.

    Attributes:
      name: `folder`.
      split: the split's folder, or a part of one, as given.
      class_names: names of the classes, in order; a label is a place in them.
      num_classes: how many there are.
      num_files: how many files stay open: none.
      notes: sentences about files that are left out, and where labels are from, if not folders.
    """

    num_files = 0

    def __init__(self, root: Path, split: str, exif: bool = False):
        """Lists the files of the split; opens none but a table.

        Args:
          root: has a folder for each split; others than this one are not looked at.
          split: name of the folder, `.` for the root itself; or a part of one, such as
            `train[:80%]`, which takes its share of each class (`data.parts`).
          exif: turn images as their EXIF orientation says.

        Raises:
          InputError: there is no such folder; it has no classes; a class is empty; a folder or a
            table may not be read; a table does not fit the images.
          Lost: the file system does not answer.
        """
        self.name = NAME
        self.split = split
        self._exif = exif
        part = part_of(split, root)
        folder = _split_folder(root, part.folder)
        self._folder = str(folder)
        beside = None if part.folder == ROOT else root / f"{part.folder}.csv"
        classes, self.notes = _classes(folder, beside, str(self))
        self.class_names = tuple(classes)
        self.num_classes = len(self.class_names)
        chosen = [part.of(files) for files in classes.values()]
        empty = [name for name, files in zip(classes, chosen, strict=True) if not files]
        if len(empty) == len(chosen):
            raise InputError(f"{self} must have images, and has none")
        if empty:
            named = ", ".join(empty[:_NAMED]) + (", ..." if len(empty) > _NAMED else "")
            self.notes += (
                f"{self}: no image of {len(empty)} of {len(chosen)} classes, which have too few to"
                f" share: {named}",
            )
        self._class_ends = np.cumsum([len(files) for files in chosen])
        self._names = Names([os.fsencode(file) for files in chosen for file in files])

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Reads and decodes one image.

        Args:
          index: 0..len-1.

        Returns:
          The image in RGB, at its own size; and its label, 0..num_classes-1.

        Raises:
          IndexError: there is no such index.
          InputError: the image cannot be decoded.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"`index` (={index}) must be in 0..{len(self) - 1}")
        file = self.path_of(index)
        label = int(np.searchsorted(self._class_ends, index, side="right"))
        return decode(file, file, self._exif), label

    def path_of(self, index: int) -> str:
        """The file of an image, by its index."""
        return os.path.join(self._folder, self._names[index])

    def __str__(self) -> str:
        """Dataset and split, as messages name them."""
        return f"dataset `{self.name}`, split `{self.split}`"


def _split_folder(root: Path, name: str) -> Path:
    """The folder of a split; InputError if there is none."""
    splits = subfolders(root) if root.is_dir() else []
    if name in splits or (name == ROOT and (splits or (root / INSIDE).is_file())):
        return root / name
    found = f"{root} has no folders"
    if splits:
        found = (
            f"{root} has {', '.join(splits[:_LISTED])}{', ...' if len(splits) > _LISTED else ''}"
        )
    hint = did_you_mean(name, splits)
    if len(splits) > 1 and not hint:
        hint = (
            f"; if those are the classes, `{ROOT}[:80%]` and `{ROOT}[80%:]` are splits, drawn at"
            " random"
        )
    raise InputError(f"split `{name}` must be a folder of class folders, and {found}{hint}")


def _classes(
    folder: Path, beside: Path | None, what: str
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """The images of each class by their paths in `folder`, sorted; and notes.

    Args:
      folder: of the split.
      beside: where a table may lie, if not in it.
      what: the split, as notes name it.
    """
    names = subfolders(folder)
    inside = folder / INSIDE
    # Folders are classes unless a table that is meant for it says otherwise.
    if inside.is_file() and (not names or labels_images(inside)):
        return _of_table(inside, folder, what)
    if beside is not None and not names and beside.is_file():
        return _of_table(beside, folder, what)
    if not names:
        places = " or ".join(str(place) for place in (inside, beside) if place is not None)
        raise InputError(
            f"{folder} must have a folder for each class, and has none; or a table of its images"
            f" and their classes, {places}, with columns `file_name` and `label`"
        )
    notes: tuple[str, ...] = tuple(
        f"{what}: {table} is not used, as {folder} has folders, which are taken for its classes;"
        f" {inside} with columns `file_name` and `label` would be"
        for table in (inside, beside)
        if table is not None and table.is_file()
    )
    classes, left_out = dict[str, list[str]](), list[str]()
    for name in names:
        found, others = listed(str(folder), name, IMAGE_EXTENSIONS)
        classes[name] = sorted(found)
        left_out += others
        if not found:
            raise InputError(
                f"class folder {folder / name} must have images ({', '.join(IMAGE_EXTENSIONS)}),"
                " and has none"
            )
    return classes, notes + left_out_notes(what, left_out, IMAGE_EXTENSIONS)


def _of_table(table: Path, folder: Path, what: str) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """`_classes` of a table."""
    found, others = listed(str(folder), ".", IMAGE_EXTENSIONS)
    images = [os.path.normpath(path) for path in found]
    others = [path for path in map(os.path.normpath, others) if path != INSIDE]
    classes, unlabelled = files_by_class(table, folder, images)
    notes = (f"{what}: labels are those of {table}",)
    if unlabelled:
        named = ", ".join(unlabelled[:_NAMED]) + (", ..." if len(unlabelled) > _NAMED else "")
        notes += (f"{what}: {len(unlabelled)} images left out, which it does not have: {named}",)
    return classes, notes + left_out_notes(what, others, IMAGE_EXTENSIONS)
