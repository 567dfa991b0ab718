"""Opens datasets of images with boxes and masks of objects, as examples addressed by index."""

import functools
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from convnext_jax.data import coco, coco_tools, folder, scenes
from convnext_jax.data.coco_classes import CATEGORY_IDS, CLASSES
from convnext_jax.data.coco_folder import CocoFolder
from convnext_jax.data.coco_json import drawn
from convnext_jax.data.decode import decode, one_line
from convnext_jax.data.instances import (
    Example,
    ForTraining,
    Objects,
    ObjectSource,
    check_size,
)
from convnext_jax.data.object_metadata import object_notes, stored_objects
from convnext_jax.data.prepared import base_name, check_known, require_prepared
from convnext_jax.data.records import Records
from convnext_jax.data.sources import folder_root
from convnext_jax.errors import InputError


class CocoRecords(Records):
    """A split of COCO as `data.coco` prepares it; attributes are those of `ObjectSource`.

    Its files are opened at the first read.
    """

    class_names, category_ids = CLASSES, CATEGORY_IDS
    num_classes = len(CLASSES)

    def __init__(self, builder_dir: str, name: str, split: str, exif: bool = False):
        """Opens the prepared dataset in `builder_dir`, a directory that ends in a version.

        Raises:
          InputError: as `open_objects`.
        """
        if exif:
            raise InputError(
                f"`exif` (={exif}) must be False for the dataset `{name}`: COCO's annotations"
                f" are of images as they are stored"
            )
        super().__init__(builder_dir, name, split)
        self.sizes, self.counts = map(self._of_split, (self._stored.sizes, self._stored.counts))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the place of the files, so that another process opens its own."""
        return type(self), (self._builder_dir, self.name, self.split)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes one image, with its objects.

        Args:
          index: 0..len-1.

        Raises:
          IndexError: there is no such index.
          InputError: the record or what it has cannot be used.
        """
        record = self._record(index)
        name = f"in {self._named(index, record)}"
        objects = self._objects(record, index)
        image = decode(record["image"], name)
        check_size(image, objects, name, exif=False)
        return image, objects

    def objects(self, index: int) -> Objects:
        """The objects of an image, which is read and not decoded."""
        return self._objects(self._record(index), index)

    def _choose(self, info: tfds.core.DatasetInfo) -> None:
        self._label_key = "image_id"
        stored = stored_objects(info)
        assert stored is not None  # `data.coco` has written it
        self._stored = stored
        instruction: Any = tfds.core.ReadInstruction.from_spec(self.split)
        try:
            self._parts = instruction.to_absolute(info.splits)
        except ValueError:
            self._parts = []  # `Records` says what splits there are
        names = {part.splitname for part in self._parts}
        self.notes = tuple(f"{self}: {note}" for part, note in object_notes(info) if part in names)

    def _of_split(self, by_split: dict[str, list[list[int]]]) -> np.ndarray:
        rows = [row for p in self._parts for row in by_split[p.splitname][p.from_ : p.to]]
        return np.array(rows, np.int32).reshape(-1, 2)

    def _objects(self, record: dict[str, Any], index: int) -> Objects:
        height, width, image_id = (int(record[key]) for key in ("height", "width", "image_id"))
        return drawn(json.loads(record["objects"]), height, width, image_id, index)


class SceneRecords(Records):
    """A split of `digit_scenes` with its digits; attributes are those of `ObjectSource`.

    Classes are the ten digits, by label, and numbered from 1 in COCO's way.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the place of the files, so that another process opens its own."""
        return SceneRecords, (self._builder_dir, self.name, self.split, self._exif)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes one scene, with its digits; raises as `CocoRecords`."""
        record = self._record(index)
        image = decode(record["image"], f"in {self._named(index, record)}")
        return image, self._objects(record, index)

    def objects(self, index: int) -> Objects:
        """The digits of a scene, whose image is not decoded."""
        return self._objects(self._record(index), index)

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each scene, int32 [N, 2]."""
        return np.full((len(self), 2), scenes.SIZE, np.int32)

    @property
    def counts(self) -> np.ndarray:
        """Of each scene its digits, and its crowds, of which there are none: int32 [N, 2]."""
        return self._counts

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        """Reads every scene once."""
        digits = [len(self._record(index)["objects"]["label"]) for index in range(len(self))]
        return np.array([(count, 0) for count in digits], np.int32)

    def _choose(self, info: tfds.core.DatasetInfo) -> None:
        self._label_key = "index"
        self.notes = ()
        features: Any = info.features
        self.class_names = tuple(features["objects"]["label"].names)
        self.num_classes = len(self.class_names)
        self.category_ids = tuple(range(1, self.num_classes + 1))

    def _objects(self, record: dict[str, Any], index: int) -> Objects:
        try:
            with Image.open(io.BytesIO(record["instances"])) as image:
                instances = np.asarray(image)
        except Exception as error:  # PIL's readers raise nearly anything on damaged data.
            name = self._named(index, record)
            raise InputError(
                f"the instances in {name} cannot be decoded: {one_line(error)}"
            ) from error
        labels = np.asarray(record["objects"]["label"], np.int32)
        masks = tuple(coco_tools.encode(instances == i) for i in range(1, len(labels) + 1))
        # TFDS has shares of the image, rounded: top, left, bottom, right.
        sides = np.round(np.asarray(record["objects"]["bbox"], np.float64) * scenes.SIZE)
        top, left, bottom, right = sides.reshape(-1, 4).T
        return Objects(
            bbox=np.stack([left, top, right - left, bottom - top], 1),
            labels=labels,
            is_crowd=np.zeros(len(labels), bool),
            area=np.array([coco_tools.area(mask) for mask in masks], np.float64),
            masks=masks,
            height=scenes.SIZE,
            width=scenes.SIZE,
            image_id=int(record["index"]),
            index=index,
        )


def open_objects(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    training: bool,
    annotations: str | os.PathLike[str] | None = None,
    exif: bool = False,
    keep_empty: bool = False,
) -> ObjectSource:
    """Opens a split of a dataset of images with boxes and masks of objects.

    The `digit_scenes` are written first if they are not there; `folder` reads the images below
    `data_dir` that `annotations` lists, a file in COCO's format; `coco2017` must have been prepared
    with `python -m convnext_jax.data.prepare`.

    Args:
      name: `coco2017`, `folder` or `digit_scenes`; the first and the last maybe with a version.
      split: split or part of one in TFDS's notation, such as `train` or `train[:90%]`. Of a
        `folder`, also that of its folders which has the images, if one has.
      data_dir: root of prepared datasets; None is TFDS's default, the environment variable
        TFDS_DATA_DIR or ~/tensorflow_datasets. Of a `folder`, its root.
      training: only images and objects to train on (`instances.ForTraining`); else all of them.
      annotations: of a `folder`, its file of annotations.
      exif: turn images as their EXIF orientation says, where annotations were made for that.
      keep_empty: train on images without objects, too; the reference does not.

    Raises:
      InputError: the dataset is unknown or not prepared; the split does not exist; what is given
        does not fit the dataset; annotations or images cannot be used; there is nothing to train
        on; or the scenes cannot be written.
      Lost: the file system does not answer.
    """
    if (annotations is not None) != (name == folder.NAME):
        raise InputError(
            f"`annotations` (={annotations}) must be a file in COCO's format for the dataset"
            f" `{folder.NAME}`, and not be given for others; the dataset is `{name}`"
        )
    if annotations is not None:
        root = folder_root(data_dir)
        source = CocoFolder(Path(annotations).expanduser(), root, split, exif)
    else:
        kinds = {coco.NAME: CocoRecords, scenes.NAME: SceneRecords}
        kind = kinds.get(base_name(name))
        if kind is None:
            check_known(name)
            raise InputError(
                f"dataset `{name}` must be one of {', '.join(sorted((*kinds, folder.NAME)))}, which"
                f" have boxes and masks of objects"
            )
        if kind is SceneRecords:
            scenes.ensure_prepared(data_dir)
        builder = require_prepared(name, data_dir)
        source = kind(os.fspath(builder.data_dir), name, split, exif)
    return ForTraining(source, keep_empty=keep_empty) if training else source
