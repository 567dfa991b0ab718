"""The scenes of digits on photographs: exact masks, honest splits, always the same."""

import hashlib
import io
import itertools
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import scipy.ndimage
import sklearn.datasets
import sklearn.neighbors
from data.ilsvrc import prepare as run_prepare
from PIL import Image
from shared_folder import shared_folder

from convnext_jax.data import digits, scene_drawing, scenes
from convnext_jax.data.masks import open_masks
from convnext_jax.data.pipeline import train_batches
from convnext_jax.data.sources import check_same_classes, open_source
from convnext_jax.errors import InputError
from convnext_jax.segmentation.transforms import TrainCrops

DIGITS = sklearn.datasets.load_digits()
SIDE = 96


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Data directory that the real command wrote, or a run of tests/e2e, whoever was first."""
    data_dir = shared_folder(tmp_path_factory) / "tfds"
    done = run_prepare("digit_scenes", f"--data_dir={data_dir}")
    assert done.returncode == 0, done.stderr
    first, *others, _ = done.stdout.splitlines()[-4:]
    assert first in ("digit_scenes is prepared:", "digit_scenes was already prepared:")
    assert others == ["  train: 4000 examples", "  test: 200 examples"]
    return data_dir


@pytest.fixture(scope="module")
def records(data_dir):
    """Decoded records of the test split and of some of the training split."""

    def decoded(content):
        return np.asarray(Image.open(io.BytesIO(content)))

    sources = [open_masks("digit_scenes", split, data_dir) for split in ("test", "train[:300]")]
    return [
        source._records[i]
        | {key: decoded(source._records[i][key]) for key in ("image", "label", "instances")}
        for source in sources
        for i in range(len(source))
    ]


def test_what_a_source_gives(data_dir):
    test, train = (open_masks("digit_scenes", split, data_dir) for split in ("test", "train"))
    assert (len(test), len(train)) == (200, 4000)
    assert test.class_names == ("background", *"0123456789")
    assert test.num_classes == 11 and test.notes == ()
    assert test.largest == train.largest == (SIDE, SIDE)
    check_same_classes(train, test)
    for index in range(0, 200, 20):
        image, labels = test[index]
        record = test._records[index]
        np.testing.assert_array_equal(labels, Image.open(io.BytesIO(record["label"])))
        np.testing.assert_array_equal(image, Image.open(io.BytesIO(record["image"])))
        assert image.mode == "RGB" and labels.dtype == np.uint8
    open_masks("digit_scenes", "test", data_dir, first_label=0)
    with pytest.raises(InputError, match="must not be given for the dataset `digit_scenes`"):
        open_masks("digit_scenes", "test", data_dir, ignored=255)
    with pytest.raises(InputError, match="must have one image and one class label to classify"):
        open_source("digit_scenes", "test", data_dir)


def test_labels_instances_boxes_and_classes_say_the_same(records):
    """The extents of instances by SciPy."""
    for record in records:
        image, label, instances = record["image"], record["label"], record["instances"]
        assert (image.shape, image.dtype) == ((SIDE, SIDE, 3), np.uint8)
        for mask in (label, instances):
            assert (mask.shape, mask.dtype) == ((SIDE, SIDE), np.uint8)
        boxes, classes = (np.array(record["objects"][key]) for key in ("bbox", "label"))
        count = len(classes)
        assert 1 <= count <= 5 and boxes.shape == (count, 4)
        np.testing.assert_array_equal(np.unique(instances), np.arange(count + 1))
        np.testing.assert_array_equal(label, np.append(0, 1 + classes)[instances])
        # Float32 holds multiples of 1/96 to 1e-7, so their products with 96 round to integers.
        pixels = np.round(boxes * SIDE).astype(int)
        np.testing.assert_allclose(boxes * SIDE, pixels, atol=1e-4)
        for (rows, columns), box in zip(scipy.ndimage.find_objects(instances), pixels, strict=True):
            assert box.tolist() == [rows.start, columns.start, rows.stop, columns.stop]


def test_all_sizes_numbers_and_digits_occur(records):
    classes = np.concatenate([record["objects"]["label"] for record in records])
    counts = np.bincount(classes, minlength=10)
    # Some 1,400 digits, drawn evenly: 140 of each with a deviation of 11.
    assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.4 * counts.mean()
    assert {len(record["objects"]["label"]) for record in records} >= {1, 2, 3, 4}
    boxes = np.concatenate([np.array(record["objects"]["bbox"]) for record in records]) * SIDE
    heights = boxes[:, 2] - boxes[:, 0]
    # A scan of 8 rows becomes 40 to 64 pixels, and its ink a little less; or more, being turned.
    assert 28 <= heights.min() < 44 and 60 < heights.max() < 80
    assert 0 <= boxes.min() <= 1 and SIDE - 1 <= boxes.max() <= SIDE  # to the borders, not beyond


def test_masks_are_the_ink():
    """Beside them is the dim photograph; they are lighter than all that is under them."""
    parts = [Image.fromarray(p) for p in sklearn.datasets.load_sample_images().images]
    for seed in range(60):
        scan = DIGITS.images[seed : seed + 40] * (255 / 16)
        scan = np.round(scan).astype(np.uint8)
        targets = DIGITS.target[seed : seed + 40]
        scene = scene_drawing.draw_scene(np.random.default_rng(seed), parts, scan, targets)
        photograph = scene_drawing._background(np.random.default_rng(seed), parts)
        changed = np.abs(scene.image - photograph)
        covered = scene.instances > 0
        # Antialiased edges end within a stretched pixel of the scan, of 8 at most.
        far = scipy.ndimage.distance_transform_edt(~covered) > 8
        assert changed[far].max() <= 0.5  # rounding
        assert photograph.max() <= 127.5
        # 195 and more at full ink that hides 85 %; the ink of an edge is half as thick.
        assert (scene.image - photograph)[covered].min() > 20


def test_digits_can_be_read():
    """Each is what the nearest of all scans is; by the mask alone, turned and small as it is."""
    nearest = sklearn.neighbors.KNeighborsClassifier(3)
    nearest.fit([straight(image) for image in DIGITS.images], DIGITS.target)
    found, expected = [], []
    for scene in itertools.islice(scenes.draw_split("test"), 100):
        for index, box in enumerate(scene.boxes):
            top, left, bottom, right = box
            found.append(straight(scene.instances[top:bottom, left:right] == index + 1))
            expected.append(scene.digits[index])
    # Chance is 10 %; what is lost are angles, and thickness.
    assert np.mean(nearest.predict(found) == expected) > 0.75


def straight(ink):
    """The ink in a square that it fills, 8 x 8 values."""
    rows, columns = np.nonzero(ink)
    ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(float)
    ink = Image.fromarray((255 * ink / ink.max()).astype(np.uint8))
    return np.asarray(ink.resize((8, 8), Image.Resampling.BOX), float).ravel()


def test_splits_share_neither_scans_nor_photographs(monkeypatch):
    given = {}

    def note(rng, photographs, scans, labels):
        given[split] = photographs, scans, labels
        return None

    monkeypatch.setattr(scenes, "draw_scene", note)
    for split, count in (("train", 4000), ("test", 200)):
        assert len(list(scenes.draw_split(split))) == count
    images = sklearn.datasets.load_sample_images().images
    columns = {"train": (slice(0, 320), slice(480, 640)), "test": (slice(320, 480),)}
    for split, (photographs, scans, labels) in given.items():
        expected = [image[:, part] for image in images for part in columns[split]]
        for photograph, part in zip(photographs, expected, strict=True):
            np.testing.assert_array_equal(photograph, part)
        rows = digits.split_rows()[split]
        np.testing.assert_array_equal(labels, DIGITS.target[rows])
        np.testing.assert_array_equal(np.round(scans / 255 * 16), DIGITS.images[rows])
    rows = digits.split_rows()
    assert sorted(np.concatenate([rows["train"], rows["test"]])) == list(range(1797))


DIGEST = """
import hashlib, itertools
from convnext_jax.data import scenes
digest = hashlib.sha1()
for split in ("train", "test"):
    for scene in itertools.islice(scenes.draw_split(split), 20):
        for part in (scene.image, scene.label, scene.instances):
            digest.update(part.tobytes())
digest = digest.hexdigest()
"""


def test_they_are_always_the_same(data_dir):
    here = {}
    exec(DIGEST, here)
    there = [sys.executable, "-c", DIGEST + "print(digest)"]
    done = subprocess.run(there, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here["digest"]
    drawn = list(scenes.draw_split("test"))
    # Published numbers belong to these very scenes.
    assert [scene.digits for scene in drawn[:4]] == [(0,), (5, 8, 5), (6, 8), (5, 4)]
    # And they are what was written.
    source = open_masks("digit_scenes", "test", data_dir)
    for index in range(0, 200, 7):
        record = source._records[index]
        scene = drawn[record["index"]]
        np.testing.assert_array_equal(source[index][0], scene.image)
        np.testing.assert_array_equal(source[index][1], scene.label)
        assert list(record["objects"]["label"]) == list(scene.digits)


def test_writing_them_prints_nothing_and_logs_once(tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.setattr(scenes, "_SPLITS", {"train": 5, "test": 3})
    with caplog.at_level(logging.INFO):
        open_masks("digit_scenes", "train", tmp_path)
        assert len(open_masks("digit_scenes", "test", tmp_path)) == 3
    directory = tmp_path / "digit_scenes" / str(scenes.DigitScenes.VERSION)
    ours = [r for r in caplog.records if r.name == "convnext_jax.data.scenes"]
    assert [r.getMessage() for r in ours] == [f"wrote the `digit_scenes` dataset to {directory}"]
    assert capfd.readouterr() == ("", "")
    stored = json.loads((directory / "metadata.json").read_text())
    assert stored["masks"]["largest"] == {"train": [96, 96], "test": [96, 96]}
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="can be written, to hold the `digit_scenes` dataset: Not"):
        open_masks("digit_scenes", "train", file)


def test_reading_imports_neither_tensorflow_nor_jax_nor_what_draws(data_dir):
    code = (
        "import sys; from convnext_jax.data.masks import open_masks;"
        f"open_masks('digit_scenes', 'train', {str(data_dir)!r})[3];"
        "print([m for m in ('tensorflow', 'jax', 'torch', 'grain', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_workers_and_threads_make_the_same_batches(data_dir):
    source = open_masks("digit_scenes", "train[:40]", data_dir)
    run = {"global_batch": 16, "seed": 0, "start_step": 0, "num_steps": 3}
    digests = []
    for workers, threads in ((0, 1), (0, 4), (1, 2)):
        with train_batches(
            source, TrainCrops(64, 80), **run, workers=workers, threads=threads
        ) as b:
            batches = list(b)
        assert batches[0]["image"].shape == (16, 64, 64, 3)
        assert set(np.unique(batches[0]["label"])) <= {*range(11), 255}
        digest = hashlib.sha1()
        for batch in batches:
            for name in sorted(batch):
                digest.update(batch[name].tobytes())
        digests.append(digest.hexdigest())
    assert len(set(digests)) == 1
