"""COCO 2017, from miniature archives to examples, against pycocotools reading the same files."""

import io
import json
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data import miniature_coco as mini
from data.ilsvrc import prepare as run_prepare
from data.masks import photograph, saved
from PIL import Image
from pycocotools.coco import COCO

from convnext_jax.data import prepare
from convnext_jax.data.coco import Coco2017
from convnext_jax.data.coco_classes import CATEGORIES, CATEGORY_IDS, CLASSES
from convnext_jax.data.coco_tools import bitmap
from convnext_jax.data.instances import ground_truth
from convnext_jax.data.objects import open_objects
from convnext_jax.errors import InputError

FILES = mini.contents(CATEGORIES.items())


def content_of(split):
    return json.loads(FILES[f"annotations/instances_{mini.FOLDERS[split]}.json"])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Data directory of a dataset that the real command prepared from the archives."""
    base = tmp_path_factory.mktemp("coco")
    mini.write_archives(base, FILES)
    done = run_prepare("coco2017", f"--manual_dir={base}", f"--data_dir={base / 'tfds'}")
    assert done.returncode == 0, done.stderr
    out = done.stdout.splitlines()[-6:]
    assert out[:3] == ["coco2017 is prepared:", "  train: 8 examples", "  validation: 4 examples"]
    assert out[4:] == [
        "note: train: 8 images were prepared where COCO has 118287, so results are not those of"
        " the benchmark",
        "note: validation: 4 images were prepared where COCO has 5000, so results are not those of"
        " the benchmark",
    ]
    return base / "tfds"


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """pycocotools' own reading of a split."""
    found = {}
    for split in mini.FOLDERS:
        file = tmp_path_factory.mktemp("api") / "instances.json"
        file.write_text(json.dumps(content_of(split)))
        found[split] = COCO(str(file))
    return found


def test_classes_are_cocos():
    assert len(CLASSES) == len(set(CLASSES)) == 80
    assert CATEGORY_IDS == tuple(sorted(CATEGORY_IDS))
    assert set(range(1, 91)) - set(CATEGORY_IDS) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    # From the beginning, the middle and the end of the paper's list (arXiv 1405.0312, appendix).
    named = {0: "person", 15: "cat", 39: "bottle", 57: "couch", 62: "tv", 79: "toothbrush"}
    assert {label: CLASSES[label] for label in named} == named


@pytest.mark.parametrize("split", list(mini.FOLDERS))
def test_examples_are_the_files(data_dir, api, split):
    source = open_objects("coco2017", split, data_dir, training=False)
    images = content_of(split)["images"]
    assert (len(source), source.class_names, source.num_classes) == (len(images), CLASSES, 80)
    again = pickle.loads(pickle.dumps(source))
    for index, expected in enumerate(images):
        image, objects = source[index]
        file = FILES[f"{mini.FOLDERS[split]}/{expected['file_name']}"]
        pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(image), pixels)
        assert (image.mode, objects.image_id, objects.index) == ("RGB", expected["id"], index)
        assert source.sizes[index].tolist() == [image.height, image.width]
        annotations = api[split].imgToAnns[expected["id"]]
        assert len(objects) == len(annotations) == source.counts[index].sum()
        assert objects.is_crowd.sum() == source.counts[index, 1]
        for i, annotation in enumerate(annotations):
            assert CATEGORY_IDS[objects.labels[i]] == annotation["category_id"]
            assert objects.bbox[i].tolist() == annotation["bbox"]
            left, top, width, height = annotation["bbox"]
            box = np.array([left, top, left + width, top + height], np.float32)
            np.testing.assert_array_equal(objects.boxes[i], box)
            assert objects.area[i] == annotation["area"]
            assert objects.is_crowd[i] == annotation["iscrowd"]
            mask = bitmap(objects.masks[i])
            assert mask.shape == (image.height, image.width)
            np.testing.assert_array_equal(mask, api[split].annToMask(annotation))
        other = again[index][1]
        assert other.masks == objects.masks and other.boxes.tolist() == objects.boxes.tolist()
    assert objects.boxes.dtype == np.float32 and objects.labels.dtype == np.int32
    assert str(again) == f"dataset `coco2017`, split `{split}`" and again.notes == source.notes


def test_the_ground_truth_is_the_files(data_dir, api, monkeypatch):
    monkeypatch.setattr("convnext_jax.data.objects.decode", None)  # no image is decoded
    source = open_objects("coco2017", "validation", data_dir, training=False)
    found, expected = ground_truth(source), content_of("validation")
    assert found["images"] == [
        {key: image[key] for key in ("id", "height", "width")} for image in expected["images"]
    ]
    assert [each["id"] for each in found["annotations"]] == list(
        range(1, len(expected["annotations"]) + 1)
    )
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    assert found["categories"] == categories
    coco = COCO()
    coco.dataset = found
    coco.createIndex()
    for image in found["images"]:
        theirs = api["validation"].imgToAnns[image["id"]]
        for own, other in zip(coco.imgToAnns[image["id"]], theirs, strict=True):
            for key in ("image_id", "category_id", "bbox", "area", "iscrowd"):
                assert own[key] == other[key]
            np.testing.assert_array_equal(coco.annToMask(own), api["validation"].annToMask(other))


def test_what_is_trained_on(data_dir):
    everything = open_objects("coco2017", "train", data_dir, training=False)
    source = open_objects("coco2017", "train", data_dir, training=True)
    images = content_of("train")["images"]
    ids = [source.objects(index).image_id for index in range(len(source))]
    # The second has no object; the sixth has nothing but a crowd, and stays.
    assert ids == [image["id"] for place, image in enumerate(images) if place != 1]
    assert source.counts[4].tolist() == [0, 1] and source[4][1].is_crowd.tolist() == [True]
    assert source.notes[-1] == (
        "dataset `coco2017`, split `train`: 1 of 8 images left out: 1 have no objects, 0 have a"
        " side below 32 pixels"
    )
    np.testing.assert_array_equal(source.sizes, np.delete(everything.sizes, 1, 0))
    assert [source[index][1].index for index in range(7)] == list(range(7))
    assert len(open_objects("coco2017", "train", data_dir, training=True, keep_empty=True)) == 8
    for index in (-1, 7):
        with pytest.raises(IndexError, match=rf"`index` \(={index}\) must be in 0..6"):
            source[index]


def test_parts_of_splits(data_dir):
    train, part, both = (
        open_objects("coco2017", split, data_dir, training=False)
        for split in ("train", "train[50%:]", "validation+train[:2]")
    )
    np.testing.assert_array_equal(part.sizes, train.sizes[4:])
    assert [part.objects(i).image_id for i in range(4)] == [
        train.objects(i).image_id for i in range(4, 8)
    ]
    for index in range(len(both)):
        image, objects = both[index]
        assert both.sizes[index].tolist() == [image.height, image.width]
        assert both.counts[index].sum() == len(objects)
    assert len(both) == 6 and len(both.notes) == 2
    with pytest.raises(
        InputError, match=r"split `test` of dataset `coco2017` must be one of train"
    ):
        open_objects("coco2017", "test", data_dir, training=False)


def test_what_does_not_fit_is_refused(data_dir):
    with pytest.raises(
        InputError, match=r"`exif` \(=True\) must be False for the dataset `coco201"
    ):
        open_objects("coco2017", "train", data_dir, training=False, exif=True)
    with pytest.raises(
        InputError, match=r"`annotations` \(=a.json\) must be a file in COCO's form"
    ):
        open_objects("coco2017", "train", data_dir, training=False, annotations="a.json")
    with pytest.raises(
        InputError, match=r"`annotations` \(=None\) must be a file in COCO's format"
    ):
        open_objects("folder", "train", data_dir, training=False)
    with pytest.raises(InputError, match="`python -m convnext_jax.data.prepare coco2017 --data_di"):
        open_objects("coco2017", "train", data_dir / "other", training=False)


def test_folders_are_as_good(tmp_path, data_dir):
    mini.write_folders(tmp_path, FILES)
    prepare.prepare("coco2017", str(tmp_path / "tfds"), str(tmp_path))
    for split in mini.FOLDERS:
        sources = [
            open_objects("coco2017", split, place, training=False)
            for place in (tmp_path / "tfds", data_dir)
        ]
        for index in range(len(sources[0])):
            assert sources[0]._record(index) == sources[1]._record(index)


def test_the_order_of_records_is_the_files_over_several_shards(tmp_path):
    """What is stored beside the records is by their place."""
    files = mini.contents(CATEGORIES.items(), train=30, validation=4, seed=1)
    mini.write_archives(tmp_path, files)
    builder = Coco2017(data_dir=tmp_path / "tfds")
    builder.download_and_prepare(
        file_format="array_record",
        download_config=tfds.download.DownloadConfig(manual_dir=tmp_path, num_shards=4),
    )
    source = open_objects("coco2017", "train", tmp_path / "tfds", training=False)
    images = json.loads(files["annotations/instances_train2017.json"])["images"]
    assert source.num_files == 4 and len(source) == 30
    assert [source.objects(i).image_id for i in range(30)] == [image["id"] for image in images]
    for index in range(30):
        image, objects = source[index]
        assert source.sizes[index].tolist() == [image.height, image.width]
        assert source.counts[index].sum() == len(objects)


def test_to_evaluate_the_training_images_are_not_needed(tmp_path, capsys):
    mini.write_archives(tmp_path, FILES)
    (tmp_path / "train2017.zip").unlink()
    arguments = ["coco2017", f"--manual_dir={tmp_path}", f"--data_dir={tmp_path / 'tfds'}"]
    assert prepare.main(arguments) == 0
    assert f"there is no split `train`, as {tmp_path} has no train2017" in capsys.readouterr().out
    assert len(open_objects("coco2017", "validation", tmp_path / "tfds", training=False)) == 4


def changed(split, **parts):
    """The archives with another file of annotations."""
    name = f"annotations/instances_{mini.FOLDERS[split]}.json"
    return FILES | {name: json.dumps(content_of(split) | parts).encode()}


TRAIN = content_of("train")
HELD_OUT = f"val2017/{content_of('validation')['images'][0]['file_name']}"
NAME = f"train2017/{TRAIN['images'][0]['file_name']}"
SMALL = saved(photograph(np.random.default_rng(0), 20, 30), "JPEG")
BAD = {
    "size": (FILES | {NAME: SMALL}, r"it has 20 x 30 pixels \(height x width\), and its annotatio"),
    "no image": (FILES | {NAME: b"text"}, "000000001000.jpg: it is no image: UnidentifiedImage"),
    "missing": (
        {name: content for name, content in FILES.items() if name != NAME},
        r"train2017.zip must have the images that its annotations list, and 1 of ",
    ),
    "validation's, before training's are written": (
        {name: content for name, content in FILES.items() if name != HELD_OUT},
        r"val2017.zip must have the images that its annotations list, and 1 of ",
    ),
    "categories": (
        changed("train", categories=[{"id": i, "name": f"class {i}"} for i in range(91)]),
        "must have COCO's 80 categories, with their numbers and names, and has 91: for data of",
    ),
    "no annotations": (
        {name: content for name, content in FILES.items() if "annotations" not in name},
        r"`--manual_dir` \(=.*\) must be a directory that has annotations_trainval2017.zip, tr",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_prepared_is_one_sentence(case, tmp_path, capsys):
    files, message = BAD[case]
    mini.write_archives(tmp_path, files)
    arguments = ["coco2017", f"--manual_dir={tmp_path}", f"--data_dir={tmp_path / 'tfds'}"]
    assert prepare.main(arguments) == 2
    # Before it come TFDS's progress bars, where images are read to find the mistake.
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    with pytest.raises(InputError, match=message):
        raise InputError(line)
    assert not (tmp_path / "tfds" / "coco2017" / "1.0.0").exists()


def test_a_damaged_archive(tmp_path):
    mini.write_archives(tmp_path, FILES)
    archive = tmp_path / "val2017.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(InputError, match="val2017.zip must be a complete zip file: BadZipFile"):
        prepare.prepare("coco2017", str(tmp_path / "tfds"), str(tmp_path))
