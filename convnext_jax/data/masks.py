"""Opens datasets of images with a label for each pixel, as examples addressed by index."""

import functools
import os
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from convnext_jax.data import folder, scenes
from convnext_jax.data.annotations import Labelling, decode_annotation, read_pair, size_of
from convnext_jax.data.histogram import label_notes
from convnext_jax.data.listing import answered
from convnext_jax.data.mask_folder import MaskFolder
from convnext_jax.data.mask_metadata import notes_of, stored_metadata
from convnext_jax.data.prepared import base_name, require_prepared
from convnext_jax.data.records import Records, listed_features, top_features
from convnext_jax.data.relabelled import RelabelledMasks
from convnext_jax.data.sources import folder_root
from convnext_jax.errors import InputError

# Threads that read records for their sizes.
_THREADS = 8


class MaskSource(Records):
    """A split of a prepared dataset with masks. Can be pickled; files are opened at the first read.

    Attributes:
      name: dataset name, as given.
      split: split, as given, such as `train` or `train[:90%]`.
      class_names: name of each class, by label.
      num_classes: how many classes there are, at most 255.
      num_files: how many files stay open in a process that has read from all of them.
      notes: sentences about the split and its labels, if there are any.
    """

    notes: tuple[str, ...]
    class_names: tuple[str, ...]
    num_classes: int

    def __init__(
        self,
        builder_dir: str,
        name: str,
        split: str,
        exif: bool = False,
        *,
        first_label: int = 0,
        ignored: int | None = None,
        class_names: Sequence[str] = (),
        histogram: bool = False,
    ):
        """Opens the prepared dataset in `builder_dir`, a directory that ends in a version.

        The other arguments are those of `open_masks`.

        Raises:
          InputError: as `open_masks`.
        """
        self._given = {
            "first_label": first_label,
            "ignored": ignored,
            "class_names": tuple(class_names),
        }
        super().__init__(builder_dir, name, split, exif)
        notes = notes_of(self._info)
        self.notes = tuple(f"{self}: {note}" for part, note in notes if part in self._parts)
        if histogram:
            self.notes += label_notes(
                str(self), len(self), self.class_names, self._labelling, self._annotation
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the place of the files, so that another process opens its own."""
        again = functools.partial(MaskSource, **self._given)
        return again, (self._builder_dir, self.name, self.split, self._exif)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Reads and decodes one example.

        Args:
          index: 0..len-1.

        Returns:
          The image in RGB, at its own size; and its labels, uint8 [H, W], 0..num_classes-1 or
          `IGNORED`.

        Raises:
          IndexError: there is no such index.
          InputError: the record or what it has cannot be used.
        """
        record = self._record(index)
        name = f"in {self._named(index, record)}"
        image, annotation = record[self._image_key], record[self._label_key]
        return read_pair(image, annotation, name, name, self._labelling, self._exif)

    @functools.cached_property
    def largest(self) -> tuple[int, int]:
        """Height and width that no mask exceeds.

        Our own datasets have it stored; of others every record is read once.

        Raises:
          InputError: a record cannot be read.
          Lost: the file system does not answer.
        """
        if self._stored is not None:
            sizes = [self._stored.largest[part] for part in self._parts]
        else:
            with futures.ThreadPoolExecutor(_THREADS) as threads:
                sizes = list(threads.map(self._size, range(len(self))))
        height, width = map(max, zip(*sizes, strict=True))
        # An image may be turned by a quarter.
        return (max(height, width),) * 2 if self._exif else (height, width)

    def _choose(self, info: tfds.core.DatasetInfo) -> None:
        self._image_key, self._label_key = _image_and_mask(self.name, info)
        self._stored = stored_metadata(info)
        self._info = info
        first_label, ignored, given_names = self._given.values()
        if self._stored is not None:
            own = self._stored.first_label, self._stored.ignored
            if (first_label, ignored) not in (own, (0, None)):
                raise InputError(
                    f"`first_label` (={first_label}) and `ignored` (={ignored}) must not be given"
                    f" for the dataset `{self.name}`, which has its own: {own[0]} and {own[1]}"
                )
            first_label, ignored = own
        feature = top_features(info)[self._label_key]
        named = isinstance(feature, tfds.features.LabeledImage) and bool(feature.num_classes)
        if named and given_names:
            raise InputError(
                f"`class_names` must not be given for the dataset `{self.name}`, whose"
                f" `{self._label_key}` names its classes itself"
            )
        if not named and not given_names:
            raise InputError(
                f"`class_names` must be given for the dataset `{self.name}`, whose"
                f" `{self._label_key}` does not name its classes: from that of value `first_label`"
                f" (={first_label}) on"
            )
        names = given_names or tuple(feature.names[first_label:])
        if not given_names and ignored == first_label + len(names) - 1:
            names = names[:-1]  # the last one is what is ignored
        self.class_names = names
        self.num_classes = len(names)
        self._labelling = Labelling(self.num_classes, first_label, ignored)

    @functools.cached_property
    def _parts(self) -> tuple[str, ...]:
        """The splits that this one is made of, without which parts of them."""
        instruction: Any = tfds.core.ReadInstruction.from_spec(self.split)
        return tuple({part.splitname: None for part in instruction.to_absolute(self._info.splits)})

    def _size(self, index: int) -> tuple[int, int]:
        record = answered(lambda: self._record(index))
        return size_of(record[self._label_key], f"in {self._named(index, record)}")

    def _annotation(self, index: int) -> tuple[Image.Image, str]:
        record = answered(lambda: self._record(index))
        name = f"in {self._named(index, record)}"
        return decode_annotation(record[self._label_key], name), name


# What `open_masks` gives: examples by index, with `class_names`.
MaskDataset = MaskSource | MaskFolder | RelabelledMasks


def open_masks(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    exif: bool = False,
    first_label: int = 0,
    ignored: int | None = None,
    class_names: Sequence[str] = (),
    histogram: bool = False,
) -> MaskDataset:
    """Opens a split of a dataset of images with masks.

    The `digit_scenes` are written first if they are not there; `folder` reads the pairs of files
    below `data_dir`; any other dataset must have been prepared with `python -m
    convnext_jax.data.prepare`. Values of annotations become labels: `ignored`
    becomes `IGNORED`, any other value v becomes v - `first_label`, which must be a class.

    Args:
      name: TFDS name: `name`, `name/config`, `name:version` or `name/config:version`; or `folder`.
      split: split or part of one in TFDS's notation, such as `train` or `train[:90%]`.
      data_dir: root of prepared datasets; None is TFDS's default, the environment variable
        TFDS_DATA_DIR or ~/tensorflow_datasets. Of a `folder`, its root.
      exif: turn images and their masks as the images' EXIF orientation says.
      first_label: value of the first class. Our own datasets know it.
      ignored: value of pixels that belong to no class; None: 255 in a `folder`, no value in other
        datasets. Our own know it.
      class_names: name of each class, for a dataset that has one image and one mask but no names.
      histogram: count the labels of up to 200 annotations, for `notes`.

    Raises:
      InputError: the dataset is unknown, not prepared, not stored as array_record or has no image
        and mask; the split does not exist; what is given does not fit the dataset; a folder cannot
        be used; or the scenes cannot be written.
      Lost: the file system does not answer.
    """
    if name == folder.NAME:
        if class_names:
            raise InputError(
                f"`class_names` must not be given for the dataset `{folder.NAME}`, whose file"
                f" classes.txt has them"
            )
        return MaskFolder(
            folder_root(data_dir),
            split,
            exif,
            first_label=first_label,
            ignored=ignored,
            histogram=histogram,
        )
    if base_name(name) == scenes.NAME:
        scenes.ensure_prepared(data_dir)
    builder = require_prepared(name, data_dir)
    return MaskSource(
        os.fspath(builder.data_dir),
        name,
        split,
        exif,
        first_label=first_label,
        ignored=ignored,
        class_names=class_names,
        histogram=histogram,
    )


def _image_and_mask(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """The features that hold the image and the mask, which must be the only ones."""
    flat = top_features(info)
    images = [key for key, f in flat.items() if isinstance(f, tfds.features.Image)]
    one_channel = [key for key in images if flat[key].shape[-1] == 1]
    labelled = [key for key in images if isinstance(flat[key], tfds.features.LabeledImage)]
    masks = labelled or one_channel
    # A grey image beside a mask with names has one channel, too.
    pictures = [key for key in images if key not in one_channel] or [
        key for key in images if key not in masks
    ]
    if len(masks) == 1 and len(pictures) == 1:
        return pictures[0], masks[0]
    raise InputError(
        f"dataset `{name}` must have one image, and one mask of one channel, to segment; its"
        f" features are {listed_features(info)}"
    )
