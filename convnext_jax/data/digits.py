"""The embedded dataset: scikit-learn's handwritten digits, written as a TFDS dataset.

1,797 real scans of 8x8 pixels that come inside the scikit-learn package, so training works without
a download and without a network, along the same path as ImageNet.
"""

import io
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from convnext_jax.data.embedded import write_unless_there

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
        return {split: self._generate_examples(rows) for split, rows in split_rows().items()}

    def _generate_examples(self, rows: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        pixels, labels = scans()
        for row in map(int, rows):
            png = io.BytesIO()
            Image.fromarray(pixels[row]).save(png, "PNG")
            png.seek(0)
            yield row, {"image": png, "label": int(labels[row]), "index": row}


def ensure_prepared(data_dir: str | os.PathLike[str] | None = None) -> None:
    """Writes the digits below `data_dir` unless they are there, as `embedded.write_unless_there`.

    Args:
      data_dir: root of prepared datasets; None is TFDS's default.

    Raises:
      InputError: `data_dir` cannot be written.
    """
    write_unless_there(Digits(data_dir=data_dir), logging.getLogger(__name__))


def split_rows() -> dict[str, np.ndarray]:
    """Rows of scikit-learn's arrays that belong to each split, `train` and `test`."""
    import sklearn.datasets
    import sklearn.model_selection

    _, labels = sklearn.datasets.load_digits(return_X_y=True)
    train, test = sklearn.model_selection.train_test_split(
        np.arange(len(labels)), test_size=_TEST_FRACTION, stratify=labels, random_state=0
    )
    return {"train": np.asarray(train), "test": np.asarray(test)}


def scans() -> tuple[np.ndarray, np.ndarray]:
    """All of scikit-learn's scans, uint8 [1797, 8, 8] of 0..255, and their digits, [1797]."""
    import sklearn.datasets

    values, labels = sklearn.datasets.load_digits(return_X_y=True)
    pixels = np.round(np.asarray(values) * (255 / _LARGEST_VALUE)).astype(np.uint8)
    return pixels.reshape(-1, _IMAGE_SIZE, _IMAGE_SIZE), np.asarray(labels)
