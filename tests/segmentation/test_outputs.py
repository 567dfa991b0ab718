"""What is written of segmented images lands where it was asked for, whole."""

import numpy as np
import pytest
from PIL import Image

from convnext_jax.errors import InputError, RunError
from convnext_jax.segmentation.colours import page, palette
from convnext_jax.segmentation.outputs import output_names, write_outputs
from convnext_jax.segmentation.predictor import Segmentation

COLOURS = palette(3)


def test_names_are_the_paths_within_what_was_named(tmp_path, monkeypatch):
    for folder in ("imgs/deep", "imgs2", "here"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    # A folder whose name begins as another's is not within that.
    images = ["../imgs/a.jpg", "../imgs/deep/b.jpg", "../imgs2/x.jpg"]
    assert output_names(images, ["../imgs", "../imgs2/x.jpg"]) == ["a", "deep/b", "x"]
    assert output_names(["./a.jpg", "../photo.jpg"], [".", "../photo.jpg"]) == ["a", "photo"]
    with pytest.raises(InputError, match="would both be written to a_labels.png"):
        output_names(["a.jpg", "../imgs/a.jpg"], ["a.jpg", "../imgs"])


def test_a_file_that_cannot_be_written_leaves_no_part(tmp_path):
    found = Segmentation(Image.new("RGB", (5, 4)), np.ones((4, 5), np.uint8))
    write_outputs(tmp_path, "fine/x", found, COLOURS, {"image": "x"})
    names = ["x.json", "x_labels.png", "x_overlay.png"]
    assert sorted(path.name for path in (tmp_path / "fine").iterdir()) == names
    (tmp_path / "x_overlay.png").mkdir()
    with pytest.raises(RunError, match="writing below"):
        write_outputs(tmp_path, "x", found, COLOURS, {"image": "x"})
    assert not list(tmp_path.glob("*part*"))


def test_a_page_of_large_pictures_is_not_large():
    labels = np.zeros((1500, 2000), np.uint8)
    rows = [(Image.new("RGB", (2000, 1500)), labels, labels)] * 4
    sheet = page(rows, COLOURS)
    assert max(sheet.size) < 4000
