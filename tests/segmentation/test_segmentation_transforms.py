"""The training pipeline's steps against OpenCV and mmsegmentation's loops, written down plainly."""

import cv2
import numpy as np
import pytest
from PIL import Image

from convnext_jax.data.opencv import recolour, resize_bilinear, resize_nearest
from convnext_jax.segmentation import transforms
from convnext_jax.segmentation.transforms import Photometric, TrainCrops

cv2.setNumThreads(1)
RNG = np.random.default_rng(0)
SIZES = [
    ((50, 70), (77, 93)),
    ((50, 70), (25, 35)),  # by exactly two, where OpenCV takes another way
    ((64, 64), (128, 128)),
    ((33, 47), (47, 33)),
    ((100, 140), (50, 71)),
    ((51, 77), (51, 40)),
    ((3, 2), (11, 9)),
]


@pytest.mark.parametrize("before, after", SIZES)
def test_pixels_are_opencvs(before, after):
    image = RNG.integers(0, 256, (*before, 3), np.uint8)
    expected = cv2.resize(image, after[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize_bilinear(image, *after), expected)
    top, left, height, width = 1, 2, after[0] - 2, after[1] - 4
    part = expected[top : top + height, left : left + width]
    found = resize_bilinear(image, *after, part=(top, left, height, width))
    np.testing.assert_array_equal(found, part)
    labels = RNG.integers(0, 256, before, np.uint8)
    expected = cv2.resize(labels, after[::-1], interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(resize_nearest(labels, *after), expected)


def test_rows_of_labels_are_opencvs_at_any_size():
    """Places are products that are cut off: at some sizes the last bit of a factor decides."""
    for before, after in np.random.default_rng(0).integers(1, 2049, (4000, 2)).tolist():
        labels = np.arange(before, dtype=np.uint16)[:, None].astype(np.float32)
        expected = cv2.resize(labels, (1, after), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(
            resize_nearest(labels, after, 1), expected, f"{before} -> {after}"
        )


def test_an_image_of_one_row_stays_one():
    row = TrainCrops(32, 32)((Image.new("RGB", (900, 1)), np.zeros((1, 900), np.uint8)), RNG)
    assert row["size"][0] >= 1


def test_colour_spaces_are_opencvs():
    # Every triple of a fine grid, in rows of 256: OpenCV rounds what is left of 32 pixels.
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    rgb = np.resize(grid, (len(grid) // 256 * 256, 3)).reshape(-1, 256, 3).astype(np.uint8)
    plain = np.arange(180, dtype=np.uint8), np.arange(256, dtype=np.uint8)
    shuffled = tuple(RNG.permutation(table) for table in plain)
    # Shuffled, so that every hue meets every saturation on the way back.
    for hues, saturations in (plain, shuffled):
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        hsv[..., 0], hsv[..., 1] = hues[hsv[..., 0]], saturations[hsv[..., 1]]
        expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        np.testing.assert_array_equal(recolour(rgb, hues, saturations), expected)


def mmseg_distortion(image, drawn):
    """`PhotoMetricDistortion` of mmsegmentation 0.11 on an RGB image, with its draws given."""

    def convert(values, alpha=1.0, beta=0.0):
        values = values.astype(np.float32) * alpha + beta
        return np.clip(values, 0, 255).astype(np.uint8)

    if drawn.brightness is not None:
        image = convert(image, beta=drawn.brightness)
    if drawn.contrast is not None and drawn.contrast_first:
        image = convert(image, alpha=drawn.contrast)
    if drawn.saturation is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[:, :, 1] = convert(hsv[:, :, 1], alpha=drawn.saturation)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if drawn.hue is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + drawn.hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if drawn.contrast is not None and not drawn.contrast_first:
        image = convert(image, alpha=drawn.contrast)
    return image


def test_distortion_is_the_references():
    image = RNG.integers(0, 256, (64, 96, 3), np.uint8)
    drawn = [transforms.draw_photometric(np.random.default_rng(seed)) for seed in range(64)]
    drawn.append(Photometric(-20.0, 1.4, False, 0.5, -18))
    for one in drawn:
        expected = mmseg_distortion(image, one)
        np.testing.assert_array_equal(transforms.photometric(image, one), expected, str(one))
    # Each step is drawn half of the time, contrast half of the time before the others.
    for field in ("brightness", "contrast", "saturation", "hue"):
        assert 16 < sum(getattr(one, field) is not None for one in drawn) < 48, field
    assert 16 < sum(one.contrast_first for one in drawn) < 48
    hues = [one.hue for one in drawn if one.hue is not None]
    assert min(hues) >= -18 and max(hues) <= 17


@pytest.mark.parametrize("size", [(683, 512), (512, 683), (300, 2000), (100, 90)])
def test_sizes_are_mmcvs(size):
    for longer, shorter in ((2048, 512), (1025, 256), (4090, 1022)):
        factor = min(max(longer, shorter) / max(size), min(longer, shorter) / min(size))
        expected = tuple(int(side * float(factor) + 0.5) for side in size)
        assert transforms.rescaled(*size, longer, shorter) == expected


class Draws:
    """A generator whose whole numbers are given."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def integers(self, low, high):
        number = self.numbers.pop(0)
        assert low <= number < high
        return number


def test_a_crop_of_one_class_is_drawn_again():
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 40:] = 1
    labels[:5] = 255
    # All of one class, then 18 of 20 columns, then half.
    assert transforms.draw_crop(labels, 20, Draws(0, 0, 10, 22, 20, 30)) == (20, 30)
    # What is ignored is no class, and the tenth new one is taken as it is.
    rest = Draws(*[0, 0] * 10, 20, 7)
    assert transforms.draw_crop(labels, 20, rest) == (20, 7) and not rest.numbers
    assert transforms.draw_crop(labels, 100, Draws(*[0] * 22)) == (0, 0)


def test_rows_hold_the_image_and_what_fills_it_up():
    crops = TrainCrops(64, 64)
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(1, 256, (64, 80, 3), np.uint8))
    labels = rng.integers(0, 4, (64, 80)).astype(np.uint8)
    sizes = set()
    for seed in range(40):
        row = crops((image, labels), np.random.default_rng(seed))
        assert {k: (v.shape, v.dtype) for k, v in row.items()} == {
            k: (v.shape, v.dtype) for k, v in crops.blank.items()
        }
        height, width = row["size"]
        sizes.add((int(height), int(width)))
        assert (row["label"][:height, :width] < 4).all()
        assert (row["label"][height:] == 255).all() and (row["label"][:, width:] == 255).all()
        assert not row["image"][height:].any() and not row["image"][:, width:].any()
    # A third of the draws is smaller than the crop.
    assert (64, 64) in sizes and min(height for height, _ in sizes) < 40
