"""Opens datasets of images with a class each, as examples addressed by index."""

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from convnext_jax.data import digits, folder
from convnext_jax.data.decode import decode
from convnext_jax.data.folder import FolderSource
from convnext_jax.data.imagenet_subsets import LABEL_LISTS, SUBSETS
from convnext_jax.data.prepared import base_name, require_prepared
from convnext_jax.data.records import Records, listed_features, top_features
from convnext_jax.data.relabelled import Relabelled
from convnext_jax.errors import InputError


class Source(Records):
    """A split of a classification dataset. Can be pickled; the files are opened at the first read.

    Attributes:
      name: dataset name, as given.
      split: split, as given, such as `train` or `train[:90%]`.
      class_names: name of each class, by label.
      num_classes: how many classes there are.
      num_files: how many files stay open in a process that has read from all of them.
      notes: sentences about what is left out: none.
      among: the labels that examples can have, if not all: whose likeliest counts.
      lists: an example has a tuple of labels, maybe an empty one, and not one.
    """

    notes: tuple[str, ...] = ()
    among: tuple[int, ...] | None
    lists: bool
    class_names: tuple[str, ...]
    num_classes: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the place of the files, so that another process opens its own."""
        return Source, (self._builder_dir, self.name, self.split, self._exif)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        """Reads and decodes one example.

        Args:
          index: 0..len-1.

        Returns:
          The image in RGB, at its own size; and its label, 0..num_classes-1, or a tuple of them.

        Raises:
          IndexError: there is no such index.
          InputError: the record, its image or its label cannot be used.
        """
        record = self._record(index)
        labels = tuple(map(int, np.atleast_1d(record[self._label_key])))
        for label in labels:
            if not 0 <= label < self.num_classes:
                raise InputError(
                    f"{self._named(index, record)} has label {label}, which must be in"
                    f" 0..{self.num_classes - 1}"
                )
        name = f"in {self._named(index, record)}"
        image = decode(record[self._image_key], name, self._exif)
        return image, labels if self.lists else labels[0]

    def _choose(self, info: tfds.core.DatasetInfo) -> None:
        self._image_key, self._label_key = _image_and_label(self.name, info)
        feature = top_features(info)[self._label_key]
        self.lists = _has_classes(feature)
        self.class_names = tuple((feature.feature if self.lists else feature).names)
        self.num_classes = len(self.class_names)
        self.among = SUBSETS.get(base_name(self.name))


# What `open_source` gives: examples by index, with `class_names`.
Dataset = Source | FolderSource | Relabelled


def open_source(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    exif: bool = False,
) -> Dataset:
    """Opens a split of a classification dataset.

    The `digits` are written first if they are not there; `folder` reads the images below
    `data_dir`; any other dataset must have been prepared with `python -m
    convnext_jax.data.prepare`.

    Args:
      name: TFDS name: `name`, `name/config`, `name:version` or `name/config:version`; or `folder`.
      split: split or part of one in TFDS's notation, such as `train` or `train[:90%]`.
      data_dir: root of prepared datasets; None is TFDS's default, the environment variable
        TFDS_DATA_DIR or ~/tensorflow_datasets.
      exif: turn images as their EXIF orientation says; the reference does not.

    Raises:
      InputError: the dataset is unknown, not prepared, not stored as array_record or has no image
        and label; the split does not exist; or the digits cannot be written.
    """
    if name == folder.NAME:
        return FolderSource(folder_root(data_dir), split, exif)
    if base_name(name) == digits.NAME:
        digits.ensure_prepared(data_dir)
    builder = require_prepared(name, data_dir)
    return Source(os.fspath(builder.data_dir), name, split, exif)


def folder_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """The root of a user's own folders.

    Raises:
      InputError: none is given; there is no default.
    """
    if data_dir is None:
        raise InputError(f"`data.dir` must be given for the dataset `{folder.NAME}`")
    return Path(data_dir).expanduser()


def require_one_label(source: Any) -> None:
    """Raises InputError if examples have lists of labels, which only an evaluation takes."""
    if getattr(source, "lists", False):
        raise InputError(f"{source} must have one class for each image, and has a list of them")


class HasClasses(Protocol):
    """What is asked of a source here."""

    @property
    def split(self) -> str:
        """Name of the split."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, by label."""
        ...


def check_same_classes(training: HasClasses, evaluation: HasClasses) -> None:
    """Raises InputError unless labels mean the same classes in both splits."""
    if training.class_names == evaluation.class_names:
        return
    one, other = set(training.class_names), set(evaluation.class_names)
    parts = [
        f"only {source.split} has {', '.join(sorted(names))}"
        for source, names in ((training, one - other), (evaluation, other - one))
        if names
    ]
    if one == other:
        raise InputError(
            f"the splits must have their classes in the same order: `{training.split}` has"
            f" {', '.join(training.class_names)} and `{evaluation.split}`"
            f" {', '.join(evaluation.class_names)}"
        )
    raise InputError(
        f"the splits must have the same classes: `{training.split}` has {len(one)} and"
        f" `{evaluation.split}` {len(other)}; {'; '.join(parts)}"
    )


def _has_classes(feature: Any) -> bool:
    """Whether a feature is a list of classes."""
    inner = getattr(feature, "feature", None)
    return isinstance(feature, tfds.features.Sequence) and isinstance(
        inner, tfds.features.ClassLabel
    )


def _image_and_label(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """The features that hold the image and the class: the supervised ones, or the only ones.

    Of a dataset that is known for its lists of classes, those.
    """
    flat = top_features(info)
    images = [key for key, f in flat.items() if isinstance(f, tfds.features.Image)]
    labels = [key for key, f in flat.items() if isinstance(f, tfds.features.ClassLabel)]
    several = [key for key, f in flat.items() if _has_classes(f)]
    if len(images) == 1 and LABEL_LISTS.get(base_name(name)) in several:
        return images[0], LABEL_LISTS[base_name(name)]
    if several:
        raise InputError(
            f"dataset `{name}` must have one class for each image: `{several[0]}` has several, and"
            f" nothing else of it ({', '.join(labels)}) may be scored in their place"
        )
    supervised = info.supervised_keys or ()
    if len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        return supervised[0], supervised[1]
    if len(images) == 1 and len(labels) == 1:
        return images[0], labels[0]
    raise InputError(
        f"dataset `{name}` must have one image and one class label to classify; its features are"
        f" {listed_features(info)}"
    )
