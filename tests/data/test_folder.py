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


def files_of(source):
    return [source._names[i] for i in range(len(source))]


@pytest.fixture
def classes(tmp_path):
    """Folders of classes, and no splits."""
    for name, count in (("cat", 37), ("dog", 20), ("emu", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.png").write_bytes(b"not read")
    return tmp_path


def test_parts_share_each_class_at_random_and_for_ever(classes):
    everything = FolderSource(classes, ".")
    training, evaluation = FolderSource(classes, ".[:80%]"), FolderSource(classes, ".[80%:]")
    assert training.class_names == evaluation.class_names == ("cat", "dog", "emu")
    one, other = files_of(training), files_of(evaluation)
    assert sorted(one + other) == sorted(files_of(everything))
    counts = [[sum(f.startswith(name) for f in part) for name in CLASSES] for part in (one, other)]
    assert counts == [[30, 16, 2], [7, 4, 0]]
    (note,) = evaluation.notes
    assert note.endswith("no image of 1 of 3 classes, which have too few to share: emu")
    # Not the last by name: the places of those of `cat` are spread.
    places = [sorted(f"cat/{i}.png" for i in range(37)).index(f) for f in other[:7]]
    assert max(places) - min(places) > 15 and min(places) < 20
    # Another file moves at most one per class.
    (classes / "cat" / "new.png").write_bytes(b"not read")
    again = files_of(FolderSource(classes, ".[80%:]"))
    assert len(set(again) ^ set(other)) <= 2


@pytest.mark.parametrize("split", ["train[:80]", "train[80%", "train[:0%]", "[:1%]", "a[50%:50%]"])
def test_parts_that_are_none(split, classes):
    with pytest.raises(InputError, match="must be a folder, or a part of one in whole percent"):
        FolderSource(classes, split)


def test_classes_in_place_of_splits_are_recognised(classes):
    with pytest.raises(
        InputError, match=r"has cat, dog, emu; if those are the classes, `\.\[:80%\]`"
    ):
        FolderSource(classes, "train")


@pytest.fixture
def flat(tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("1.png", "2.png", "3.jpg", "4.png"):
        Image.new("RGB", (5, 4)).save(tmp_path / "train" / name)
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "file_name,label\n1.png,10\n2.png,9\n4.png,9\n",
        "id,class\n1,10\n2,9\n./4,9\n",
        "label,image\n10,1\n9,2\n9,4\n",
        "\ufefflabel,x,file_name\r\n10,a,1.png\r\n9,b,train/2.png\r\n9,c,./4.png\r\n",
        "file_name;label\r\n1.png;10\r\n2.png;9\r\ntrain\\4.png;9\r\n;\r\n\r\n",
    ],
)
def test_labels_from_a_table_inside(text, flat):
    (flat / "train" / "metadata.csv").write_text(text)
    source = FolderSource(flat, "train")
    assert source.class_names == ("9", "10")  # as numbers
    assert files_of(source) == ["2.png", "4.png", "1.png"]
    assert [source[i][1] for i in range(3)] == [0, 0, 1]
    assert source.notes == (
        f"dataset `folder`, split `train`: labels are those of {flat / 'train' / 'metadata.csv'}",
        "dataset `folder`, split `train`: 1 images left out, which it does not have: 3.jpg",
    )


def test_a_table_may_name_images_in_folders(root):
    """As on the Hub, where folders are no classes if a table has their labels."""
    rows = [f"cat/deeper/{i}.PNG,{'old' if i else 'new'}" for i in range(3)]
    (root / "train" / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    source = FolderSource(root, "train")
    assert source.class_names == ("new", "old")
    assert files_of(source) == [f"cat/deeper/{i}.PNG" for i in range(3)]


def test_labels_from_a_table_beside(flat):
    with pytest.raises(InputError, match=r"or a table .*train/metadata.csv or .*/train.csv"):
        FolderSource(flat, "train")
    (flat / "train.csv").write_text("image,label\n1,dog\n2,cat\n3,dog\n")
    assert FolderSource(flat, "train").class_names == ("cat", "dog")
    # Folders of classes are labels, whatever else lies about; but that is said.
    (flat / "train" / "fox").mkdir()
    Image.new("RGB", (5, 4)).save(flat / "train" / "fox" / "5.png")
    (flat / "train" / "metadata.csv").write_text("file_name,text\nfox/5.png,a fox\n")
    source = FolderSource(flat, "train")
    assert source.class_names == ("fox",)
    for note, name in zip(source.notes, ("train/metadata.csv", "train.csv"), strict=False):
        assert f"{flat / name} is not used, as {flat / 'train'} has folders" in note


def test_the_root_itself_may_have_a_table(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (5, 4)).save(tmp_path / name)
    with pytest.raises(InputError, match="has no folders"):
        FolderSource(tmp_path, ".")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,x\nb.png,y\n")
    assert FolderSource(tmp_path, ".").class_names == ("x", "y")


def test_a_folder_whose_name_looks_like_a_part(classes):
    (classes / "tr[1]" / "cat").mkdir(parents=True)
    (classes / "tr[1]" / "cat" / "0.png").write_bytes(b"not read")
    assert len(FolderSource(classes, "tr[1]")) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must be a CSV file with a header, and is empty"),
        ("file_name,label\n", "must have a row for each image"),
        ("a,b,c\n1,2,3\n", "must have columns `file_name` and `label`, or only two; .* a, b, c"),
        ("a\n1\n", "must have columns"),
        ("a,label\n1.png,\n", "lacks one in row 1 after the header: 1.png"),
        ("1.png,cat\n2.png,dog\n", "must begin with a header, .* names the image 1.png"),
        ("a,label\n1,cat\n1.png,dog\n", "one class for an image, and has cat and dog for 1.png"),
        ("a,label\n7,cat\n8,cat\n1,cat\n", "2 of those it names are not there: 7, 8"),
        ('a,label\n"1,cat\n', "must be a CSV file"),
        ("a,label\n\xff,cat\n".encode("latin-1"), "in UTF-8"),
    ],
)
def test_tables_that_cannot_be_used(text, message, flat):
    path = flat / "train" / "metadata.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        FolderSource(flat, "train")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
