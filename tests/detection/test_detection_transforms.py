"""Training's and evaluation's rows against mmdetection's steps, written down with OpenCV."""

import pickle

import cv2
import numpy as np
import pytest
from detection.made_examples import SMALL, an_example

from convnext_jax.data.pipeline import Passes, train_batches
from convnext_jax.detection import transforms
from convnext_jax.detection.transforms import EvalCanvas, TrainCanvas
from convnext_jax.errors import InputError

cv2.setNumThreads(1)


def rescale_size(height, width, longer, shorter):
    """mmcv's `rescale_size` of a scale (longer, shorter)."""
    factor = min(longer / max(height, width), shorter / min(height, width))
    return max(1, int(height * float(factor) + 0.5)), max(1, int(width * float(factor) + 0.5))


def resize(image, boxes, masks, longer, shorter):
    """`Resize` with a ratio that is kept."""
    height, width = image.shape[:2]
    new = rescale_size(height, width, longer, shorter)
    image = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
    masks = [cv2.resize(mask, new[::-1], interpolation=cv2.INTER_NEAREST) for mask in masks]
    factor = np.array([new[1] / width, new[0] / height] * 2, np.float32)
    boxes = boxes * factor
    boxes[:, 0::2] = np.clip(boxes[:, 0::2], 0, new[1])
    boxes[:, 1::2] = np.clip(boxes[:, 1::2], 0, new[0])
    return image, boxes, masks


def reference(example, masks, drawn, settings):
    """The reference's pipeline, upright: RandomFlip, then one of AutoAugment's two policies."""
    image, objects = np.asarray(example[0]), example[1]
    one = ~objects.is_crowd
    corner = objects.bbox[:, :2]
    boxes = np.concatenate([corner, corner + objects.bbox[:, 2:]], 1).astype(np.float32)[one]
    labels, masks = objects.labels[one], list(masks[one])
    flip, crop, last, first, *places = drawn
    if flip < settings.flip:
        width = image.shape[1]
        image = image[:, ::-1].copy()
        masks = [mask[:, ::-1].copy() for mask in masks]
        flipped = boxes.copy()
        flipped[:, 0], flipped[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
        boxes = flipped
    if crop >= 0.5:
        scale = settings.first_scales[int(first * len(settings.first_scales))]
        image, boxes, masks = resize(image, boxes, masks, settings.longer, scale)
        height, width = image.shape[:2]
        low, high = settings.crop
        sides = [
            min(side, low) + int(u * (min(side, high) + 1 - min(side, low)))
            for side, u in zip((height, width), places[:2], strict=True)
        ]
        top = int(places[2] * (height - sides[0] + 1))
        left = int(places[3] * (width - sides[1] + 1))
        image = image[top : top + sides[0], left : left + sides[1]]
        boxes = boxes - np.array([left, top, left, top], np.float32)
        boxes[:, 0::2] = np.clip(boxes[:, 0::2], 0, sides[1])
        boxes[:, 1::2] = np.clip(boxes[:, 1::2], 0, sides[0])
        valid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, labels = boxes[valid], labels[valid]
        masks = [
            mask[top : top + sides[0], left : left + sides[1]].copy()
            for mask, stays in zip(masks, valid, strict=True)
            if stays
        ]
    scale = settings.scales[int(last * len(settings.scales))]
    image, boxes, masks = resize(image, boxes, masks, settings.longer, scale)
    return image, boxes, labels, masks


def check_row(row, expected, settings):
    """The row has exactly what is expected, in the canvas's frame, and nothing beside it."""
    image, boxes, labels, masks = expected
    height, width = image.shape[:2]
    portrait = height > width
    short, long = settings.canvas
    assert row["size"].tolist() == [height, width] and row["portrait"] == portrait
    canvas = np.zeros((short, long, 3), np.uint8)
    bits = np.zeros((settings.max_objects, short, long), np.uint8)
    turned = [array.swapaxes(0, 1) if portrait else array for array in (image, *masks)]
    canvas[: turned[0].shape[0], : turned[0].shape[1]] = turned[0]
    for plane, mask in zip(bits, turned[1:], strict=False):
        plane[: mask.shape[0], : mask.shape[1]] = mask
    np.testing.assert_array_equal(row["image"], canvas)
    np.testing.assert_array_equal(row["masks"], np.packbits(bits, axis=-1))
    count = len(labels)
    np.testing.assert_array_equal(row["boxes"][:count], boxes)
    np.testing.assert_array_equal(row["labels"][:count], labels)
    assert not row["boxes"][count:].any() and (row["labels"][count:] == -1).all()


class Given:
    """A generator whose numbers are given."""

    def __init__(self, numbers):
        self.numbers = numbers

    def random(self, count):
        assert len(self.numbers) == count
        return np.array(self.numbers)


def test_rows_are_the_references_to_the_pixel():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        height, width = (int(side) for side in rng.integers(20, 130, 2))
        *example, masks = an_example(rng, height, width, int(rng.integers(0, 7)), crowds=1)
        drawn = rng.random(transforms.DRAWS)
        row = SMALL(example, Given(drawn))
        expected = reference(example, masks, drawn, SMALL)
        check_row(row, expected, SMALL)
        seen.add((bool(row["portrait"]), drawn[0] < 0.5, drawn[1] < 0.5))
    assert len(seen) == 8


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (375, 500)])
def test_rows_of_the_recipe(size):
    recipe = TrainCanvas()
    rng = np.random.default_rng(size[1])
    *example, masks = an_example(rng, *size, 6)
    for branch in (0.2, 0.7):
        drawn = rng.random(transforms.DRAWS)
        drawn[1] = branch
        row = recipe(example, Given(drawn))
        check_row(row, reference(example, masks, drawn, recipe), recipe)
        assert {k: (np.shape(v), v.dtype) for k, v in row.items()} == {
            "image": ((800, 1344, 3), np.uint8),
            "size": ((2,), np.int32),
            "portrait": ((), np.int32),
            "boxes": ((100, 4), np.float32),
            "labels": ((100,), np.int32),
            "masks": ((100, 800, 168), np.uint8),
        }
        assert row.keys() == recipe.blank.keys()
        for name, value in recipe.blank.items():
            assert (np.shape(value), value.dtype) == (np.shape(row[name]), row[name].dtype)


def test_extreme_images():
    """Images of one row, tiny ones, none and too many objects, and crowds alone."""
    rng = np.random.default_rng(1)
    for size in ((1, 1000), (1000, 1), (1, 1), (33, 3000), (97, 96), (96, 97), (96, 96)):
        for count, crowds in ((0, 0), (2, 0), (3, 3)):
            *example, masks = an_example(rng, *size, count, crowds)
            for _ in range(6):
                drawn = rng.random(transforms.DRAWS)
                row = SMALL(example, Given(drawn))
                expected = reference(example, masks, drawn, SMALL)
                image, boxes, labels, kept = expected
                # A box without extent has no logarithm; the reference would go on with it.
                real = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
                kept = [mask for mask, stays in zip(kept, real, strict=True) if stays]
                check_row(row, (image, boxes[real], labels[real], kept), SMALL)


def test_of_too_many_objects_the_largest_stay_in_order():
    rng = np.random.default_rng(2)
    *example, masks = an_example(rng, 90, 120, 150)
    cut = 0
    for _ in range(20):
        drawn = rng.random(transforms.DRAWS)
        image, boxes, labels, kept = reference(example, masks, drawn, SMALL)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        places = sorted(sorted(range(len(areas)), key=lambda i: (-areas[i], i))[:12])
        cut += len(areas) > 12
        chosen = boxes[places], labels[places], [kept[i] for i in places]
        check_row(SMALL(example, Given(drawn)), (image, *chosen), SMALL)
    assert cut > 15


def test_what_is_drawn_is_even():
    recipe = TrainCanvas()
    count = 40_000
    drawn = np.random.default_rng(0).random((count, transforms.DRAWS))
    sizes = np.tile([[480, 640]], (count, 1))
    found = recipe.geometry(drawn, sizes)

    def evenly(values, number):
        """Each of so many values as often as the others: five deviations of a binomial count."""
        each, counts = np.unique(values, return_counts=True)
        assert len(each) == number
        expected = len(values) / number
        assert abs(counts - expected).max() < 5 * np.sqrt(expected)
        return each

    assert evenly(found.flip, 2).tolist() == [False, True]
    evenly(found.cropped, 2)
    cropped, other = found.cropped, ~found.cropped
    # 640 x 480 has room for all scales: the shorter side is what was drawn.
    shorter = evenly(found.size[other].min(1), 11)
    assert shorter.tolist() == list(range(480, 801, 32))
    assert evenly(found.first[cropped, 0], 3).tolist() == [400, 500, 600]
    assert (found.first[other] == [480, 640]).all() and not found.corner[other].any()
    for axis, first in ((0, 600), (1, 800)):
        of_largest = cropped & (found.first[:, 0] == 600)
        assert (found.first[of_largest, axis] == first).all()
        crops = found.crop[of_largest, axis]
        assert (crops.min(), crops.max()) == (384, 600)
        # Halves of the range, to 5 deviations of some 6,700 draws.
        assert abs((crops < 492).mean() - 108 / 217) < 0.03
        room = first - crops
        corner = found.corner[of_largest, axis]
        assert (corner >= 0).all() and (corner <= room).all()
        assert abs((corner[room > 50] / room[room > 50]).mean() - 0.5) < 0.03
    # Height and width are drawn each for itself.
    assert abs(np.corrcoef(found.crop[cropped].T)[0, 1] - correlation_by_first(found)) < 0.03
    # Everything fits on the canvas.
    wild = np.random.default_rng(1).integers(1, 5000, (count, 2))
    size = recipe.geometry(drawn, wild).size
    assert size.min() >= 1 and size.min(1).max() <= 800 and size.max() <= 1333


def correlation_by_first(found):
    """What height and width of crops have in common as both follow the first resizing."""
    rng = np.random.default_rng(3)
    first = found.first[found.cropped]
    low, high = np.minimum(first, 384), np.minimum(first, 600)
    return np.corrcoef(rng.integers(low, high + 1).T)[0, 1]


def test_the_numbers_are_drawn_first_and_at_once():
    rng, other = np.random.default_rng((1, 2, 3)), np.random.default_rng((1, 2, 3))
    np.testing.assert_array_equal(transforms.draw(rng), other.random(8))


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (427, 640), (1000, 300), (20, 20)])
def test_evaluation_resizes_to_fit(size):
    rng = np.random.default_rng(0)
    *example, _ = an_example(rng, *size, 1)
    transform = EvalCanvas(canvas=(416, 672), longer=667, shorter=400)
    row = transform(example)
    height, width = rescale_size(*size, 667, 400)
    expected = cv2.resize(np.asarray(example[0]), (width, height), interpolation=cv2.INTER_LINEAR)
    assert row["size"].tolist() == [height, width] == transform.sizes([size])[0].tolist()
    assert (row["original"].tolist(), row["index"]) == (list(size), 3)
    assert row["portrait"] == (height > width)
    canvas = np.zeros((416, 672, 3), np.uint8)
    turned = expected.swapaxes(0, 1) if height > width else expected
    canvas[: turned.shape[0], : turned.shape[1]] = turned
    np.testing.assert_array_equal(row["image"], canvas)
    for blank in (transform.blank, transform.filling(portrait=True)):
        for name, value in row.items():
            assert (np.shape(value), value.dtype) == (np.shape(blank[name]), blank[name].dtype)
        assert blank["index"] == -1 and not blank["image"].any() and blank["size"].min() > 0
    assert transform.filling(portrait=True)["portrait"] == 1


class Source:
    """Examples as a source gives them."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def test_rows_become_batches():
    """Through the pipeline; workers would receive the transform pickled."""
    rng = np.random.default_rng(0)
    examples = [an_example(rng, 50, 60 + i, i)[:2] for i in range(4)]
    again = pickle.loads(pickle.dumps(SMALL))
    with train_batches(
        Source(examples), again, global_batch=4, seed=3, start_step=0, num_steps=1
    ) as batches:
        (batch,) = batches
    rows = [SMALL(examples[i], np.random.default_rng((3, 0, i))) for i in range(4)]
    for name, values in batch.items():
        assert values.dtype == rows[0][name].dtype
        found = sorted(value.tobytes() for value in values)
        assert found == sorted(row[name].tobytes() for row in rows), name
    passes = Passes(
        Source(examples), EvalCanvas(canvas=(96, 160), longer=160, shorter=96), global_batch=3
    )
    found = list(passes())
    passes.close()
    assert [batch["index"].tolist() for batch in found] == [[3, 3, 3], [3, -1, -1]]


def test_square_images_are_landscape():
    canvas = {"canvas": (96, 96), "longer": 96}
    train = TrainCanvas(**canvas, scales=(64, 96), first_scales=(60,), crop=(40, 60))
    *example, masks = an_example(np.random.default_rng(0), 96, 96, 3)
    drawn = [0.9, 0.2, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5]
    row = train(example, Given(drawn))
    assert (row["size"].tolist(), row["portrait"]) == ([96, 96], 0)
    check_row(row, reference(example, masks, drawn, train), train)
    assert EvalCanvas(**canvas, shorter=96)(example)["portrait"] == 0


BAD = {
    "`canvas` (=(96, 64)) must be a height and a width": {"canvas": (96, 64)},
    "`canvas` (=(100, 200)) must be": {"canvas": (100, 200)},
    "of up to 1400 pixels must fit on the `canvas`": {"longer": 1400},
    "a shorter side of 900 and": {"scales": (480, 900)},
    "`scales` (=()) must be": {"scales": ()},
    "`first_scales` (=(0,)) must be 1 pixel or more each": {"first_scales": (0,)},
    "`crop` (=(600, 384)) must be a range": {"crop": (600, 384)},
    "`flip` (=1.5) must be a probability": {"flip": 1.5},
    "`max_objects` (=0) must be 1 or more": {"max_objects": 0},
}


@pytest.mark.parametrize("message", BAD)
def test_settings_out_of_range(message):
    with pytest.raises(InputError) as caught:
        TrainCanvas(**BAD[message])
    assert message in str(caught.value)
    with pytest.raises(InputError, match="must fit on the `canvas`"):
        EvalCanvas(shorter=801)
