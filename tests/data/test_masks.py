"""Prepared datasets of other people's that have a mask for each image."""

import os
import pickle
import threading
from concurrent import futures

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.masks import UPRIGHT, grey_png, palette_png, photograph, saved, values, write_folder
from data.synthetic import write_odd
from PIL import Image

from convnext_jax import retry
from convnext_jax.data.mask_folder import MaskFolder
from convnext_jax.data.masks import open_masks
from convnext_jax.data.relabelled import RelabelledMasks
from convnext_jax.data.sources import check_same_classes
from convnext_jax.errors import InputError, Lost

RNG = np.random.default_rng(0)
RAW = [values(RNG, 12 + 4 * i, 30 - 3 * i, 3, lowest=1) for i in range(4)]
IMAGES = [saved(photograph(RNG, *raw.shape), "JPEG") for raw in RAW]
# As oxford_iiit_pet has them: 1 is the pet, 2 the background, 3 the border.
PETS = ("pet", "background", "border")


def pets():
    """The features of oxford_iiit_pet, as far as they matter here."""
    return {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=37),
        "file_name": tfds.features.Text(),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1), use_colormap=True),
        "head_bbox": tfds.features.BBoxFeature(),
    }


def write_pets(data_dir, masks=None, images=IMAGES, num_shards=None):
    box = tfds.features.BBox(0.0, 0.0, 0.5, 0.5)
    examples = [
        {"image": image, "label": 5, "file_name": f"{i}.jpg", "segmentation_mask": mask}
        | {"head_bbox": box}
        for i, (image, mask) in enumerate(zip(images, masks or map(grey_png, RAW), strict=True))
    ]
    write_odd(data_dir, examples, num_shards, **pets())


@pytest.fixture
def source(tmp_path):
    write_pets(tmp_path)
    return open_masks("odd", "train", tmp_path, first_label=1, class_names=PETS)


def order(source):
    """Which of the examples written comes at each index."""
    names = [source._records[i]["file_name"].decode() for i in range(len(source))]
    return [int(name.removesuffix(".jpg")) for name in names]


def fails(match, *arguments, **options):
    with pytest.raises(InputError, match=match) as caught:
        open_masks(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_a_mask_without_names(source, tmp_path):
    assert (source.class_names, source.num_classes, source.notes) == (PETS, 3, ())
    for index, i in enumerate(order(source)):
        image, labels = source[index]
        assert image.size == RAW[i].shape[::-1]
        np.testing.assert_array_equal(labels, RAW[i] - 1)
    assert source.largest == (24, 30)
    again = pickle.loads(pickle.dumps(source))
    assert again.class_names == PETS
    np.testing.assert_array_equal(again[2][1], source[2][1])
    fails(
        r"`class_names` must be given for the dataset `odd`, whose `segmentation_mask` does not"
        r" name its classes: from that of value `first_label` \(=1\) on",
        "odd",
        "train",
        tmp_path,
        first_label=1,
    )
    border = open_masks("odd", "train", tmp_path, first_label=1, ignored=3, class_names=PETS[:2])
    raw = RAW[order(source)[0]]
    np.testing.assert_array_equal(border[0][1], np.where(raw == 3, 255, raw - 1))
    # What is not given is that no value is ignored and the first class has 0.
    with pytest.raises(InputError, match=r"in record 0 of dataset `odd`, split `train` \(\d.jpg\)"):
        open_masks("odd", "train", tmp_path, class_names=PETS)[0]


def write_labelled(data_dir, labels, **others):
    examples = [
        {"image": image, "mask": palette_png(raw)} | dict.fromkeys(others, image)
        for image, raw in zip(IMAGES, RAW, strict=True)
    ]
    features = {
        "image": tfds.features.Image(),
        "mask": tfds.features.LabeledImage(labels=labels, shape=(None, None, 1)),
    }
    write_odd(data_dir, examples, **features | others)


@pytest.mark.parametrize(
    "given, names",
    [
        ({}, ("nothing", "cat", "dog", "edge")),
        ({"first_label": 1}, ("cat", "dog", "edge")),
        ({"first_label": 1, "ignored": 3}, ("cat", "dog")),
        ({"ignored": 1}, ("nothing", "cat", "dog", "edge")),
    ],
)
def test_names_of_values_are_those_of_classes(tmp_path, given, names):
    write_labelled(tmp_path, ["nothing", "cat", "dog", "edge"])
    source = open_masks("odd", "train", tmp_path, **given)
    assert source.class_names == names
    first, ignored = given.get("first_label", 0), given.get("ignored")
    sums = set()
    for index in range(4):
        labels = source[index][1].astype(int)
        raw = np.where(labels == 255, 99 if ignored is None else ignored, labels + first)
        sums.add(raw.sum())
    assert sums == {raw.sum() for raw in RAW}
    fails(
        "`class_names` must not be given for the dataset `odd`, whose `mask` names its classes",
        "odd",
        "train",
        tmp_path,
        class_names=names,
    )


def test_a_number_of_classes_and_a_grey_image(tmp_path):
    grey = [saved(photograph(RNG, *raw.shape).convert("L")) for raw in RAW]
    features = {
        "scan": tfds.features.Image(shape=(None, None, 1)),
        "mask": tfds.features.LabeledImage(labels=4),
    }
    examples = [
        {"scan": image, "mask": grey_png(raw)} for image, raw in zip(grey, RAW, strict=True)
    ]
    write_odd(tmp_path, examples, **features)
    source = open_masks("odd", "train", tmp_path)
    assert source.class_names == ("0", "1", "2", "3")
    assert source[0][0].mode == "RGB"


def test_what_has_no_image_and_mask(tmp_path):
    write_odd(tmp_path / "a", [{"image": IMAGES[0], "label": 1, "file_name": "x"}])
    fails(
        "dataset `odd` must have one image, and one mask of one channel, to segment; its features"
        r" are file_name \(Text\), image \(Image\), label \(ClassLabel\)",
        "odd",
        "train",
        tmp_path / "a",
    )
    write_labelled(tmp_path / "b", ["x"], other=tfds.features.Image())
    fails("must have one image, and one mask of one channel", "odd", "train", tmp_path / "b")


def test_what_is_asked_of_names(tmp_path):
    fails("`data.dir` must be given for the dataset `folder`", "folder", "train")
    fails("must be written NAME", "two words", "train", tmp_path)
    fails(
        "is not prepared in .*`python -m convnext_jax.data.prepare oxford_iiit_pet --data_dir=",
        "oxford_iiit_pet",
        "train",
        tmp_path,
    )
    write_pets(tmp_path)
    fails(
        r"split `test` of dataset `odd` must be one of train \(4\)",
        "odd",
        "test",
        tmp_path,
        class_names=PETS,
    )
    fails(
        r"`first_label` \(=256\) must be in 0..255",
        "odd",
        "train",
        tmp_path,
        first_label=256,
        class_names=PETS,
    )


def test_folders_are_opened_with_what_is_given(tmp_path):
    write_folder(tmp_path, 4)
    source = open_masks("folder", "train", str(tmp_path))
    assert isinstance(source, MaskFolder) and len(source) == 4 and source.notes == ()
    assert len(open_masks("folder", "train", tmp_path, histogram=True).notes) == 1
    assert open_masks("folder", "train", tmp_path, exif=True)._exif
    labels = open_masks("folder", "train", tmp_path, ignored=1)[0][1]
    np.testing.assert_array_equal(labels == 255, source[0][1] == 1)
    with pytest.raises(InputError, match="value 0; values must be in 1..3, or 255, as"):
        open_masks("folder", "train", tmp_path, first_label=1)[0]
    fails(
        "`class_names` must not be given for the dataset `folder`",
        "folder",
        "train",
        tmp_path,
        class_names=PETS,
    )


def test_records_that_cannot_be_used_are_named(tmp_path):
    masks = [grey_png(raw) for raw in RAW]
    images = list(IMAGES)
    masks[0] = saved(Image.new("RGB", (9, 9)))
    masks[1] = grey_png(RAW[1] * 7)
    masks[2] = grey_png(RAW[2][:-1])
    images[3] = IMAGES[3][:200]
    write_pets(tmp_path, masks, images)
    source = open_masks("odd", "train", tmp_path, first_label=1, class_names=PETS)
    messages = {
        0: "the annotation in {} is an image of kind RGB with 8 bits a value",
        1: "the annotation in {} has {:d} pixels of value 7, and pixels of",
        2: "the image in {} has 20 x 24 pixels (height x width) and its annotation 19 x 24",
        3: "the image in {} cannot be decoded: ",
    }
    for index, i in enumerate(order(source)):
        record = f"record {index} of dataset `odd`, split `train` ({i}.jpg)"
        with pytest.raises(InputError) as caught:
            source[index]
        expected = messages[i].format(record, int((RAW[1] == 1).sum()))
        assert str(caught.value).startswith(expected)
    with pytest.raises(InputError, match="is an image of kind RGB"):
        source.largest  # noqa: B018
    fails(
        "(kind RGB|pixels of value 7)",
        "odd",
        "train",
        tmp_path,
        first_label=1,
        class_names=PETS,
        histogram=True,
    )
    for index in (-1, 4):
        with pytest.raises(IndexError, match=rf"`index` \(={index}\) must be in 0..3"):
            source[index]


def test_images_are_turned_with_their_masks(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 5
    images = [saved(photograph(RNG, *raw.shape), "JPEG", exif=exif) for raw in RAW]
    write_pets(tmp_path, images=images)
    options = {"first_label": 1, "class_names": PETS, "exif": True}
    source = pickle.loads(pickle.dumps(open_masks("odd", "train", tmp_path, **options)))
    for index, i in enumerate(order(source)):
        image, labels = source[index]
        np.testing.assert_array_equal(labels, UPRIGHT[5](RAW[i]) - 1)
        assert image.size == labels.shape[::-1]
    height, width = source.largest
    assert height >= 30 and width >= 30


def test_a_file_that_was_cut_short_or_was_away(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "WAITS_SECONDS", (0.1, 0.1))
    write_pets(tmp_path, num_shards=2)
    options = {"first_label": 1, "class_names": PETS}
    source = open_masks("odd", "train", tmp_path, **options)
    assert source.num_files == 2
    shards = sorted((tmp_path / "odd" / "1.0.0").glob("*array_record*"))
    source[0]
    hidden = shards[0].rename(tmp_path / "away")
    failed = source._records
    source._reopen(failed)
    with pytest.raises(InputError, match="record 0 of dataset `odd`, split `train` cannot be read"):
        source[0]
    with pytest.raises(Lost, match="record . of dataset `odd`, split `train` cannot be read"):
        source.largest  # noqa: B018
    threading.Timer(0.05, hidden.rename, [shards[0]]).start()
    assert source.largest == (24, 30)
    assert source[0][1].shape and source._records is not failed
    os.truncate(shards[0], 100)
    with pytest.raises(InputError, match="is empty: its file must be whole"):
        source[1]


def test_threads_read_the_same(source):
    expected = [source[i % 4][1] for i in range(64)]
    with futures.ThreadPoolExecutor(8) as threads:
        for labels, other in zip(
            threads.map(lambda i: source[i % 4][1], range(64)), expected, strict=True
        ):
            np.testing.assert_array_equal(labels, other)


def test_masks_with_the_labels_of_a_model(tmp_path):
    write_pets(tmp_path)
    options = {"first_label": 1, "ignored": 3, "class_names": PETS[:2]}
    source = open_masks("odd", "train", tmp_path, **options)
    other = RelabelledMasks(source, (1, 0))
    assert (other.class_names, other.num_classes) == (("background", "pet"), 2)
    assert (len(other), other.largest, str(other)) == (4, source.largest, str(source))
    again = pickle.loads(pickle.dumps(other))
    for index in range(4):
        before = source[index][1]
        for labels in (other[index][1], again[index][1]):
            assert labels.dtype == np.uint8
            np.testing.assert_array_equal(labels, np.where(before == 255, 255, 1 - before))
    check_same_classes(other, again)
    with pytest.raises(InputError, match="the splits must have the same classes: `train` has 2"):
        check_same_classes(other, open_masks("odd", "train", tmp_path, class_names=PETS))
