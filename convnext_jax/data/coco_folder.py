"""A user's own objects: a file of annotations in COCO's format, and a folder of images."""

import collections
import json
import os
from pathlib import Path

import numpy as np

from convnext_jax.data import folder
from convnext_jax.data.coco_json import drawn, read_coco
from convnext_jax.data.decode import decode, one_line
from convnext_jax.data.instances import Example, Objects, check_index, check_size
from convnext_jax.data.listing import Names, answered, listed
from convnext_jax.data.parts import part_of
from convnext_jax.errors import InputError

# Files that a message names.
_NAMED = 3


class CocoFolder:
    """The images that a file of annotations lists, in its order. Masks are drawn as they are read.

    All annotations are held in memory, as text, and passed to each worker.

    Attributes: as `instances.ObjectSource`; `name` is `folder`, and a label is a category's place
      in the file.
    """

    num_files = 0

    def __init__(self, annotations: Path, root: Path, split: str, exif: bool = False):
        """Reads the annotations and lists the images; opens none.

        Args:
          annotations: file in COCO's format.
          root: folder of the images: the names in the file start from the folder in it that is
            called as the split is, or where there is none such with the first image, from itself.
          split: such as `train`; or a part, such as `train[:80%]` (`data.parts`), which is a part
            of the images that the file lists.
          exif: annotations are of images that are turned as their EXIF orientation says.

        Raises:
          InputError: the file cannot be used, as `coco_json.read_coco`; an image is missing; or
            the part has none.
          Lost: the file system does not answer.
        """
        self.name = folder.NAME
        self.split = split
        self._exif = exif
        self._annotations_file = str(annotations)
        try:
            content = answered(annotations.read_bytes)
        except OSError as error:
            raise InputError(
                f"{annotations} must be a file of annotations in COCO's format: {one_line(error)}"
            ) from error
        found = read_coco(content, self._annotations_file)
        self.class_names, self.category_ids = found.class_names, found.category_ids
        self.num_classes = len(self.class_names)
        files = [os.path.normpath(name) for name in found.file_names]
        absolute = next(filter(os.path.isabs, files), None)
        if absolute is not None:
            raise InputError(
                f"`file_name` (={absolute}) of an image in {annotations} must be relative to the"
                f" folder of the images"
            )
        part = part_of(split, root)
        self._images = _images_folder(root, part.folder, files)
        _check_there(self._images, files, self._annotations_file)
        places = _chosen(files, part.of(files))
        if not places:
            raise InputError(f"{self} must have images, and has none of {len(files)}")
        self.sizes, self.counts = found.sizes[places], found.counts[places].astype(np.int32)
        self.notes = found.notes
        self._ids = np.array(found.image_ids, np.int64)[places]
        self._files = Names([os.fsencode(files[place]) for place in places])
        # In two arrays, which are pickled at once; lists of lists would take seconds a worker.
        self._texts = Names([json.dumps(found.annotations[place]).encode() for place in places])

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes one image, and draws the masks of its objects.

        Args:
          index: 0..len-1.

        Raises:
          IndexError: there is no such index.
          InputError: the image cannot be decoded, or is of another size than the file says.
        """
        objects = self.objects(index)
        path = self.path_of(index)
        image = decode(path, path, self._exif)
        check_size(image, objects, path, self._exif)
        return image, objects

    def objects(self, index: int) -> Objects:
        """The objects of an image, which is not read."""
        check_index(index, len(self))
        height, width = self.sizes[index].tolist()
        return drawn(json.loads(self._texts[index]), height, width, int(self._ids[index]), index)

    def path_of(self, index: int) -> str:
        """The file of an image, by its index."""
        return os.path.join(self._images, self._files[index])

    def __str__(self) -> str:
        """Dataset, split and file, as messages name them."""
        return f"dataset `{self.name}` of {self._annotations_file}, split `{self.split}`"


def _images_folder(root: Path, split: str, files: list[str]) -> str:
    inside = root / split
    return str(inside if (inside / files[0]).is_file() else root)


def _check_there(folder: str, files: list[str], annotations: str) -> None:
    """Raises InputError unless all files are in the folder, each listed once."""
    if len(set(files)) < len(files):
        twice = collections.Counter(files).most_common(1)[0][0]
        raise InputError(f"{annotations} must list each image once, and lists {twice} again")
    there = {os.path.normpath(path) for path in listed(folder, ".", ("",))[0]}
    missing = [file for file in files if file not in there]
    # Names may lead out of the folder, or into what listing leaves out.
    missing = [file for file in missing if not os.path.isfile(os.path.join(folder, file))]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        raise InputError(
            f"{folder} must have the images that {annotations} lists, and {len(missing)} of"
            f" {len(files)} are missing: {named}"
        )


def _chosen(files: list[str], chosen: list[str]) -> list[int]:
    """The places of some of the files, in order."""
    kept = set(chosen)
    return [place for place, file in enumerate(files) if file in kept]
