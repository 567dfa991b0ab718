"""A user's own folders of images."""

import pickle

import numpy as np
import pytest
from PIL import Image

from convnext_jax.data.sources import open_source
from convnext_jax.errors import InputError

CLASSES = {"cat": 3, "dog": 2, "emu": 1}


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for label, (name, count) in enumerate(CLASSES.items()):
            folder = tmp_path / split / name / "deeper"
            folder.mkdir(parents=True)
            for i in range(count):
                # Upper case, a palette and a subfolder, as real folders have them.
                image = Image.new("RGB", (5, 4), (label * 80, i, 0))
                (image.convert("P") if i == 2 else image).save(folder / f"{i}.PNG")
            (folder / "notes.txt").write_text("no image")
    return tmp_path


def test_images_and_labels_in_the_order_of_names(root):
    source = open_source("folder", "train", root)
    assert (len(source), source.num_classes, source.class_names) == (6, 3, tuple(CLASSES))
    labels = [source[i][1] for i in range(6)]
    assert labels == [0, 0, 0, 1, 1, 2]
    for index, label in enumerate(labels):
        image, _ = source[index]
        assert image.mode == "RGB" and image.size == (5, 4)
        assert abs(int(np.asarray(image)[0, 0, 0]) - label * 80) <= 2  # the palette's colour
    again = pickle.loads(pickle.dumps(source))
    assert again[4][1] == 1


def test_the_same_files_as_torchvisions(root):
    from oracles import torchvision

    source = open_source("folder", "val", root)
    peer = torchvision.datasets.ImageFolder(str(root / "val"))
    assert list(source.class_names) == peer.classes
    assert len(source) == len(peer)
    for index in range(len(peer)):
        theirs, label = peer[index]
        ours, our_label = source[index]
        assert label == our_label
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda root: (root / "train" / "fox").mkdir(),
            "class `fox` .* in `train` and not in `val`",
        ),
        (lambda root: (root / "val" / "fox").mkdir(), "class `fox` .* in `val` and not in `train`"),
        (
            lambda root: [p.unlink() for p in (root / "train" / "emu").rglob("*.PNG")],
            "class folder .*/train/emu must have images .* and has none",
        ),
    ],
)
def test_folders_that_cannot_be_used(damage, message, root):
    damage(root)
    with pytest.raises(InputError, match=message):
        open_source("folder", "train", root)


def test_splits_that_are_not_there(root, tmp_path):
    with pytest.raises(InputError, match="`trian` .* has train, val; did you mean train"):
        open_source("folder", "trian", root)
    with pytest.raises(InputError, match="has no folders"):
        open_source("folder", "train", root / "nowhere")
    with pytest.raises(InputError, match="`data.dir` must be given"):
        open_source("folder", "train")


def test_an_image_that_cannot_be_decoded_is_named(root):
    (root / "train" / "dog" / "deeper" / "0.PNG").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"the image .*/train/dog/deeper/0.PNG cannot be decoded"):
        open_source("folder", "train", root)[3]
