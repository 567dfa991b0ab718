"""The compiled resampling has Pillow's pixels, alone and in the whole training transform."""

import concurrent.futures
import io
import math
import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image, ImageOps

from convnext_jax.classification import randaugment, transforms
from convnext_jax.classification.randaugment import FILL, RandAugment
from convnext_jax.classification.transforms import EvalTransform, TrainTransform
from convnext_jax.data import resample
from convnext_jax.data.decode import decode

BICUBIC = Image.Resampling.BICUBIC
PHOTOGRAPHS = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
RECIPE = "rand-m9-mstd0.5-inc1"


def noise(width, height, seed=0):
    """Wild pixels: every sum of weights is clipped somewhere, and differs in the last bit."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def kernels(monkeypatch):
    """Small images go through the compiled functions too."""
    monkeypatch.setattr(resample, "_SMALL", 0)


# Sizes at which Pillow 13 changes the order of its passes, and around them, among others.
@pytest.mark.parametrize("target", [(224, 224), (100, 150), (150, 100), (7, 300), (1, 1)])
def test_resize_has_the_pixels_of_pillow(kernels, target):
    width, height = target
    rng = np.random.default_rng(0)
    sizes = [(width, height), (width + 10, height), (width, height + 10), (1, 1), (3, 500)]
    sizes += [(width + 20, height + 40 + i) for i in (-1, 0, 1)]
    sizes += [(max(width - 20, 1), height + i) for i in (0, 1)]
    sizes += rng.integers(1, 700, (25, 2)).tolist()
    for size in sizes:
        image = noise(*size)
        expected = image.resize(target, BICUBIC)
        np.testing.assert_array_equal(resample.resize(image, target), expected, err_msg=f"{size}")


def test_the_order_of_passes_follows_pillow():
    # Where the two orders differ, or the test above could not tell them apart.
    image = noise(244, 299)
    wide = image.resize((224, 299), BICUBIC).resize((224, 224), BICUBIC)
    high = image.resize((244, 224), BICUBIC).resize((224, 224), BICUBIC)
    assert wide != high
    assert resample.resize(image, (224, 224)) == (high if resample._CAN_START_VERTICALLY else wide)


def test_resizing_a_box_to_a_part_is_cutting_before_and_after(kernels):
    rng = np.random.default_rng(1)
    for _ in range(100):
        image = noise(*rng.integers(20, 400, 2).tolist())
        left, top = (int(rng.integers(side - 1)) for side in image.size)
        right = int(rng.integers(left + 1, image.width + 1))
        bottom = int(rng.integers(top + 1, image.height + 1))
        size = tuple(rng.integers(2, 300, 2).tolist())
        part = (*(rng.integers(side) for side in size), *size)
        part = tuple(map(int, part))
        box = (left, top, right, bottom)
        expected = image.crop(box).resize(size, BICUBIC).crop(part)
        actual = resample.resize(image, size, box=box, part=part)
        np.testing.assert_array_equal(actual, expected, err_msg=f"{image.size} {box} {size} {part}")


def test_an_image_in_several_pieces_of_memory():
    image = noise(2500, 1800)  # 18 MB in Pillow's four bytes a pixel; a piece has 16
    with pytest.raises(ValueError, match="contiguous"):
        image.__arrow_c_array__()
    box = (100, 50, 2400, 1750)
    expected = image.crop(box).resize((224, 224), BICUBIC)
    assert resample.resize(image, (224, 224), box=box) == expected
    assert resample.rotate(image, 5, FILL) == image.rotate(5, BICUBIC, fillcolor=FILL)


@pytest.mark.parametrize("size", [(224, 224), (90, 131), (1, 5)])
def test_affine_has_the_pixels_of_pillow(kernels, size):
    rng = np.random.default_rng(2)
    image = noise(*size)
    matrices = [(1, 0.3, 0, 0, 1, 0), (1, 0, 0, -0.3, 1, 0), (1, 0, 500, 0, 1, 0)]
    matrices += [(1, 0, shift, 0, 1, 0) for shift in (0, 1, -3, 0.5, 90.72, -math.pi)]
    matrices += [(1, 0, 0, 0, 1, shift) for shift in (2, -0.5, 90.72, -math.pi)]
    matrices += [tuple(rng.normal([1, 0, 0, 0, 1, 0], [1, 1, 30, 1, 1, 30])) for _ in range(20)]
    for matrix in matrices:
        expected = image.transform(size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=FILL)
        actual = resample.affine(image, matrix, FILL)
        np.testing.assert_array_equal(actual, expected, err_msg=f"{matrix}")


@pytest.mark.parametrize("size", [(224, 224), (90, 131), (1, 5)])
def test_rotate_has_the_pixels_of_pillow(kernels, size):
    image = noise(*size)
    angles = [0, 90, 180, 270, 360, -45, 1e-3, *np.random.default_rng(3).uniform(-400, 400, 20)]
    for degrees in angles:
        expected = image.rotate(degrees, BICUBIC, fillcolor=FILL)
        actual = resample.rotate(image, degrees, FILL)
        np.testing.assert_array_equal(actual, expected, err_msg=f"{degrees}")


def test_small_images_do_not_load_the_compiled_functions():
    program = f"""
import sys
import numpy as np
from PIL import Image
from convnext_jax.classification.transforms import EvalTransform, TrainTransform
image = Image.new("RGB", (8, 8))
EvalTransform(32, 1.0)(image)
TrainTransform(32, "padded", auto_augment={RECIPE!r})(image, np.random.default_rng(0))
assert "numba" not in sys.modules
EvalTransform(96, 1.0)(image)
assert "numba" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threads_agree():
    images = [photograph.resize((300 + i, 200)) for i, photograph in enumerate(PHOTOGRAPHS * 8)]
    transform = TrainTransform(96, auto_augment=RECIPE)

    def run(i):
        return transform(images[i], np.random.default_rng(i))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for i, pixels in enumerate(pool.map(run, range(len(images)))):
            np.testing.assert_array_equal(pixels, run(i))


def encoded(i, rng):
    """A JPEG of a random part, size and kind."""
    photograph = PHOTOGRAPHS[i % 2]
    width, height = np.exp(rng.uniform(np.log(40), np.log(900), 2)).round().astype(int).tolist()
    left, top = rng.uniform(0, 300), rng.uniform(0, 200)
    image = photograph.resize((width, height), box=(left, top, left + 300, top + 200))
    image = image.convert("L") if i % 7 == 0 else image
    file = io.BytesIO()
    options = {} if image.mode == "L" else {"subsampling": i % 3}
    image.save(file, "JPEG", quality=int(rng.integers(50, 96)), progressive=i % 5 == 0, **options)
    return file.getvalue()


# Pillow's own functions for what runs compiled; the rest of `OPERATIONS` is Pillow's already.
def pillow_affine(image, matrix):
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=(124, 116, 104)
    )


PLAIN = {
    "Rotate": lambda image, v: image.rotate(v, BICUBIC, fillcolor=(124, 116, 104)),
    "ShearX": lambda image, v: pillow_affine(image, (1, v, 0, 0, 1, 0)),
    "ShearY": lambda image, v: pillow_affine(image, (1, 0, 0, v, 1, 0)),
    "TranslateXRel": lambda image, v: pillow_affine(image, (1, 0, v * image.width, 0, 1, 0)),
    "TranslateYRel": lambda image, v: pillow_affine(image, (1, 0, 0, 0, 1, v * image.height)),
}


def plain_train(file, size, rng):
    """The recipe's training transform with Pillow alone."""
    with Image.open(io.BytesIO(file)) as opened:
        image = opened.convert("RGB")
    top, left, height, width = transforms.draw_resized_crop_box(image.width, image.height, rng)
    image = image.crop((left, top, left + width, top + height)).resize((size, size), BICUBIC)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    for name, argument in POLICY.draw(rng):
        USED.add(name)
        operation = PLAIN.get(name, randaugment.OPERATIONS[name].apply)
        image = operation(image, argument)
    return np.asarray(image)


POLICY = RandAugment(9, magnitude_std=0.5, operations=randaugment.INCREASING)
USED = set()


def test_the_whole_training_transform_has_the_pixels_of_plain_pillow():
    size = 224
    transform = TrainTransform(size, auto_augment=RECIPE)
    rng = np.random.default_rng(4)
    for i in range(300):
        file = encoded(i, rng)
        pixels = transform(decode(file, "given"), np.random.default_rng(i))
        expected = plain_train(file, size, np.random.default_rng(i))
        np.testing.assert_array_equal(pixels, expected, err_msg=f"image {i}")
    assert {*randaugment.INCREASING} == USED  # each operation was compared


def test_evaluation_has_the_pixels_of_plain_pillow():
    rng = np.random.default_rng(5)
    for i in range(100):
        file = encoded(i, rng)
        with Image.open(io.BytesIO(file)) as opened:
            image = opened.convert("RGB")
        # No side of these is smaller than the crop, so it lies inside.
        shorter = min(image.size)
        new = tuple(int(256 * side / shorter) for side in image.size)
        left, top = (round((side - 224) / 2) for side in new)
        expected = image.resize(new, BICUBIC).crop((left, top, left + 224, top + 224))
        np.testing.assert_array_equal(EvalTransform(224)(decode(file, "given")), expected)
