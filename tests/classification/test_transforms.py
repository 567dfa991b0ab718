import math
import random

import numpy as np
import pytest
import scipy.stats
import sklearn.datasets
from oracles import timm, torch, torchvision
from PIL import Image

from convnext_jax.classification import transforms
from convnext_jax.classification.transforms import Box, EvalTransform, TrainTransform
from convnext_jax.errors import InputError

F = torchvision.transforms.functional
BICUBIC = torchvision.transforms.InterpolationMode.BICUBIC
PHOTOGRAPHS = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
# Both orientations, square, odd, tiny, and a strip.
SIZES = [(640, 427), (427, 640), (500, 375), (333, 500), (257, 256), (31, 47), (200, 9), (8, 8)]


def photographs():
    for i, size in enumerate(SIZES):
        photograph = PHOTOGRAPHS[i % 2]
        yield photograph if size == photograph.size else photograph.resize(size)


@pytest.mark.parametrize("size", [32, 33, 224, 288, 383, 384, 385])
@pytest.mark.parametrize("crop_fraction", [224 / 256, 0.95, 1.0])
def test_eval_transform_has_the_pixels_of_torchvision(size, crop_fraction):
    if size >= 384:
        reference = torchvision.transforms.Resize((size, size), BICUBIC)
    else:
        reference = torchvision.transforms.Compose(
            [
                torchvision.transforms.Resize(int(size / crop_fraction), BICUBIC),
                torchvision.transforms.CenterCrop(size),
            ]
        )
    for image in photographs():
        pixels = EvalTransform(size, crop_fraction)(image)
        assert pixels.shape == (size, size, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, np.asarray(reference(image)))


@pytest.mark.parametrize("size", [7, 8, 31, 224, 600])
def test_center_crop_pads_and_rounds_as_torchvision(size):
    for image in photographs():
        expected = F.center_crop(image, [size])
        np.testing.assert_array_equal(transforms.center_crop(image, size), expected)


def test_resized_crop_of_a_box_has_the_pixels_of_torchvision():
    rng = np.random.default_rng(0)
    for image in photographs():
        for size in (32, 224):
            box = transforms.draw_resized_crop_box(image.width, image.height, rng)
            expected = F.resized_crop(image, *box, [size, size], BICUBIC)
            actual = transforms.crop_and_resize(image, box, size)
            np.testing.assert_array_equal(actual, expected)


def draws_of_torchvision(image, scale, ratio, count):
    torch.manual_seed(0)
    crop = torchvision.transforms.RandomResizedCrop
    return [crop.get_params(image, list(scale), list(ratio)) for _ in range(count)]


def draws_of_timm(image, scale, ratio, count):
    random.seed(0)
    crop = timm.data.transforms.RandomResizedCropAndInterpolation
    return [crop.get_params(image, scale, ratio) for _ in range(count)]


@pytest.mark.parametrize(
    # torchvision takes ten times as long for a draw.
    ("reference", "count"),
    [(draws_of_torchvision, 5000), (draws_of_timm, 20_000)],
)
@pytest.mark.parametrize("size", [(500, 375), (60, 100), (300, 40), (9, 8)])
def test_boxes_are_distributed_as_the_references(reference, count, size):
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    rng = np.random.default_rng(1)
    ours = np.array(
        [transforms.draw_resized_crop_box(*size, rng, scale, ratio) for _ in range(count)]
    )
    theirs = np.array(reference(Image.new("L", size), scale, ratio, count))
    for measure in (
        lambda b: b[:, 0],  # top
        lambda b: b[:, 1],  # left
        lambda b: b[:, 2] * b[:, 3],  # area
        lambda b: np.round(np.log(b[:, 3] / b[:, 2]), 6),  # shape
        lambda b: b[:, 0] + b[:, 2],  # bottom: position and size together
    ):
        # Fixed seeds: this decides once. 0.01 is the share of equal distributions it would refuse.
        assert scipy.stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 0.01


@pytest.mark.parametrize(
    ("size", "box"),
    [((900, 30), Box(0, 430, 30, 40)), ((30, 900), Box(430, 0, 40, 30)), ((5, 5), Box(0, 0, 5, 5))],
)
def test_ten_tries_without_a_fit_give_the_largest_centred_box(size, box):
    class Unlucky:
        """Draws boxes that are never inside: ten times the image's area."""

        def uniform(self, low, high):
            return 10.0 if high == 1.0 else 0.0

    assert transforms.draw_resized_crop_box(*size, Unlucky()) == box
    with pytest.MonkeyPatch.context() as patch:
        # torchvision draws through torch; the same never-fitting area for it.
        patch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.fill_(10.0))
        crop = torchvision.transforms.RandomResizedCrop
        assert crop.get_params(Image.new("L", size), [0.08, 1.0], [3 / 4, 4 / 3]) == tuple(box)


def test_padded_crop_has_the_pixels_of_torchvision():
    image = PHOTOGRAPHS[0].resize((32, 32))
    for offset in [(0, 0), (8, 8), (4, 4), (0, 8), (7, 2)]:
        expected = F.crop(F.pad(image, [4]), *offset, 32, 32)
        np.testing.assert_array_equal(transforms.padded_crop(image, offset, 4), expected)


def test_padded_crop_offsets_are_uniform_over_both_ends():
    rng = np.random.default_rng(0)
    draws = np.array([transforms.draw_padded_crop_offset(rng, 4) for _ in range(5000)])
    for axis in (0, 1):
        counts = np.bincount(draws[:, axis], minlength=9)
        assert len(counts) == 9
        assert scipy.stats.chisquare(counts).pvalue > 0.01  # a fixed seed decides once


@pytest.mark.parametrize("crop", ["random_resized", "padded"])
def test_train_transform_is_its_parts_in_order(crop):
    """Crop with what the generator draws first, then the flip with what it draws next."""
    image = PHOTOGRAPHS[0].resize((50, 40))
    flips = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        if crop == "random_resized":
            box = transforms.draw_resized_crop_box(50, 40, rng, (0.2, 0.9), (0.5, 2.0))
            expected = F.resized_crop(image, *box, [32, 32], BICUBIC)
        else:
            small = F.resize(image, [32, 32], BICUBIC)
            offset = transforms.draw_padded_crop_offset(rng, 3)
            expected = F.crop(F.pad(small, [3]), *offset, 32, 32)
        if rng.random() < 0.5:
            flips += 1
            expected = F.hflip(expected)
        transform = TrainTransform(32, crop, scale=(0.2, 0.9), ratio=(0.5, 2.0), padding=3)
        pixels = transform(image, np.random.default_rng(seed))
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, expected)
    assert 0 < flips < 20  # both cases were compared


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flip_probability(probability):
    image = Image.new("RGB", (2, 2))
    image.putpixel((0, 0), (255, 255, 255))
    transform = TrainTransform(2, "padded", flip=probability, padding=0)
    rng = np.random.default_rng(0)
    count = 2000
    flips = sum(transform(image, rng)[0, 1, 0] == 255 for _ in range(count))
    # Four standard deviations of a binomial; exact at 0 and 1.
    margin = 4 * math.sqrt(count * probability * (1 - probability))
    assert abs(flips - count * probability) <= margin


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: TrainTransform(0), "image_size"),
        (lambda: TrainTransform(32, "center"), "crop"),
        (lambda: TrainTransform(32, flip=1.5), "flip"),
        (lambda: TrainTransform(32, scale=(0.0, 1.0)), "scale"),
        (lambda: TrainTransform(32, ratio=(2.0, 1.0)), "ratio"),
        (lambda: TrainTransform(32, padding=-1), "padding"),
        (lambda: EvalTransform(-1), "image_size"),
        (lambda: EvalTransform(224, 0.0), "crop_fraction"),
        (lambda: EvalTransform(224, 1.1), "crop_fraction"),
    ],
)
def test_a_field_out_of_range_is_an_error(make, name):
    with pytest.raises(InputError, match=f"^`{name}` "):
        make()
