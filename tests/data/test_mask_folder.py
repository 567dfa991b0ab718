"""A user's own folders of images and masks."""

import builtins
import errno
import os
import pickle
import time

import numpy as np
import pytest
from data.masks import UPRIGHT, grey_png, photograph, saved, values, write, write_folder
from PIL import Image

from convnext_jax import retry
from convnext_jax.data.mask_folder import MaskFolder
from convnext_jax.data.sources import check_same_classes
from convnext_jax.errors import InputError, Lost

CLASSES = ("sky", "road", "tree")


@pytest.fixture
def root(tmp_path):
    for split, count in (("train", 9), ("val", 4)):
        write_folder(tmp_path, count, split=split)
    return tmp_path


def fails(match, *arguments, **options):
    with pytest.raises(InputError, match=match) as caught:
        MaskFolder(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_pairs_in_the_order_of_names(root):
    written = write_folder(root, 9)
    source = MaskFolder(root, "train")
    assert (len(source), source.class_names, source.num_classes) == (9, CLASSES, 3)
    assert (source.name, source.split, source.num_files) == ("folder", "train", 0)
    assert (source.notes, str(source)) == ((), "dataset `folder`, split `train`")
    again = pickle.loads(pickle.dumps(source))
    for index, name in enumerate(sorted(written)):
        image, labels = source[index]
        (file,) = (root / "images" / "train").glob(f"{name}.*")
        np.testing.assert_array_equal(image, np.asarray(Image.open(file).convert("RGB")))
        assert image.mode == "RGB" and labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, written[name])
        np.testing.assert_array_equal(again[index][1], labels)
    check_same_classes(source, MaskFolder(root, "val"))
    for index in (-1, 9):
        with pytest.raises(IndexError, match=rf"`index` \(={index}\) must be in 0..8"):
            source[index]


def test_255_is_ignored_unless_something_else_is_said(root):
    mask = root / "annotations" / "val" / "a" / "000.png"
    raw = np.asarray(Image.open(mask)) + np.uint8(1)
    raw[:5] = 255
    write(mask, grey_png(raw))
    for path in sorted((root / "annotations" / "val").rglob("*.png"))[1:]:
        write(path, grey_png(np.asarray(Image.open(path)) + np.uint8(1)))
    labels = MaskFolder(root, "val", first_label=1)[0][1]
    assert (labels[:5] == 255).all()
    np.testing.assert_array_equal(labels[5:], raw[5:] - 1)
    raw[:5] = 0
    write(mask, grey_png(raw))
    labels = MaskFolder(root, "val", first_label=1, ignored=0)[0][1]
    assert (labels[:5] == 255).all()
    with pytest.raises(
        InputError, match=r"val/a/000.png has \d+ pixels of value 0; values must be"
    ):
        MaskFolder(root, "val", first_label=1)[0]
    fails("`ignored` must be given for 3 classes from `first_label`", root, "val", first_label=253)
    fails("there must be 1 to 2 classes, not 3", root, "val", first_label=254)


def remove(root, *parts):
    path = root.joinpath(*parts)
    path.unlink()


def no_images(root):
    for path in (root / "images" / "train").rglob("*.*"):
        path.unlink()


def two_endings(root):
    write(root / "images" / "train" / "a" / "000.jpeg", Image.new("RGB", (5, 5)))


def several_alone(root):
    for i in range(5):
        write(root / "annotations" / "train" / f"x{i}.png", Image.new("L", (5, 5)))


DAMAGES = {
    "no annotation": (
        lambda root: remove(root, "annotations", "train", "b", "003.png"),
        "each file in .*/images must have an annotation of the same name without the ending, and 1"
        " of 9 have none: train/b/003.png$",
    ),
    "no image": (
        several_alone,
        "each file in .*/annotations must have an image of the same name without the ending, and 5"
        r" of 14 have none: train/x0.png, train/x1.png, train/x2.png, \.\.\.$",
    ),
    "empty": (no_images, r".*/images/train must have files \(.avif, .*\), and has none"),
    "only another ending": (
        lambda root: [
            path.rename(path.with_suffix(".tif")) for path in root.glob("annotations/train/*/*")
        ],
        r".*/annotations/train must have files \(.png\), and has none",
    ),
    "twice": (two_endings, r"must differ in more than their ending.*000\.(png|jpeg) and .*000\."),
    "no classes": (
        lambda root: remove(root, "classes.txt"),
        r"classes.txt must have the name of each class, one a line, as UTF-8 text: FileNotFound",
    ),
    "classes in another encoding": (
        lambda root: (root / "classes.txt").write_bytes("Stra\xdfe".encode("latin-1")),
        "as UTF-8 text: UnicodeDecodeError",
    ),
    "no class": (
        lambda root: (root / "classes.txt").write_text(""),
        "must name a class in each line, and line 1 is empty",
    ),
    "an empty line": (
        lambda root: (root / "classes.txt").write_text("sky\nroad\n \ntree\n"),
        "must name a class in each line, and line 3 is empty",
    ),
    "a class twice": (
        lambda root: (root / "classes.txt").write_text("sky\nroad\ntree\n road\n"),
        "must have each class once, and has `road` in lines 2 and 4",
    ),
    "256 classes": (
        lambda root: (root / "classes.txt").write_text("\n".join(map(str, range(256)))),
        "there must be 1 to 255 classes, not 256",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_folders_that_cannot_be_used(case, root):
    damage, message = DAMAGES[case]
    damage(root)
    fails(message, root, "train")


def test_names_of_classes_may_be_any_text(root):
    text = "\ufeffBlumenstra\xdfe\r\n \u5929\u7a7a \r\ntraffic light\r\n"
    (root / "classes.txt").write_bytes(text.encode())
    names = MaskFolder(root, "train").class_names
    assert names == ("Blumenstra\xdfe", "\u5929\u7a7a", "traffic light")


def test_splits_that_are_not_there(root):
    fails(
        "split `trian` must be a folder in .*/images and in .*/annotations; .*/images has train,"
        " val; .*/annotations has train, val; did you mean train",
        root,
        "trian",
    )
    fails("images has no folders; .*annotations has no folders", root / "nowhere", "train")
    (root / "images" / "test").mkdir()
    fails("/images has test, train, val; .*/annotations has train, val", root, "test")


def test_hidden_files_and_other_endings(root):
    """As notebooks, macOS and labelling tools leave them behind."""
    for part in ("images", "annotations"):
        write(root / part / "train" / ".ipynb_checkpoints" / "000.png", b"")
        write(root / part / "train" / "__MACOSX" / "000.png", b"")
        write(root / part / "train" / "a" / "._000.png", b"")
        write(root / part / "train" / "a" / "000.json", b"{}")
    upper = root / "annotations" / "train" / "a" / "000.png"
    upper.rename(upper.with_suffix(".PNG"))
    source = MaskFolder(root, "train")
    assert len(source) == 9
    source[0]
    assert len(source.notes) == 2
    assert "images: 1 files left out, which do not end in .avif" in source.notes[0]
    assert source.notes[1] == (
        "dataset `folder`, split `train`, annotations: 1 files left out, which do not end in .png"
        " (endings: .json 1): train/a/000.json"
    )


def test_what_cannot_be_read_is_named(root):
    image, mask = root / "images" / "train" / "a" / "000.png", root / "annotations" / "train" / "a"
    mask = mask / "000.png"
    good = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(InputError, match=f"^the image {image} cannot be decoded: Unident"):
        MaskFolder(root, "train")[0]
    image.write_bytes(good)
    Image.open(mask).crop((0, 0, 7, 9)).save(mask)
    with pytest.raises(InputError, match=f"{image} has 20 x 24 .* its annotation 9 x 7; they"):
        MaskFolder(root, "train")[0]
    source = MaskFolder(root, "train")
    mask.unlink()
    with pytest.raises(InputError, match=f"^the annotation {mask} cannot be decoded: FileNotFound"):
        source[0]


def test_the_largest_bounds_every_mask(root):
    write(root / "annotations" / "val" / "a" / "000.png", Image.new("L", (300, 2)))
    masks = [np.asarray(Image.open(path)) for path in (root / "annotations" / "val").rglob("*.png")]
    source = MaskFolder(root, "val")
    expected = tuple(max(mask.shape[axis] for mask in masks) for axis in (0, 1))
    assert source.largest == expected == pickle.loads(pickle.dumps(source)).largest
    assert MaskFolder(root, "val", exif=True).largest == (300, 300)
    write(root / "annotations" / "val" / "a" / "002.png", Image.new("RGB", (30, 2)))
    assert source.largest == expected  # is known
    with pytest.raises(InputError, match="a/002.png is an image of kind RGB with 8 bits"):
        MaskFolder(root, "val").largest  # noqa: B018


def test_images_are_turned_with_their_masks(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    image = photograph(np.random.default_rng(0), 12, 30)
    raw = values(np.random.default_rng(1), 12, 30, 2)
    write(tmp_path / "images" / "train" / "1.jpg", saved(image, "JPEG", exif=exif))
    write(tmp_path / "annotations" / "train" / "1.png", grey_png(raw))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    image, labels = MaskFolder(tmp_path, "train")[0]
    assert (image.size, labels.tolist()) == ((30, 12), raw.tolist())
    source = MaskFolder(tmp_path, "train", exif=True)
    image, labels = pickle.loads(pickle.dumps(source))[0]
    assert (image.size, labels.tolist()) == ((12, 30), UPRIGHT[8](raw).tolist())
    height, width = source.largest
    assert height >= 30 and width >= 12


def test_the_histogram_says_what_is_frequent_and_what_is_missing(tmp_path):
    classes = [f"class {i}" for i in range(20)]
    written = write_folder(tmp_path, 12, classes=classes, highest=4)
    for name, raw in written.items():
        raw[raw == 3] = 255
        write(tmp_path / "annotations" / "train" / f"{name}.png", grey_png(raw))
    assert MaskFolder(tmp_path, "train").notes == ()
    pixels = np.concatenate([raw.ravel() for raw in written.values()])
    shares = {value: (pixels == value).sum() / len(pixels) for value in (0, 1, 2, 4, 255)}
    ignored = shares.pop(255)
    order = sorted(shares, key=lambda value: -shares[value])
    frequent = ", ".join(f"class {value} {100 * shares[value]:.1f}%" for value in order)
    what = "dataset `folder`, split `train`"
    assert MaskFolder(tmp_path, "train", histogram=True).notes == (
        f"{what}: of the pixels of 12 annotations, spread evenly over 12, {100 * ignored:.1f}% are"
        f" ignored; the most frequent classes: {frequent}",
        f"{what}: 16 of the 20 classes have no pixel in these annotations: class 3, "
        + ", ".join(f"class {i}" for i in range(5, 14))
        + " and 6 more",
    )


def test_the_histogram_ends_on_values_of_no_class(root):
    (root / "classes.txt").write_text("sky\nroad\n")
    fails(r"train/a/000.png has \d+ pixels of value 2; values must", root, "train", histogram=True)


def test_a_file_system_that_does_not_answer(root, monkeypatch):
    real, failing = builtins.open, []

    def fails_at(path, *arguments, **options):
        if failing and str(path).endswith("000.png"):
            raise OSError(failing.pop(), os.strerror(errno.ESTALE), path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(retry, "WAITS_SECONDS", (0, 0))
    monkeypatch.setattr(builtins, "open", fails_at)
    source = MaskFolder(root, "train")
    failing[:] = [errno.ESTALE]
    with pytest.raises(InputError, match="cannot be decoded: OSError") as caught:
        source[0]
    assert retry.is_passing(caught.value)  # so that it is read again
    assert source[0][1].shape == (20, 24)
    expected = MaskFolder(root, "train").largest
    failing[:] = [errno.ESTALE] * 2
    assert source.largest == expected and not failing
    failing[:] = [errno.ESTALE] * 2
    assert len(MaskFolder(root, "train", histogram=True).notes) == 1 and not failing
    for lost in (
        lambda: MaskFolder(root, "train").largest,
        lambda: MaskFolder(root, "train", histogram=True),
    ):
        failing[:] = [errno.ESTALE] * 3
        with pytest.raises(Lost, match="a/000.png cannot be .* Stale file handle"):
            lost()


def test_twenty_thousand_pairs_are_listed_and_passed_on_in_no_time(tmp_path, monkeypatch):
    """As many as ADE20K has; no file of them is opened for that."""
    for part, ending in (("images", "jpg"), ("annotations", "png")):
        for i in range(20):
            (tmp_path / part / "train" / f"{i:02d}").mkdir(parents=True)
        for i in range(20_000):
            path = f"{tmp_path}/{part}/train/{i % 20:02d}/ADE_train_{i:08d}.{ending}"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    opened = []
    real = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda path, *a, **o: opened.append(path) or real(path, *a, **o)
    )
    began = time.process_time()
    source = MaskFolder(tmp_path, "train")
    listed = time.process_time() - began
    assert len(source) == 20_000 and len(opened) <= 1
    # 0.1 s where it was measured; opening all files would take some 20 times as long.
    assert listed < 1.5
    began = time.process_time()
    pickled = pickle.dumps(source)
    # Two names of 28 bytes and two ends of 4 for each pair, copied.
    assert time.process_time() - began < 0.1
    assert len(pickled) < 80 * 20_000
    with pytest.raises(InputError, match="train/19/ADE_train_00019999.jpg cannot be decoded"):
        pickle.loads(pickled)[19_999]
