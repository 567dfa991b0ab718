"""ADE20K, from a miniature archive to examples."""

import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from data import miniature_ade as mini
from data.ilsvrc import prepare as run_prepare
from data.masks import grey_png, photograph, saved
from PIL import Image

from convnext_jax.data import prepare
from convnext_jax.data.ade20k_classes import CLASSES, PALETTE
from convnext_jax.data.masks import open_masks
from convnext_jax.data.sources import check_same_classes, open_source
from convnext_jax.errors import InputError

FILES = mini.files()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Data directory of a dataset that the real command prepared from the archive."""
    base = tmp_path_factory.mktemp("ade")
    mini.write_archive(base, FILES)
    done = run_prepare("ade20k", f"--manual_dir={base}", f"--data_dir={base / 'tfds'}")
    assert done.returncode == 0, done.stderr
    out = done.stdout.splitlines()[-6:]
    assert out[:3] == ["ade20k is prepared:", "  train: 6 examples", "  validation: 3 examples"]
    assert out[4:] == [
        "note: train: 6 images were prepared where ADE20K has 20210, so results are not those of"
        " the benchmark",
        "note: validation: 3 images were prepared where ADE20K has 2000, so results are not those"
        " of the benchmark",
    ]
    (base / mini.ARCHIVE).unlink()
    return base / "tfds"


def numbers(source):
    """The number of each example's file."""
    names = [source._records[i]["file_name"].decode() for i in range(len(source))]
    return [int(name.removesuffix(".jpg").rpartition("_")[2]) for name in names]


def test_classes_and_colours():
    assert len(CLASSES) == len(set(CLASSES)) == len(PALETTE) == 150
    assert all(name == name.strip() and name and "," not in name for name in CLASSES)
    # Of the list in the paper's order of pixels, from its beginning, middle and end.
    named = {0: "wall", 7: "bed", 12: "person", 75: "swivel chair", 89: "television", 149: "flag"}
    assert {label: CLASSES[label] for label in named} == named
    assert len(set(PALETTE)) == 149 and PALETTE[6] == PALETTE[48] == (140, 140, 140)
    assert {len(colour) for colour in PALETTE} == {3}
    assert all(0 <= value <= 255 for colour in PALETTE for value in colour)


@pytest.mark.parametrize("split, count", [("train", 6), ("validation", 3)])
def test_examples_are_the_files(data_dir, split, count):
    source = open_masks("ade20k", split, data_dir)
    assert (len(source), source.class_names, source.num_classes) == (count, CLASSES, 150)
    assert sorted(numbers(source)) == list(range(1, count + 1))
    for index, number in enumerate(numbers(source)):
        image_file = FILES[mini.path("images", split, number)]
        annotation_file = FILES[mini.path("annotations", split, number)]
        record = source._records[index]
        assert (record["image"], record["label"]) == (image_file, annotation_file)
        assert record["scene"].decode() == f"scene_{number}"
        image, labels = source[index]
        expected = np.asarray(Image.open(io.BytesIO(image_file)).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(image), expected)
        raw = np.asarray(Image.open(io.BytesIO(annotation_file))).astype(int)
        np.testing.assert_array_equal(labels, np.where(raw == 0, 255, raw - 1))
        assert image.mode == "RGB" and labels.dtype == np.uint8
    again = pickle.loads(pickle.dumps(source))
    assert (len(again), again.class_names, again.notes) == (count, CLASSES, source.notes)
    np.testing.assert_array_equal(again[1][1], source[1][1])


def test_splits_and_what_is_said_of_them(data_dir):
    train, part, both = (
        open_masks("ade20k", split, data_dir)
        for split in ("train", "train[:50%]", "train+validation")
    )
    assert (len(part), len(both), str(part)) == (3, 9, "dataset `ade20k`, split `train[:50%]`")
    check_same_classes(train, both)
    assert train.notes == (
        "dataset `ade20k`, split `train`: 6 images were prepared where ADE20K has 20210, so results"
        " are not those of the benchmark",
    )
    assert len(both.notes) == 2
    counted = open_masks("ade20k", "train", data_dir, histogram=True).notes
    assert counted[0] == train.notes[0] and len(counted) == 3
    assert "of the pixels of 6 annotations, spread evenly over 6, " in counted[1]


def test_the_largest_is_stored_with_the_dataset(data_dir):
    for split in ("train", "validation"):
        sizes = [
            np.asarray(Image.open(io.BytesIO(content))).shape
            for name, content in FILES.items()
            if f"annotations/{mini.SPLITS[split][0]}" in name
        ]
        expected = tuple(np.max(sizes, axis=0).tolist())
        source = open_masks("ade20k", split, data_dir)
        source._record = None  # nothing is read for it
        assert source.largest == expected
        assert open_masks("ade20k", f"{split}[:1]", data_dir).largest == expected
        assert open_masks("ade20k", split, data_dir, exif=True).largest == (max(expected),) * 2
    parts = [open_masks("ade20k", split, data_dir).largest for split in ("train", "validation")]
    both = open_masks("ade20k", "train+validation", data_dir).largest
    assert both == tuple(np.max(parts, axis=0))
    stored = json.loads((data_dir / "ade20k" / "1.0.0" / "metadata.json").read_text())["masks"]
    assert (stored["first_label"], stored["ignored"]) == (1, 0)
    assert list(stored["largest"]) == ["train", "validation"]


def test_how_values_become_labels_is_the_datasets(data_dir):
    open_masks("ade20k", "train", data_dir, first_label=1, ignored=0)
    for given in ({"first_label": 1}, {"ignored": 255}, {"first_label": 2, "ignored": 0}):
        with pytest.raises(InputError, match="must not be given for the dataset `ade20k`, which"):
            open_masks("ade20k", "train", data_dir, **given)
    with pytest.raises(InputError, match="`class_names` must not be given for .*`label` names its"):
        open_masks("ade20k", "train", data_dir, class_names=CLASSES)


def test_splits_that_are_not_there(data_dir):
    message = r"split `val` of dataset `ade20k` must be one of train \(6\), validation \(3\)"
    with pytest.raises(InputError, match=message):
        open_masks("ade20k", "val", data_dir)


def test_it_has_no_class_for_each_image(data_dir):
    with pytest.raises(InputError, match="must have one image and one class label to classify"):
        open_source("ade20k", "train", data_dir)


def test_it_is_known_by_name(tmp_path):
    with pytest.raises(InputError, match="must be `ade20k`, .*; did you mean ade20k"):
        open_masks("ade20", "train", tmp_path)
    with pytest.raises(InputError, match="`python -m convnext_jax.data.prepare ade20k --data_dir="):
        open_masks("ade20k", "train", tmp_path)


def test_reading_imports_neither_tensorflow_nor_jax(data_dir):
    code = (
        "import sys; from convnext_jax.data import masks;"
        f"source = masks.open_masks('ade20k', 'train', {str(data_dir)!r}, histogram=True);"
        "source[3], source.largest;"
        "print([m for m in ('tensorflow', 'jax', 'torch', 'grain') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("inside", [True, False], ids=["beside", "inside"])
def test_the_extracted_folder_is_as_good(tmp_path, data_dir, inside):
    mini.write_folder(tmp_path, mini.files(scenes=False))
    (tmp_path / mini.FOLDER / "images" / "training" / ".DS_Store").write_bytes(b"")
    manual_dir = tmp_path / mini.FOLDER if inside else tmp_path
    prepare.prepare("ade20k", str(tmp_path / "tfds"), str(manual_dir))
    source = open_masks("ade20k", "train", tmp_path / "tfds")
    expected = open_masks("ade20k", "train", data_dir)
    for index in range(6):
        record, other = source._records[index], expected._records[index]
        assert record["scene"] == b""
        assert record == other | {"scene": b""}


def with_pair(image, annotation, number=7):
    return {
        mini.path("images", "train", number): image,
        mini.path("annotations", "train", number): annotation,
    }


def without(*names):
    return {name: content for name, content in FILES.items() if name not in names}


IMAGE = saved(photograph(np.random.default_rng(0), 20, 30), "JPEG")
MASK = grey_png(np.ones((20, 30)))
BAD = {
    "no annotation": (
        without(mini.path("annotations", "train", 3)),
        "each file in images/training of .* must have one of the same number in"
        " annotations/training, and 1 have none: ADE_train_00000003",
    ),
    "no image": (
        without(mini.path("images", "validation", 1)),
        "each file in annotations/validation of .* must have .* images/validation, and 1 have none:"
        " ADE_val_00000001",
    ),
    "no validation": (
        {name: content for name, content in FILES.items() if "validation" not in name},
        "must have files images/validation/ADE_val_00000001.jpg and so on, and has none",
    ),
    "sizes": (
        FILES | with_pair(IMAGE, grey_png(np.ones((20, 31)))),
        "the image ADE_train_00000007.jpg has 20 x 30 pixels .* and its annotation 20 x 31",
    ),
    "values": (
        FILES | with_pair(IMAGE, grey_png(np.full((20, 30), 151))),
        "the annotation ADE_train_00000007.png has 600 pixels of value 151",
    ),
    "colours": (
        FILES | with_pair(IMAGE, saved(Image.new("RGB", (30, 20)))),
        "ADE_train_00000007.png is an image of kind RGB",
    ),
    "cut image": (
        FILES | with_pair(IMAGE[:-200], MASK),
        "the image ADE_train_00000007.jpg cannot be decoded: OSError",
    ),
    "several": (
        FILES | with_pair(b"no image", MASK) | with_pair(IMAGE, b"no mask", 8),
        "ADE_train_00000007.jpg cannot be decoded: .*; the annotation ADE_train_00000008.png must",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_prepared_is_one_sentence(case, tmp_path, capsys):
    contents, message = BAD[case]
    mini.write_archive(tmp_path, contents)
    fails(tmp_path, capsys, message)


def fails(folder, capsys, message, *arguments):
    arguments = arguments or (f"--manual_dir={folder}",)
    status = prepare.main(["ade20k", f"--data_dir={folder / 'tfds'}", *arguments])
    captured = capsys.readouterr()
    # Before it come TFDS's progress bars, where images are read to find the mistake.
    line = captured.err.splitlines()[-1]
    assert (status, "is prepared" in captured.out) == (2, False)
    assert "Traceback" not in captured.err
    assert line.startswith("error: ")
    with pytest.raises(InputError, match=message):
        raise InputError(line)
    assert not (folder / "tfds" / "ade20k" / "1.0.0").exists()


def test_a_damaged_archive(tmp_path, capsys):
    mini.write_archive(tmp_path, FILES)
    archive = tmp_path / mini.ARCHIVE
    content = bytearray(archive.read_bytes())
    archive.write_bytes(content[:-100])
    fails(tmp_path, capsys, f"{mini.ARCHIVE} must be a complete zip file: BadZipFile")
    content[2000:2020] = bytes(20)  # in the data of a file
    archive.write_bytes(content)
    fails(tmp_path, capsys, f"{mini.ARCHIVE} must be a complete zip file: (BadZipFile|error)")


def test_no_archive(tmp_path, capsys):
    message = "must be a directory that has ADEChallengeData2016.zip or the folder ADEChallengeData"
    fails(tmp_path, capsys, rf"`--manual_dir` \(={tmp_path}\) {message}")
    fails(
        tmp_path,
        capsys,
        rf"`--manual_dir` \(=None\) {message}.*; download it from http",
        "--overwrite",
    )
    # The full dataset of 2021 is another.
    (tmp_path / "ADE20K_2021_17_01" / "images" / "ADE" / "training").mkdir(parents=True)
    fails(tmp_path, capsys, message)


def test_many_unusable_pairs_end_it_at_once(tmp_path):
    more = {}
    for number in range(7, 40):
        more |= with_pair(b"no image", MASK, number)
    mini.write_folder(tmp_path, FILES | more)
    with pytest.raises(InputError) as caught:
        prepare.prepare("ade20k", str(tmp_path / "tfds"), str(tmp_path))
    assert str(caught.value).count("cannot be decoded") == 20
    assert "remove these pairs from the extracted folder" in str(caught.value)
