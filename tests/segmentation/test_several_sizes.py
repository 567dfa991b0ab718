"""Images are put into buckets of sizes, each into one."""

import numpy as np
import pytest
from PIL import Image

from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription, ModelSpec
from convnext_jax.models.variants import Preprocessing
from convnext_jax.segmentation import several_sizes

SIDE = 64
MODEL = ModelDescription(
    ModelSpec("upernet_convnext_atto", 3), Preprocessing(input_size=SIDE, crop_fraction=1.0)
)
SIZES = [(64, 64), (64, 90), (None, None), (100, 64), (70, 64), (64, 64)]


class Source:
    """Pictures of some heights and widths, one of them damaged."""

    largest = (100, 90)

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        height, width = SIZES[index]
        if height is None:
            raise InputError("damaged")
        return Image.new("RGB", (width, height)), np.zeros((height, width), np.uint8)


def test_every_example_is_in_one_part_those_that_cannot_be_read_too():
    parts = several_sizes.parts(MODEL, Source(), skip=True)
    assert len(parts) > 1
    indices = [index for part, _ in parts for index in part.indices]
    # Evaluation meets the damaged one, says so, and counts it.
    assert sorted(indices) == list(range(len(SIZES)))
    for part, evaluation in parts:
        for index in part.indices:
            height, width = SIZES[index]
            if height is not None:
                assert evaluation.examples.bucket(width, height) == evaluation.examples.shape
    with pytest.raises(InputError, match="damaged"):
        several_sizes.parts(MODEL, Source())
