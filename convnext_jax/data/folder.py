"""A user's own images: `ROOT/SPLIT/CLASS/*.jpg`, as torchvision's ImageFolder has them."""

import collections
import os
from pathlib import Path

import numpy as np
from PIL import Image

from convnext_jax.constants import IMAGE_EXTENSIONS
from convnext_jax.data.decode import decode
from convnext_jax.errors import InputError, Lost, did_you_mean
from convnext_jax.retry import is_passing, retrying

# What a config calls such a dataset; its root is `data.dir`.
NAME = "folder"
# Examples of the files that a note names.
_NAMED = 3


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
        splits = _folders(root) if root.is_dir() else []
        if split not in splits:
            found = f"{root} has {', '.join(splits)}" if splits else f"{root} has no folders"
            raise InputError(
                f"split `{split}` must be a folder of class folders, and {found}"
                f"{did_you_mean(split, splits)}"
            )
        self.class_names = tuple(_folders(root / split))
        self.num_classes = len(self.class_names)
        if not self.class_names:
            raise InputError(f"{self._folder} must have a folder for each class, and has none")
        left_out: list[str] = []
        names: list[bytes] = []
        ends = []
        for name in self.class_names:
            found, others = _listed(self._folder, name)
            files = sorted(found)
            left_out += others
            if not files:
                raise InputError(
                    f"class folder {root / split / name} must have images"
                    f" ({', '.join(IMAGE_EXTENSIONS)}), and has none"
                )
            names += map(os.fsencode, files)
            ends.append(len(names))
        self.notes = _notes(str(self), left_out)
        # Three arrays: a list of a million paths would be pickled for seconds, for each worker.
        self._class_ends = np.array(ends)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.uint32)
        self._names = np.frombuffer(b"".join(names), np.uint8)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._ends)

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
        start = int(self._ends[index - 1]) if index else 0
        name = os.fsdecode(self._names[start : self._ends[index]].tobytes())
        file = os.path.join(self._folder, name)
        label = int(np.searchsorted(self._class_ends, index, side="right"))
        return decode(file, file, self._exif), label

    def __str__(self) -> str:
        """Dataset and split, as messages name them."""
        return f"dataset `{self.name}`, split `{self.split}`"


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and _seen(entry.name))


def _seen(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _listed(split: str, class_name: str) -> tuple[list[str], list[str]]:
    """`_files`, tried again after a while where the file system has a passing problem."""
    try:
        return retrying(lambda: _files(split, class_name))
    except OSError as error:
        kind = Lost if is_passing(error) else InputError
        raise kind(f"{error.filename} cannot be listed: {error.strerror}") from error


def _files(split: str, class_name: str) -> tuple[list[str], list[str]]:
    """The images of a class and what else is there, by their paths in the folder of the split.

    Raises:
      OSError: a folder cannot be listed; its images must not be missing in silence.
    """

    def fail(error: OSError) -> None:
        raise error

    found, left_out = list[str](), list[str]()
    for folder, below, files in os.walk(os.path.join(split, class_name), onerror=fail):
        below[:] = filter(_seen, below)
        inside = os.path.relpath(folder, split)
        for file in filter(_seen, files):
            path = os.path.join(inside, file)
            (found if file.lower().endswith(IMAGE_EXTENSIONS) else left_out).append(path)
    return found, left_out


def _notes(what: str, left_out: list[str]) -> tuple[str, ...]:
    if not left_out:
        return ()
    kinds = collections.Counter(os.path.splitext(name)[1].lower() or "none" for name in left_out)
    counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    named = ", ".join(sorted(left_out)[:_NAMED]) + (", ..." if len(left_out) > _NAMED else "")
    return (
        f"{what}: {len(left_out)} files left out, which do not end in {' '.join(IMAGE_EXTENSIONS)}"
        f" (endings: {counts}): {named}",
    )
