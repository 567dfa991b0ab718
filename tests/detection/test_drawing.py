"""Pictures of detections can be read, and are written where they were asked for."""

import json
import types

import numpy as np
import pytest
from PIL import Image, ImageFont
from pycocotools import mask as coco_mask

from convnext_jax.detection import drawing
from convnext_jax.detection.drawing import draw, palette, side_by_side
from convnext_jax.detection.outputs import described, picture, require_apart, write_outputs
from convnext_jax.detection.pasting import Pasted
from convnext_jax.detection.predictor import Detected
from convnext_jax.errors import InputError, RunError

COLOURS = palette(5)
NAMES = ("ant", "bee", "cat", "dog", "eel")


def found(width=600, height=500):
    """Two objects on grey; the mask of the first is its box's left half."""
    half = np.zeros((100, 80), np.uint8)
    half[:, :40] = 1
    return Detected(
        Image.new("RGB", (width, height), (90, 90, 90)),
        np.array([[60, 200, 140, 300], [300, 10, 500, 400.5]], np.float32),
        np.array([0.912, 0.3], np.float32),
        np.array([2, 4], np.int32),
        (Pasted(200, 60, half), Pasted(10, 300, np.zeros((391, 200), np.uint8))),
    )


def test_colours_of_classes_can_be_told_apart():
    colours = palette(80)
    distances = np.linalg.norm(
        drawing._lab(colours)[:, None] - drawing._lab(colours)[None], axis=-1
    )
    np.fill_diagonal(distances, np.inf)
    # A difference of 2.3 is the least that people notice.
    assert distances.min() > 15
    assert distances[:20, :20].min() > 35
    np.testing.assert_array_equal(palette(12), colours[:12])
    assert len(np.unique(palette(1203), axis=0)) == 1203  # of LVIS
    assert palette(5000).shape == (5000, 3)


def test_lab_is_that_of_known_colours():
    # The textbook's values of sRGB's white, black, red and blue, to the two decimals it gives.
    colours = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    known = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(drawing._lab(colours), known, atol=0.02)


def test_objects_are_drawn_where_they_are():
    pixels = np.asarray(picture(found(), NAMES, COLOURS)).astype(int)
    assert pixels.shape == (500, 600, 3)
    assert (pixels[499, 0] == 90).all() and (pixels[250, 130] == 90).all()
    assert (pixels[250, 60] == COLOURS[2]).all()  # the outline
    assert (pixels[250, 140] == COLOURS[2]).all()
    mixed = 90 + drawing._SHARE * (COLOURS[2].astype(int) - 90)
    assert np.abs(pixels[250, 80] - mixed).max() <= 0.5
    assert (pixels[405:, 300:] == 90).all()  # nothing below the second
    assert (pixels[401 - 1, 400] == COLOURS[4]).all()


@pytest.mark.parametrize("size", [(4000, 3000), (600, 500), (96, 96), (20, 30), (700, 3), (1, 1)])
def test_any_image_gives_a_picture_with_names(size):
    image = Image.new("RGB", size, (90, 90, 90))
    boxes = np.array([[0, 0, *size], [-5, -5, 3, 3], [size[0] / 2, size[1] / 2, *size]])
    drawn = draw(image, boxes, ["cat"] * 3, COLOURS[:3], scores=np.array([0.9, 0.5, 0.31]))
    factor = drawn.width // image.width
    assert drawn.size == (image.width * factor, image.height * factor)
    assert max(drawn.size) >= 480
    if min(drawn.size) > 100:
        # Letters are nearly black or white, which neither image nor colours are.
        pixels = np.asarray(drawn)
        letters = (pixels < 40).all(-1) | (pixels > 215).all(-1)
        assert letters.sum() > 100
        rows = np.flatnonzero(letters.any(1))
        assert rows.max() - rows.min() > drawn.width / 100


def test_captions_lie_inside_and_beside_each_other():
    canvas = types.SimpleNamespace(
        textbbox=lambda at, text, font: (0, 0, 6 * len(text), 10)  # a font of equal letters
    )
    font, taken = ImageFont.load_default(12), []
    for corner in ([10, 50, 60, 90], [10, 50, 60, 90], [10, 50, 60, 90], [190, 0, 199, 9]):
        text, place = drawing._caption(canvas, font, "a b\nc", " 90%", corner, (200, 100), taken)
        assert text == "a b c 90%"
        assert 0 <= place[0] < place[2] < 200 and 0 <= place[1] < place[3] < 100
    for i, one in enumerate(taken):
        assert not any(drawing._touch(one, other) for other in taken[:i])
    text, _ = drawing._caption(canvas, font, "x" * 50, " 90%", [0, 50, 9, 9], (200, 100), taken)
    assert text == "x" * 25 + "... 90%"  # (200 - 4) / 6 letters in all
    text, place = drawing._caption(canvas, font, "abc", " 90%", [0, 0, 4, 4], (5, 5), taken)
    assert place[2] < 5 and place[3] < 5


def test_names_need_no_letters_of_the_font():
    image = Image.new("RGB", (600, 400))
    draw(image, [[5, 5, 50, 50]] * 2, ["犬\x00\U0001f415", ""], COLOURS[:2])


def test_nothing_found_is_the_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (500, 480, 3), np.uint8))
    nothing = np.zeros(0, np.float32)
    empty = Detected(image, nothing.reshape(0, 4), nothing, np.zeros(0, np.int32), ())
    np.testing.assert_array_equal(np.asarray(picture(empty, NAMES, COLOURS)), np.asarray(image))
    assert described(empty, None) == {"height": 500, "width": 480, "detections": []}


def test_a_sheet_of_large_pictures_is_not_large():
    large, tall = Image.new("RGB", (3000, 2000)), Image.new("RGB", (100, 2000))
    sheet = side_by_side([(large, large), (tall, large)])
    assert sheet.width == 2 * 480 + 3 * 6
    assert sheet.height == 320 + 480 + 3 * 6


def test_json_says_what_was_found():
    row = described(found(), NAMES)
    first, second = row["detections"]
    assert json.loads(json.dumps(row)) == row
    assert (row["height"], row["width"]) == (500, 600)
    assert (first["label"], first["name"], first["score"]) == (2, "cat", 0.912)
    assert first["box"] == [60, 200, 140, 300] and second["box"][3] == 400.5
    bitmap = coco_mask.decode(first["mask"])
    assert bitmap.shape == (500, 600) and bitmap[200:300, 60:100].all()
    assert first["area"] == bitmap.sum() == 4000
    assert second["area"] == 0
    assert described(found(), None)["detections"][1]["name"] == "4"


def test_outputs_are_whole_or_not_there(tmp_path):
    seen = found()
    row = {"image": "x.jpg"} | described(seen, NAMES)
    write_outputs(tmp_path, "fine/x", seen, NAMES, COLOURS, row)
    names = ["x.json", "x_detections.png"]
    assert sorted(path.name for path in (tmp_path / "fine").iterdir()) == names
    assert json.loads((tmp_path / "fine/x.json").read_text()) == row
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "fine/x_detections.png")),
        np.asarray(picture(seen, NAMES, COLOURS)),
    )
    (tmp_path / "x.json").mkdir()
    with pytest.raises(RunError, match="writing below"):
        write_outputs(tmp_path, "x", seen, NAMES, COLOURS, row)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fine", *names]


def test_an_output_never_takes_the_place_of_an_image(tmp_path):
    (tmp_path / "a_detections.png").write_bytes(b"somebody's")
    (tmp_path / "link").symlink_to(tmp_path)
    images = [str(tmp_path / "a.jpg"), str(tmp_path / "a_detections.png")]
    with pytest.raises(InputError, match="a_detections.png would be overwritten by the output for"):
        require_apart(tmp_path / "link", ["a", "a_detections"], images)
    require_apart(tmp_path / "out", ["a", "a_detections"], images)
