"""A user's own folders of images."""

import errno
import os
import pickle
import time

import numpy as np
import pytest
from PIL import Image

from convnext_jax import retry
from convnext_jax.data import folder
from convnext_jax.data.folder import FolderSource
from convnext_jax.data.sources import check_same_classes, open_source
from convnext_jax.errors import InputError, Lost

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
            "class folder .*/train/fox must have images .* and has none",
        ),
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


def test_splits_with_other_classes_are_named_with_what_each_has(root):
    (root / "val" / "emu").rename(root / "val" / "gnu")
    training, evaluation = (open_source("folder", split, root) for split in ("train", "val"))
    with pytest.raises(InputError, match="`train` has 3 and `val` 3; only train has emu; only val"):
        check_same_classes(training, evaluation)
    check_same_classes(training, training)


def test_only_the_split_is_looked_at_and_nothing_hidden(root):
    """As archives, notebooks and Kaggle leave folders behind."""
    (root / "test").mkdir()
    (root / "test" / "1.png").write_bytes(b"without a label")
    image = (root / "train" / "cat" / "deeper" / "0.PNG").read_bytes()
    for place in (".cache", "__MACOSX", "train/.ipynb_checkpoints", "train/__MACOSX"):
        (root / place).mkdir()
        (root / place / "0.png").write_bytes(image)
    for place in ("train/cat/.ipynb_checkpoints", "train/cat/__MACOSX"):
        (root / place).mkdir()
        (root / place / "0.png").write_bytes(image)
    (root / "train" / "cat" / "._0.png").write_bytes(b"of macOS")
    training, evaluation = (open_source("folder", split, root) for split in ("train", "val"))
    check_same_classes(training, evaluation)
    assert (len(training), training.class_names) == (6, tuple(CLASSES))
    assert "._0.png" not in training.notes[0]


def test_what_is_left_out_is_counted_and_named(root):
    assert open_source("folder", "val", root).notes == (
        "dataset `folder`, split `val`: 3 files left out, which do not end in .avif .bmp .gif .jpeg"
        " .jpg .pgm .png .ppm .tif .tiff .webp (endings: .txt 3): cat/deeper/notes.txt,"
        " dog/deeper/notes.txt, emu/deeper/notes.txt",
    )
    for ending in ("heic", "avif", "ppm", "pgm"):
        Image.new("L", (5, 4)).save(root / "val" / "cat" / f"x.{ending}", "PPM")
    source = open_source("folder", "val", root)
    assert len(source) == 9 and "(endings: .txt 3, .heic 1): cat/deeper/" in source.notes[0]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(root, monkeypatch):
    real, failing = os.scandir, []

    def scandir(path):
        if failing and str(path).endswith(failing[0][0]):
            raise OSError(failing.pop(0)[1], "no answer", path)
        return real(path)

    monkeypatch.setattr(retry, "WAITS_SECONDS", (0, 0))
    monkeypatch.setattr(os, "scandir", scandir)
    before = len(FolderSource(root, "train"))
    name = FolderSource(root, "train").class_names[0]
    failing[:] = [(name, errno.ESTALE)] * 2
    assert len(FolderSource(root, "train")) == before and not failing
    failing[:] = [(name, errno.ESTALE)] * 3
    with pytest.raises(Lost, match=f"{name} cannot be listed: no answer"):
        FolderSource(root, "train")
    failing[:] = [(name, errno.EACCES)]
    with pytest.raises(InputError, match=f"{name} cannot be listed: no answer"):
        FolderSource(root, "train")


def test_a_million_files_are_passed_to_workers_in_no_time(monkeypatch):
    """Pickled as a list of paths they took 77 MB and 0.5 s for each worker, one after another."""
    names = [f"n{i % 1000:08}/n{i % 1000:08}_{i}.JPEG" for i in range(1_281_000)]
    monkeypatch.setattr(folder, "subfolders", lambda path: ["train"])
    monkeypatch.setattr(folder, "listed", lambda *_: (names, []))
    monkeypatch.setattr(folder.Path, "is_dir", lambda path: True)
    source = folder.FolderSource(folder.Path("images"), "train")
    began = time.process_time()
    pickled = pickle.dumps(source)
    copied = time.process_time() - began
    as_list = pickle.dumps([(name, 0) for name in names])
    # A copy of three arrays; the list takes some ten times as long.
    assert copied < (time.process_time() - began - copied) / 3
    assert len(pickled) < len(as_list)
    with pytest.raises(InputError, match=sorted(names)[-1]):
        pickle.loads(pickled)[len(names) - 1]
