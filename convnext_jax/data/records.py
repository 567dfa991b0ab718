"""Records of a dataset that TFDS prepared, addressed by index.

Reading goes through `tfds.data_source` over array_record files and does not import TensorFlow;
images come encoded, as they are stored.
"""

import abc
import functools
import threading
from typing import Any

import tensorflow_datasets as tfds

from convnext_jax.data.decode import one_line
from convnext_jax.data.prepared import wrong_format
from convnext_jax.errors import InputError
from convnext_jax.retry import is_passing

_ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD
# Features by which datasets name the file that an example came from.
_FILE_NAME_FEATURES = ("file_name", "filename", "image_id", "id", "index")


class Records(abc.ABC):
    """A split of a prepared dataset; what kinds of sources have in common.

    Its files are opened at the first read.

    Attributes:
      name: dataset name, as given.
      split: split, as given, such as `train` or `train[:90%]`.
      num_files: how many files stay open in a process that has read from all of them.
    """

    # A feature that every record has: one without it comes from a file that was cut short.
    _label_key: str

    def __init__(self, builder_dir: str, name: str, split: str, exif: bool = False):
        """Opens the prepared dataset in `builder_dir`, a directory that ends in a version.

        With `exif` its images are turned as their EXIF orientation says.

        Raises:
          InputError: the dataset is not stored as array_record or lacks what is read of it, or the
            split does not exist.
        """
        self.name = name
        self.split = split
        self._exif = exif
        self._builder_dir = builder_dir
        builder: Any = tfds.builder_from_directory(builder_dir)
        if _ARRAY_RECORD not in builder.info.available_file_formats():
            raise InputError(wrong_format(name, builder))
        self._choose(builder.info)
        features = top_features(builder.info)
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

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._records)

    def __str__(self) -> str:
        """Dataset and split, as messages name them."""
        return f"dataset `{self.name}`, split `{self.split}`"

    @abc.abstractmethod
    def _choose(self, info: tfds.core.DatasetInfo) -> None:
        """Takes what a kind of source needs from the description of the dataset."""

    def _record(self, index: int) -> dict[str, Any]:
        """Reads a record.

        Raises:
          IndexError: there is no such index.
          InputError: the record cannot be read.
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
        return record

    def _named(self, index: int, record: dict[str, Any]) -> str:
        """What messages call a record, with the file that it came from."""
        if self._file_key is None:
            return f"record {index} of {self}"
        value = record[self._file_key]
        file = value.decode(errors="replace") if isinstance(value, bytes) else value
        return f"record {index} of {self} ({file})"

    def _reopen(self, failed: Any) -> None:
        """Takes new readers for the files: one that has failed once fails ever after."""
        with self._lock:
            if self._records is failed:  # no other thread was first
                self._records = self._open()


def top_features(info: tfds.core.DatasetInfo) -> dict[str, Any]:
    """The features of a dataset by name, those inside of others left out."""
    features = info.features
    # Sorted, as the files hold them in no order.
    return (
        dict(sorted(features.items())) if isinstance(features, tfds.features.FeaturesDict) else {}
    )


def listed_features(info: tfds.core.DatasetInfo) -> str:
    """The features of a dataset with their types, as messages list them."""
    return ", ".join(f"{key} ({type(f).__name__})" for key, f in top_features(info).items())
