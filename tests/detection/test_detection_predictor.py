"""From files to detections in their pixels, with a stand-in for the model."""

from typing import NamedTuple

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from convnext_jax.detection.canvas import Canvas
from convnext_jax.detection.page import draw_page
from convnext_jax.detection.predictor import Detected, Failure, Predictor
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription, ModelSpec
from convnext_jax.models.variants import Preprocessing

DESCRIPTION = ModelDescription(ModelSpec("convnext_atto", 4), Preprocessing())
CANVAS = Canvas(short=96, long=160, side=90, longest=150)


class Detections(NamedTuple):
    boxes: jnp.ndarray
    scores: jnp.ndarray
    labels: jnp.ndarray
    masks: jnp.ndarray


def find_white(params, batch_stats, images, key, *, sizes, portrait):
    """Finds what is white: its box, with a mask that is certain above the falling diagonal.

    It is of class 1 if nothing but zeros lies beyond the image, else of class 3. Two others have
    scores around the least that is shown; one is no detection.
    """
    assert key is None
    white = (images > params["white"]).all(-1)[0]

    def ends(seen):
        length = len(seen)
        return jnp.argmax(seen), length - jnp.argmax(seen[::-1])

    lying = portrait[0] > 0
    (top, bottom), (left, right) = ends(white.any(1)), ends(white.any(0))
    box = jnp.where(
        lying, jnp.array([top, left, bottom, right]), jnp.array([left, top, right, bottom])
    )
    extent = jnp.where(lying, sizes[0, ::-1], sizes[0])
    rows, columns = (jnp.arange(n) for n in images.shape[1:3])
    beyond = (rows[:, None] >= extent[0]) | (columns[None] >= extent[1])
    clean = ~jnp.any(beyond[..., None] & (images[0] != 0))
    cells = jnp.arange(28)
    mask = jnp.where(cells[None] > cells[:, None], 0.99, 0.01)
    found = Detections(
        jnp.tile(box.astype(jnp.float32)[None, None], (1, 4, 1)),
        jnp.array([[0.29, 0.9, 0.31, 0.0]]),
        jnp.array([[0, 0, 2, -1]]).at[0, 1].set(jnp.where(clean, 1, 3)),
        jnp.tile(mask[None, None], (1, 4, 1, 1)),
    )
    return found, batch_stats


def photograph(size, box):
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    return Image.fromarray(pixels)


def predictor(**options):
    return Predictor(DESCRIPTION, {"white": 1.2}, {}, canvas=CANVAS, apply=find_white, **options)


# Landscape, portrait, square, smaller than the canvas, and a long thin one.
CASES = {
    (400, 300): (40, 90, 200, 150),
    (300, 400): (40, 90, 200, 150),
    (320, 320): (8, 100, 300, 280),
    (40, 50): (5, 20, 30, 31),
    (60, 600): (10, 50, 50, 420),
}


def test_objects_are_found_where_they_are_in_the_file(tmp_path):
    paths = []
    for number, (size, box) in enumerate(CASES.items()):
        paths.append(str(tmp_path / f"{number}.png"))
        photograph(size, box).save(paths[-1])
    found = predictor().predictions(paths)
    for (size, box), seen in zip(CASES.items(), found, strict=True):
        assert isinstance(seen, Detected)
        assert seen.image.size == size
        assert seen.labels.tolist() == [1, 2]
        np.testing.assert_array_equal(seen.scores, np.float32([0.9, 0.31]))
        scale = np.divide(size, CANVAS.size(*size[::-1])[::-1])
        # An edge is found to a pixel of the resized image.
        assert np.abs(seen.boxes - box).max() <= 1.01 * scale.max()
        bitmap = np.zeros(size[::-1], bool)
        mask = seen.masks[0]
        bitmap[mask.top :, mask.left :][: mask.bitmap.shape[0], : mask.bitmap.shape[1]] = (
            mask.bitmap
        )
        x1, y1, x2, y2 = seen.boxes[0]
        rows, columns = np.mgrid[: size[1], : size[0]] + 0.5
        across, down = (columns - x1) / (x2 - x1), (rows - y1) / (y2 - y1)
        inside = (across > 0.06) & (across < 0.94) & (down > 0.06) & (down < 0.94)
        # Above the diagonal, but for a cell beside it.
        assert bitmap[inside & (across > down + 0.08)].all()
        assert not bitmap[inside & (across < down - 0.08)].any()


def test_what_is_shown_can_be_chosen_and_bad_images_are_named(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    image = photograph((40, 30), (5, 5, 20, 20))
    good, bad = predictor(least_score=0.0).predictions([image, str(tmp_path / "bad.jpg")])
    assert isinstance(good, Detected) and good.labels.tolist() == [1, 2, 0]
    assert isinstance(bad, Failure) and f"{tmp_path}/bad.jpg cannot be decoded" in bad.error
    with pytest.raises(InputError, match="`least_score` \\(=30\\) must lie in 0..1"):
        predictor(least_score=30)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (500, 500), (1, 1000), (1500, 200)])
def test_images_are_resized_as_the_reference_does(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    canvas = Canvas(short=224, long=384, side=200, longest=333)
    row = canvas.row(Image.fromarray(pixels))
    # mmcv's imrescale, in its words.
    factor = min(333 / max(size), 200 / min(size))
    width, height = (max(int(side * float(factor) + 0.5), 1) for side in size)
    expected = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    assert row["size"].tolist() == [height, width]
    assert row["original"].tolist() == [size[1], size[0]]
    assert row["portrait"] == (size[1] > size[0])
    upright = row["image"].swapaxes(0, 1) if row["portrait"] else row["image"]
    np.testing.assert_array_equal(upright[:height, :width], expected)
    assert not upright[height:].any() and not upright[:, width:].any()


def test_a_canvas_holds_every_image():
    rng = np.random.default_rng(0)
    canvas = Canvas()
    for width, height in np.exp(rng.uniform(0, 9, (2000, 2))).astype(int) + 1:
        high, wide = canvas.size(int(height), int(width))
        assert 1 <= min(high, wide) <= 800 and max(high, wide) <= 1333
    with pytest.raises(InputError, match="`longest` \\(=200\\) must lie in 1..160"):
        Canvas(short=96, long=160, side=90, longest=200)


def test_a_page_shows_truth_beside_findings(tmp_path):
    class Truth(NamedTuple):
        boxes: np.ndarray
        labels: np.ndarray

    def example(size, box):
        return photograph(size, box), Truth(np.float32([box]), np.int32([1]))

    class Source:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index == 1:
                raise InputError("it cannot be read")
            return example(*list(CASES.items())[index])

    options = {"canvas": CANVAS, "apply": find_white}
    draw_page(tmp_path / "page.png", DESCRIPTION, {"white": 1.2}, {}, Source(), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["page.png"]
    assert Image.open(tmp_path / "page.png").size == (2 * 480 + 18, 360 + 480 + 18)
