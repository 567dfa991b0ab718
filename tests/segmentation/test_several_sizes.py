"""Images are put into buckets of sizes, each into one; those that are too thin are named."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from convnext_jax.data.pipeline import Passes
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription, ModelSpec
from convnext_jax.models.variants import Preprocessing
from convnext_jax.segmentation import several_sizes, task
from convnext_jax.segmentation.predictor import Failure, Predictor
from convnext_jax.segmentation.views import windows

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


class Thin(Source):
    """One picture of which nothing would be left at the size at which images are seen."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Image.new("RGB", (900, 1)), np.zeros((1, 900), np.uint8)

    def __str__(self):
        return "dataset `thin`"


TOO_THIN = "an image of 900 x 1 pixels is too thin: at most 256 pixels long"


def test_an_image_that_is_too_thin_is_named():
    with pytest.raises(InputError, match=f"^example 0 of dataset `thin`: {TOO_THIN}"):
        several_sizes.parts(MODEL, Thin())
    examples = task.evaluation(MODEL, views=windows(MODEL, (1, 900))).examples
    options = {"global_batch": 1, "rows": [0], "threads": 1, "prefetch": 1}
    with contextlib.closing(Passes(Thin(), examples, **options, check=False)) as batches:
        with pytest.raises(InputError, match=f"^example 0 of dataset `thin`: {TOO_THIN}"):
            list(batches())
    with contextlib.closing(Passes(Thin(), examples, **options, skip_bad=True)) as batches:
        assert [batch["mask"].tolist() for batch in batches()] == [[0]]
        assert list(batches.skipped) == [0] and TOO_THIN in batches.skipped[0]


def test_a_prediction_goes_on_after_an_image_that_is_too_thin(tmp_path):
    path = str(tmp_path / "thin.png")
    Image.new("RGB", (900, 1)).save(path)
    # Neither is segmented, so no parameters are looked at.
    found = list(Predictor(MODEL, {}, {}).predictions([path, Image.new("RGB", (900, 1))]))
    assert [isinstance(failure, Failure) for failure in found] == [True, True]
    assert found[0].error.startswith(f"{path}: {TOO_THIN}")
    assert found[1].error.startswith(TOO_THIN)
