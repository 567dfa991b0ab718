"""The embedded dataset: scikit-learn's handwritten digits, written as a TFDS dataset.

1,797 real scans of 8x8 pixels that come inside the scikit-learn package, so training works without
a download and without a network, along the same path as ImageNet.
"""

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from convnext_jax.errors import InputError

NAME = "digits"
_IMAGE_SIZE = 8
_TEST_FRACTION = 0.2
_LARGEST_VALUE = 16  # of a scikit-learn pixel; ours go to 255


class Digits(tfds.core.GeneratorBasedBuilder):
    """Scans as grey PNGs of 8x8 pixels, classes "0".."9", splits train (1437) and test (360).

    The split is stratified and fixed: scikit-learn's `train_test_split` with `random_state=0`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        # Not `dataset_info_from_configs`: that looks for metadata files beside this module.
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8x8 pixels, from scikit-learn's `load_digits`.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(_IMAGE_SIZE, _IMAGE_SIZE, 1), encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(names=[str(i) for i in range(10)]),
                    "index": tfds.features.Scalar(np.int64, doc="row in scikit-learn's arrays"),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        import sklearn.datasets
        import sklearn.model_selection

        _, labels = sklearn.datasets.load_digits(return_X_y=True)
        train, test = sklearn.model_selection.train_test_split(
            np.arange(len(labels)), test_size=_TEST_FRACTION, stratify=labels, random_state=0
        )
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, rows: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        import sklearn.datasets

        values, labels = sklearn.datasets.load_digits(return_X_y=True)
        pixels = np.round(np.asarray(values) * (255 / _LARGEST_VALUE)).astype(np.uint8)
        for row in map(int, rows):
            png = io.BytesIO()
            Image.fromarray(pixels[row].reshape(_IMAGE_SIZE, _IMAGE_SIZE)).save(png, "PNG")
            png.seek(0)
            yield row, {"image": png, "label": int(labels[row]), "index": row}


def ensure_prepared(data_dir: str | os.PathLike[str] | None = None) -> None:
    """Writes the digits below `data_dir` unless they are there.

    Several processes may do so at once, and one may be killed: each writes a directory of its own
    and renames it when complete; the first wins and the others use what it wrote.

    Args:
      data_dir: root of prepared datasets; None is TFDS's default.

    Raises:
      InputError: `data_dir` cannot be written.
    """
    builder = Digits(data_dir=data_dir)
    if _is_complete(builder):
        return
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    # TFDS prints its progress; for 1,797 examples one log line is enough.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            builder.download_and_prepare(file_format="array_record", download_config=config)
        except OSError as error:
            if not _is_complete(builder):
                raise InputError(
                    f"`data_dir` (={builder.data_dir}) must be a directory that can be written,"
                    f" to hold the `{NAME}` dataset: {error.strerror or error}"
                ) from error
            return  # another process was first
    logging.getLogger(__name__).info("wrote the `%s` dataset to %s", NAME, builder.data_dir)


def _is_complete(builder: Digits) -> bool:
    # The builder's own `is_prepared` logs a warning where this is False.
    return (builder.data_path / "dataset_info.json").exists()
