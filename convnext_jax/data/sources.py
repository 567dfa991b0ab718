"""Opens datasets that TFDS prepared, as examples addressed by index.

Reading goes through `tfds.data_source` over array_record files and does not import TensorFlow; the
images are decoded here, with PIL.
"""

import functools
import os
import threading
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import constants, read_only_builder

from convnext_jax.data import digits, folder, imagenet22k
from convnext_jax.data.decode import decode, one_line
from convnext_jax.data.folder import FolderSource
from convnext_jax.data.relabelled import Relabelled
from convnext_jax.errors import InputError, did_you_mean
from convnext_jax.retry import is_passing

_ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD
# Features by which datasets name the file that an example came from.
_FILE_NAME_FEATURES = ("file_name", "filename", "image_id", "id", "index")


class Source:
    """A split of a classification dataset. Can be pickled; the files are opened at the first read.

    Attributes:
      name: dataset name, as given.
      split: split, as given, such as `train` or `train[:90%]`.
      class_names: name of each class, by label.
      num_classes: how many classes there are.
      num_files: how many files stay open in a process that has read from all of them.
      notes: sentences about what is left out: none.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, builder_dir: str, name: str, split: str, exif: bool = False):
        """Opens the prepared dataset in `builder_dir`, a directory that ends in a version.

        With `exif` its images are turned as their EXIF orientation says.

        Raises:
          InputError: as `open_source`.
        """
        self.name = name
        self.split = split
        self._builder_dir = builder_dir
        self._exif = exif
        builder: Any = tfds.builder_from_directory(builder_dir)
        if _ARRAY_RECORD not in builder.info.available_file_formats():
            raise InputError(wrong_format(name, builder))
        features = _top_features(builder.info)
        self._image_key, self._label_key = _image_and_label(name, builder.info)
        self.class_names: tuple[str, ...] = tuple(features[self._label_key].names)
        self.num_classes = len(self.class_names)
        self._file_key = next((key for key in _FILE_NAME_FEATURES if key in features), None)
        encoded = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
        self._open = functools.partial(
            builder.as_data_source,
            split,
            decoders=dict.fromkeys(encoded, tfds.decode.SkipDecoding()),
            file_format=_ARRAY_RECORD,
        )
        self._lock = threading.Lock()
        try:
            self._records: Any = self._open()
        except ValueError as error:
            there = ", ".join(f"{key} ({s.num_examples})" for key, s in builder.info.splits.items())
            raise InputError(
                f"split `{split}` of dataset `{name}` must be one of {there}, or a range of"
                f" examples in one of them such as `train[:90%]`"
            ) from error
        self.num_files = len(builder.info.splits[split].file_instructions)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the place of the files, so that another process opens its own."""
        return Source, (self._builder_dir, self.name, self.split, self._exif)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Reads and decodes one example.

        Args:
          index: 0..len-1.

        Returns:
          The image in RGB, at its own size; and its label, 0..num_classes-1.

        Raises:
          IndexError: there is no such index.
          InputError: the record, its image or its label cannot be used.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"`index` (={index}) must be in 0..{len(self) - 1}")
        records = self._records
        try:
            record = records[index]
        except Exception as error:
            if is_passing(error):
                self._reopen(records)
            raise InputError(
                f"record {index} of {self} cannot be read: {one_line(error)}"
            ) from error
        if record[self._label_key] is None:  # what a file that was cut short has for records
            raise InputError(f"record {index} of {self} is empty: its file must be whole")
        label = int(record[self._label_key])
        if not 0 <= label < self.num_classes:
            raise InputError(
                f"record {index} of {self}{self._file_name(record)} has label {label}, which must"
                f" be in 0..{self.num_classes - 1}"
            )
        name = f"in record {index} of {self}{self._file_name(record)}"
        return decode(record[self._image_key], name, self._exif), label

    def __str__(self) -> str:
        """Dataset and split, as messages name them."""
        return f"dataset `{self.name}`, split `{self.split}`"

    def _reopen(self, failed: Any) -> None:
        """Takes new readers for the files: one that has failed once fails ever after."""
        with self._lock:
            if self._records is failed:  # no other thread was first
                self._records = self._open()

    def _file_name(self, record: dict[str, Any]) -> str:
        if self._file_key is None:
            return ""
        value = record[self._file_key]
        return f" ({value.decode(errors='replace') if isinstance(value, bytes) else value})"


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
        if data_dir is None:
            raise InputError(f"`data.dir` must be given for the dataset `{folder.NAME}`")
        return FolderSource(Path(data_dir).expanduser(), split, exif)
    if base_name(name) == digits.NAME:
        digits.ensure_prepared(data_dir)
    builder = find_prepared(name, data_dir)
    if builder is None:
        check_known(name)
        root = os.fspath(data_dir) if data_dir is not None else default_data_dir()
        raise InputError(
            f"dataset `{name}` is not prepared in {root}; prepare it with"
            f" `{prepare_command(name, root)}`"
        )
    return Source(os.fspath(builder.data_dir), name, split, exif)


def check_same_classes(training: Dataset, evaluation: Dataset) -> None:
    """Raises InputError unless labels mean the same classes in both splits."""
    if training.class_names == evaluation.class_names:
        return
    one, other = set(training.class_names), set(evaluation.class_names)
    parts = [
        f"only {source.split} has {', '.join(sorted(names))}"
        for source, names in ((training, one - other), (evaluation, other - one))
        if names
    ]
    raise InputError(
        f"the splits must have the same classes: `{training.split}` has {len(one)} and"
        f" `{evaluation.split}` {len(other)}; {'; '.join(parts)}"
    )


def find_prepared(
    name: str, data_dir: str | os.PathLike[str] | None
) -> tfds.core.DatasetBuilder | None:
    """The builder of a prepared dataset, made from its files, or None where there are none.

    Raises:
      InputError: `name` is not written as TFDS names are.
    """
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        return None
    except ValueError as error:
        raise InputError(
            f"dataset `{name}` must be written NAME, NAME/CONFIG, NAME:VERSION or"
            f" NAME/CONFIG:VERSION"
        ) from error


def check_known(name: str) -> None:
    """Raises InputError, with the closest names, unless `name` is a dataset that can be prepared.

    That is one of TFDS or of ours. A `folder` is read as it is.
    """
    base = base_name(name)
    if base == folder.NAME:
        raise InputError(
            f"dataset `{name}` cannot be prepared and has no versions: as `{folder.NAME}`, training"
            f" reads the images below `data.dir` as they are"
        )
    # Without community datasets, whose list would be fetched over the network.
    known = {*tfds.list_builders(with_community_datasets=False), digits.NAME, imagenet22k.NAME}
    if base in known:
        return
    hint = did_you_mean(base, known | {folder.NAME})
    raise InputError(
        f"dataset `{name}` must be `{digits.NAME}`, `{folder.NAME}`, `{imagenet22k.NAME}` or the"
        f" name of a TFDS dataset{hint}"
    )


def base_name(name: str) -> str:
    """The dataset name without its config and version."""
    return name.partition(":")[0].partition("/")[0]


def default_data_dir() -> str:
    """TFDS's default root of prepared datasets."""
    return os.path.expanduser(constants.DATA_DIR)


def data_dir_of(builder: tfds.core.DatasetBuilder) -> str:
    """The root below which `builder`'s prepared files lie."""
    directory = os.fspath(builder.data_dir).rstrip("/")
    # <root>/<name>[/<config>]/<version>
    return directory.removesuffix(builder.info.full_name).rstrip("/")


def wrong_format(name: str, builder: tfds.core.DatasetBuilder) -> str:
    """The sentence about a dataset that was prepared in a format without random access."""
    stored = builder.info.file_format
    return (
        f"dataset `{name}` in {builder.data_dir} is stored as {stored and stored.value} and must be"
        f" array_record; convert it with `{prepare_command(name, data_dir_of(builder))} --convert`"
    )


def prepare_command(name: str, data_dir: str) -> str:
    """The command that prepares `name` below `data_dir`."""
    return f"python -m convnext_jax.data.prepare {name} --data_dir={data_dir}"


def _image_and_label(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """The features that hold the image and the class: the supervised ones, or the only ones."""
    flat = _top_features(info)
    images = [key for key, f in flat.items() if isinstance(f, tfds.features.Image)]
    labels = [key for key, f in flat.items() if isinstance(f, tfds.features.ClassLabel)]
    supervised = info.supervised_keys or ()
    if len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        return supervised[0], supervised[1]
    if len(images) == 1 and len(labels) == 1:
        return images[0], labels[0]
    raise InputError(
        f"dataset `{name}` must have one image and one class label to classify; its features are"
        f" {', '.join(f'{key} ({type(f).__name__})' for key, f in flat.items())}"
    )


def _top_features(info: tfds.core.DatasetInfo) -> dict[str, Any]:
    features = info.features
    # Sorted, as the files hold them in no order.
    return (
        dict(sorted(features.items())) if isinstance(features, tfds.features.FeaturesDict) else {}
    )
