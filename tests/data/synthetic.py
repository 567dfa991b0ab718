"""Sources and datasets to test with. Light to import: Grain's worker processes import it too."""

import contextlib
import dataclasses
import sys

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from convnext_jax.data.pipeline import Passes


@dataclasses.dataclass(frozen=True)
class Numbered:
    """`length` grey images of 8x8 pixels; the label of each is its index."""

    length: int

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        assert 0 <= index < self.length
        return Image.new("RGB", (8, 8), (index % 256,) * 3), index


class Pixel:
    """Makes rows of images of 1x1 pixels."""

    blank = {"image": np.zeros((1, 1, 3), np.uint8), "label": np.int32(0)}

    def __call__(self, example, rng=None):
        return {"image": self.pixel(rng), "label": np.int32(example[1])}


class Noise(Pixel):
    """Shows what the generator gives."""

    def pixel(self, rng):
        return rng.integers(0, 256, size=(1, 1, 3), dtype=np.uint8)


def eval_batches(source, examples, **options):
    """The batches of one pass over a split."""
    with contextlib.closing(Passes(source, examples, **options)) as passes:
        yield from passes()


class Imported(Pixel):
    """Shows which libraries its process uses."""

    def pixel(self, rng):
        bridge = sys.modules.get("jax._src.xla_bridge")
        used = bridge is not None and bridge.backends_are_initialized()
        return np.uint8([[["tensorflow" in sys.modules, used, "torch" in sys.modules]]])


class Odd(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset of the given examples, as they are."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, examples, features, data_dir):
        self.examples = examples
        self.features = features
        super().__init__(data_dir=data_dir)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.features)
        )

    def _split_generators(self, dl_manager):
        return {"train": enumerate(self.examples)}

    def _generate_examples(self):
        raise AssertionError


def features():
    """The features of `odd` where a test gives no others."""
    return {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=3),
        "file_name": tfds.features.Text(),
    }


def write_odd(data_dir, examples, num_shards=None, **others):
    """Writes the dataset `odd`. Features that are not given: `image`, `label` (3), `file_name`."""
    Odd(examples, others or features(), data_dir).download_and_prepare(
        file_format="array_record",
        download_config=tfds.download.DownloadConfig(num_shards=num_shards),
    )
