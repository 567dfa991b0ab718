"""From files to detections in their pixels, with a stand-in for the model."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from convnext_jax.data.coco_tools import encode
from convnext_jax.data.instances import Objects
from convnext_jax.detection import drawing
from convnext_jax.detection.drawing import palette
from convnext_jax.detection.page import draw_page
from convnext_jax.detection.predictor import Detected, Failure, Predictor
from convnext_jax.detection.transforms import EvalCanvas
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription, ModelSpec
from convnext_jax.models.variants import Preprocessing

FEEDING = Preprocessing(input_size=90, longest_side=150)
DESCRIPTION = ModelDescription(ModelSpec("convnext_atto", 4), FEEDING)
CANVAS = EvalCanvas(canvas=(96, 160), shorter=90, longer=150)


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
    return Predictor(DESCRIPTION, {"white": 1.2}, {}, apply=find_white, **options)


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
        scale = np.divide(size, CANVAS.sizes(np.array([size[::-1]]))[0, ::-1])
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


class Source:
    """Three of the cases; the second cannot be read."""

    name = split = "cases"
    class_names = ("a", "b", "c", "d")
    category_ids = (1, 2, 3, 4)
    num_classes, num_files, notes = 4, 0, ()
    sizes = counts = np.zeros((3, 2), np.int32)

    def __len__(self):
        return 3

    def objects(self, index):
        size, (x1, y1, x2, y2) = list(CASES.items())[index]
        pixels = np.zeros(size[::-1], np.uint8)
        pixels[y1:y2, x1:x2] = 1
        return Objects(
            bbox=np.array([[x1, y1, x2 - x1, y2 - y1]], np.float64),
            labels=np.array([2], np.int32),
            is_crowd=np.array([index == 2]),
            area=np.array([1.0]),
            masks=(encode(pixels),),
            height=size[1],
            width=size[0],
            image_id=index,
            index=index,
        )

    def __getitem__(self, index):
        if index == 1:
            raise InputError("it cannot be read")
        return photograph(*list(CASES.items())[index]), self.objects(index)


def test_a_page_shows_truth_beside_findings(tmp_path):
    options = {"apply": find_white}
    draw_page(tmp_path / "page.png", DESCRIPTION, {"white": 1.2}, {}, Source(), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["page.png"]
    page = Image.open(tmp_path / "page.png")
    assert page.size == (2 * 480 + 18, 360 + 480 + 18)
    # The middle of the first object, in the first of the columns: white under its class's colour.
    x1, y1, x2, y2 = next(iter(CASES.values()))
    at = (6 + round((x1 + x2) / 2 * 480 / 400), 6 + round((y1 + y2) / 2 * 480 / 400))
    mixed = 255 + drawing._SHARE * (palette(4)[2].astype(float) - 255)
    # Colours are rounded, and pictures resized.
    assert np.abs(np.array(page.getpixel(at)) - mixed).max() <= 2
