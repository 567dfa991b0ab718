"""A user's own images: `ROOT/SPLIT/CLASS/*.jpg`, as torchvision's ImageFolder has them."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from convnext_jax.constants import IMAGE_EXTENSIONS
from convnext_jax.data.decode import decode
from convnext_jax.data.listing import Names, left_out_notes, listed, subfolders
from convnext_jax.errors import InputError, did_you_mean

# What a config calls such a dataset; its root is `data.dir`.
NAME = "folder"


class FolderSource:
    """One split of a folder of images, in the order of class and file names.

    Whatever begins with a dot, and what macOS adds to archives, is not looked at.

    Attributes:
      name: `folder`.
      split: name of the split's folder.
      class_names: names of the class folders, sorted; a label is a place in them.
      num_classes: how many there are.
      num_files: how many files stay open: none.
      notes: sentences about files that are left out, if there are any.
    """

    num_files = 0

    def __init__(self, root: Path, split: str, exif: bool = False):
        """Lists the files of the split; opens none.

        Args:
          root: has a folder for each split; others than this one are not looked at.
          split: name of the folder.
          exif: turn images as their EXIF orientation says.

        Raises:
          InputError: there is no such folder; it has no classes; a class is empty; a folder may
            not be read.
          Lost: the file system does not answer.
        """
        self.name = NAME
        self.split = split
        self._exif = exif
        self._folder = str(root / split)
        splits = subfolders(root) if root.is_dir() else []
        if split not in splits:
            found = f"{root} has {', '.join(splits)}" if splits else f"{root} has no folders"
            raise InputError(
                f"split `{split}` must be a folder of class folders, and {found}"
                f"{did_you_mean(split, splits)}"
            )
        self.class_names = tuple(subfolders(root / split))
        self.num_classes = len(self.class_names)
        if not self.class_names:
            raise InputError(f"{self._folder} must have a folder for each class, and has none")
        left_out: list[str] = []
        names: list[bytes] = []
        ends = []
        for name in self.class_names:
            found, others = listed(self._folder, name, IMAGE_EXTENSIONS)
            files = sorted(found)
            left_out += others
            if not files:
                raise InputError(
                    f"class folder {root / split / name} must have images"
                    f" ({', '.join(IMAGE_EXTENSIONS)}), and has none"
                )
            names += map(os.fsencode, files)
            ends.append(len(names))
        self.notes = left_out_notes(str(self), left_out, IMAGE_EXTENSIONS)
        self._class_ends = np.array(ends)
        self._names = Names(names)

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
        file = os.path.join(self._folder, self._names[index])
        label = int(np.searchsorted(self._class_ends, index, side="right"))
        return decode(file, file, self._exif), label

    def __str__(self) -> str:
        """Dataset and split, as messages name them."""
        return f"dataset `{self.name}`, split `{self.split}`"
