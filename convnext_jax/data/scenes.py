"""Scenes to segment without a download: scikit-learn's digits on its photographs, as TFDS dataset.

Real scans on real photographs, but scenes that nobody has seen: to train on them shows that
everything works, on a processor and in minutes, and says nothing about other data.
"""

import io
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from convnext_jax.data import digits
from convnext_jax.data.embedded import write_unless_there
from convnext_jax.data.mask_metadata import MaskMetadata
from convnext_jax.data.scene_drawing import SIZE, Scene, draw_scene

NAME = "digit_scenes"
CLASSES = ("background", *map(str, range(10)))
# Scenes of each split; its place here seeds them.
_SPLITS = {"train": 4_000, "test": 200}
# Of each photograph these columns are the test scenes', and what is left and right of them the
# training scenes': both have some of the tower, the flower, the sky and the leaves.
_TEST_COLUMNS = (320, 480)


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """Scenes with 1 to 4 digits each, seldom 5, their masks and boxes; splits `train` and `test`.

    They are always the same. The splits share neither a scan nor a pixel of a photograph: scans
    are those of the splits of `digits`, and photographs are cut into parts.
    """

    VERSION = tfds.core.Version("2.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        # Not `dataset_info_from_configs`: that looks for metadata files beside this module.
        shape = (SIZE, SIZE, 1)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits on photographs, both of scikit-learn.",
            homepage="https://scikit-learn.org/stable/datasets.html",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                    "label": tfds.features.LabeledImage(
                        labels=list(CLASSES), shape=shape, encoding_format="png"
                    ),
                    "instances": tfds.features.Image(
                        shape=shape, encoding_format="png", doc="i + 1 where the i-th object is"
                    ),
                    "objects": tfds.features.Sequence(
                        {
                            "bbox": tfds.features.BBoxFeature(),
                            "label": tfds.features.ClassLabel(names=list(CLASSES[1:])),
                        }
                    ),
                    "index": tfds.features.Scalar(np.int64, doc="of the scene in its split"),
                }
            ),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        metadata = MaskMetadata(first_label=0, ignored=None)
        for split in _SPLITS:
            metadata.see(split, SIZE, SIZE)
        metadata.store(self.info)
        return {split: self._generate_examples(split) for split in _SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, scene in enumerate(draw_split(split)):
            yield (
                index,
                {
                    "image": _png(scene.image),
                    "label": _png(scene.label),
                    "instances": _png(scene.instances),
                    "objects": [
                        {"bbox": tfds.features.BBox(*(side / SIZE for side in box)), "label": digit}
                        for box, digit in zip(scene.boxes, scene.digits, strict=True)
                    ],
                    "index": index,
                },
            )


def draw_split(split: str) -> Iterator[Scene]:
    """Draws all scenes of a split, `train` or `test`, in the order of their indices."""
    import sklearn.datasets

    rows = digits.split_rows()[split]
    scans, labels = (array[rows] for array in digits.scans())
    first, last = _TEST_COLUMNS
    parts = {"train": (slice(0, first), slice(last, None)), "test": (slice(first, last),)}
    photographs = [
        Image.fromarray(np.ascontiguousarray(photograph[:, columns]))
        for photograph in sklearn.datasets.load_sample_images().images
        for columns in parts[split]
    ]
    seed = list(_SPLITS).index(split)
    for index in range(_SPLITS[split]):
        rng = np.random.default_rng((seed, index))
        yield draw_scene(rng, photographs, scans, labels)


def ensure_prepared(data_dir: str | os.PathLike[str] | None = None) -> None:
    """Writes the scenes below `data_dir` unless they are there, as `embedded.write_unless_there`.

    Args:
      data_dir: root of prepared datasets; None is TFDS's default.

    Raises:
      InputError: `data_dir` cannot be written.
    """
    write_unless_there(DigitScenes(data_dir=data_dir), logging.getLogger(__name__))


def _png(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    # Twice as fast as the default, and 8 % larger.
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    file.seek(0)
    return file
