"""Objects of one's own: files of annotations in COCO's format, and the digits of digit scenes."""

import io
import json
import pickle

import numpy as np
import pytest
from data import miniature_coco as mini
from data.masks import UPRIGHT, photograph, saved
from PIL import Image
from pycocotools.coco import COCO
from shared_folder import shared_folder

from convnext_jax.config_files import load_config
from convnext_jax.data.coco_tools import area, bitmap, check_segmentation, encode, to_rle
from convnext_jax.data.instances import crowded_notes, ground_truth
from convnext_jax.data.objects import open_objects
from convnext_jax.data.sources import check_same_classes
from convnext_jax.errors import InputError
from convnext_jax.wings import wing_of


def own_files(count=12, seed=0):
    """Images by name, and a file of annotations of the four categories of the miniature."""
    rng = np.random.default_rng(seed)
    files, images, annotations = mini.images_and_annotations(rng, count, 1)
    return files, mini.coco_file(images, annotations, mini.CATEGORIES)


FILES, CONTENT = own_files()


@pytest.fixture
def root(tmp_path):
    mini.write_folders(tmp_path, FILES)
    (tmp_path / "own.json").write_text(json.dumps(CONTENT))
    return tmp_path


def opened(root, split="train", training=False, file="own.json", **options):
    return open_objects(
        "folder", split, root, training=training, annotations=root / file, **options
    )


def test_examples_in_the_order_of_the_file(root):
    api = COCO(str(root / "own.json"))
    source = opened(root)
    assert source.class_names == ("person", "bicycle", "bottle", "toothbrush")
    assert (source.category_ids, source.num_classes, source.num_files) == ((1, 2, 44, 90), 4, 0)
    assert str(source) == f"dataset `folder` of {root / 'own.json'}, split `train`"
    again = pickle.loads(pickle.dumps(source))
    assert len(source) == len(again) == 12
    for index, expected in enumerate(CONTENT["images"]):
        image, objects = source[index]
        content = Image.open(io.BytesIO(FILES[expected["file_name"]])).convert("RGB")
        np.testing.assert_array_equal(np.asarray(image), np.asarray(content))
        assert (objects.image_id, objects.index) == (expected["id"], index)
        assert source.sizes[index].tolist() == [image.height, image.width]
        annotations = api.imgToAnns[expected["id"]]
        for i, annotation in enumerate(annotations):
            assert source.category_ids[objects.labels[i]] == annotation["category_id"]
            assert objects.bbox[i].tolist() == annotation["bbox"]
            assert objects.area[i] == annotation["area"]
            assert objects.is_crowd[i] == annotation["iscrowd"]
            np.testing.assert_array_equal(bitmap(objects.masks[i]), api.annToMask(annotation))
        crowds = sum(annotation["iscrowd"] for annotation in annotations)
        assert source.counts[index].tolist() == [len(annotations) - crowds, crowds]
        assert again.objects(index).masks == objects.masks
    for index in (-1, 12):
        with pytest.raises(IndexError, match=rf"`index` \(={index}\) must be in 0..11"):
            source[index]
    # Numbers in results are the file's.
    truth = ground_truth(source)
    assert [each["name"] for each in truth["categories"]] == list(source.class_names)
    assert {each["category_id"] for each in truth["annotations"]} == {1, 2, 44, 90}
    assert len(truth["annotations"]) == len(CONTENT["annotations"])


def test_training_and_evaluation_share_a_file_or_have_their_own(root):
    whole = opened(root)
    parts = [opened(root, split) for split in ("train[:75%]", "train[75%:]")]
    ids = [[part.objects(i).image_id for i in range(len(part))] for part in parts]
    assert [len(part) for part in parts] == [9, 3]
    assert sorted(ids[0] + ids[1]) == sorted(image["id"] for image in CONTENT["images"])
    for part in parts:
        for index in range(len(part)):
            image, objects = part[index]
            assert part.sizes[index].tolist() == [image.height, image.width]
            assert part.counts[index].sum() == len(objects)
    check_same_classes(*parts)
    (root / "other.json").write_text(json.dumps(mini.coco_file(CONTENT["images"], [], [(5, "x")])))
    with pytest.raises(InputError, match="the splits must have the same classes"):
        check_same_classes(whole, opened(root, "val", file="other.json"))


def test_a_folder_called_as_the_split_has_the_images(tmp_path):
    for split, seed in (("train", 1), ("val", 2)):
        files, content = own_files(3, seed)
        mini.write_folders(tmp_path / split, files)
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        source = opened(tmp_path, split, file=f"{split}.json")
        assert source.path_of(0) == str(tmp_path / split / content["images"][0]["file_name"])
        assert list(source[0][0].size) == source.sizes[0][::-1].tolist()


def test_what_may_be_left_out(root):
    """`area` and `iscrowd`; compressed RLE is taken as it is."""
    content = json.loads(json.dumps(CONTENT))
    for place, annotation in enumerate(content["annotations"]):
        image = next(i for i in content["images"] if i["id"] == annotation["image_id"])
        rle = to_rle(annotation["segmentation"], image["height"], image["width"])
        if place % 2:
            annotation["segmentation"] = rle | {"counts": rle["counts"].decode()}
        del annotation["area"], annotation["iscrowd"]
    (root / "less.json").write_text(json.dumps(content))
    one, other = opened(root), opened(root, file="less.json")
    for index in range(len(one)):
        objects = other.objects(index)
        assert objects.masks == one.objects(index).masks and not objects.is_crowd.any()
        assert objects.area.tolist() == [bitmap(mask).sum() for mask in objects.masks]


def test_training_leaves_out_what_mmdetection_does(root):
    image = CONTENT["images"][0]
    boxes = [[2, 2, 0.9, 20], [2, 2, 20, 0.5], [5, 5, 20, 20], [5, 6, 20, 20]]
    rows = [mini.annotation(i + 1, image, 1, box) for i, box in enumerate(boxes)]
    rows[3]["area"] = 0
    small = {"id": 99, "file_name": "small.png", "height": 31, "width": 300}
    rows.append(mini.annotation(9, small, 1, [0, 0, 10, 10]))
    mini.write_folders(root, {"small.png": saved(Image.new("RGB", (300, 31)))})
    content = mini.coco_file([image, CONTENT["images"][1], small], rows, mini.CATEGORIES)
    (root / "odd.json").write_text(json.dumps(content))
    source = opened(root, training=True, file="odd.json")
    assert len(source) == 1 and source[0][1].bbox.tolist() == [[5, 5, 20, 20]]
    assert source.notes[-1].endswith(
        "2 of 3 images left out: 1 have no objects, 1 have a side below 32 pixels"
    )
    assert source.notes[0] == (
        f"{root / 'odd.json'}: 3 objects have a side below 1 pixel or no area (annotation 1);"
        " training leaves them out"
    )
    assert len(opened(root, training=True, file="odd.json", keep_empty=True)) == 2
    places = [f"--config.data.dir={root}", f"--config.data.annotations={root / 'odd.json'}"]
    for overrides, count in (([], 1), (["--config.detection.keep_empty"], 2)):
        config = load_config("configs/detect_coco_style.py", [*places, *overrides])
        assert len(wing_of(config.model.name).open(config, "train", training=True)) == count
    assert len(opened(root, file="odd.json").objects(0)) == 4
    content["annotations"] = rows[4:]
    (root / "none.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="must have images to train on: 2 have no objects, 1 have"):
        opened(root, training=True, file="none.json")


def test_images_turned_by_exif(tmp_path):
    """With `exif` annotations are of the image as it is seen, whose size they say."""
    picture = photograph(np.random.default_rng(0), 40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    mini.write_folders(tmp_path, {"a.png": saved(picture, exif=exif)})
    for name, height, width in (("stored", 40, 60), ("seen", 60, 40)):
        image = {"id": 1, "file_name": "a.png", "height": height, "width": width}
        rows = [mini.annotation(1, image, 1, [1, 2, 30, 35])]
        content = mini.coco_file([image], rows, mini.CATEGORIES)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    pixels = np.asarray(picture)
    np.testing.assert_array_equal(opened(tmp_path, file="stored.json")[0][0], pixels)
    seen = opened(tmp_path, file="seen.json", exif=True)
    np.testing.assert_array_equal(seen[0][0], UPRIGHT[6](pixels))
    assert seen.sizes.tolist() == [[60, 40]]
    for name, exif, sizes in (("seen", False, "40 x 60"), ("stored", True, "60 x 40")):
        source = opened(tmp_path, file=f"{name}.json", exif=exif)
        with pytest.raises(InputError, match=rf"{sizes} pixels .*; `exif` \(={exif}\) says whethe"):
            source[0]


def change(**parts):
    return lambda content: content | parts


def with_annotation(**parts):
    def changed(content):
        return content | {"annotations": [content["annotations"][0] | parts]}

    return changed


def without(key):
    def changed(content):
        first = dict(content["annotations"][0])
        del first[key]
        return content | {"annotations": [first]}

    return changed


FIRST = CONTENT["annotations"][0]
SIZE = next([i["height"], i["width"]] for i in CONTENT["images"] if i["id"] == FIRST["image_id"])
ID = FIRST["id"]
BAD = {
    "empty": (lambda _: "", r"own.json must have annotations in COCO's format, and is empty"),
    "no JSON": (lambda _: "{1", "and is not JSON: JSONDecodeError"),
    "a list": (lambda _: [], "and has no list `categories`"),
    "key": (lambda c: c | {"images": 3}, "and has no list `images`"),
    "no images": (change(images=[]), "own.json must have images, and has none"),
    "no categories": (change(categories=[]), "own.json must have categories, and has none"),
    "category": (
        with_annotation(category_id=7),
        rf"`category_id` \(=7\) of annotation {ID} in .* one of its categories: 1, 2, 44, 90",
    ),
    "image": (
        with_annotation(image_id=700),
        rf"`image_id` \(=700\) of annotation {ID} in .* must be that of one of its 12 images",
    ),
    "list for a number": (with_annotation(image_id=[1]), r"`image_id` \(=\[1\]\) of annotation"),
    "outside": (with_annotation(bbox=[500, 5, 9, 9]), "and lies outside"),
    "three numbers": (with_annotation(bbox=[5, 5, 9]), "must be four finite numbers: left, top, w"),
    "negative": (with_annotation(bbox=[5, 5, -9, 9]), "must have a width and a height of 0 or mor"),
    "no box": (without("bbox"), "annotation 0 in .*, from 0, must have `bbox`"),
    "infinite": (with_annotation(area=float("inf")), r"`area` \(=inf\) of annotation .* a number"),
    "crowd": (with_annotation(iscrowd=2), r"`iscrowd` \(=2\) of annotation .* must be 0 or 1"),
    "no mask": (without("segmentation"), "must have an RLE or a polygon of three points or more"),
    "two points": (with_annotation(segmentation=[[1, 2, 3, 4]]), "must have an RLE or a polygon"),
    "odd": (with_annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "lists of numbers x1, y1, x2"),
    "no numbers": (with_annotation(segmentation=[[1, 2, 3, "4", 5, 6]]), "lists of numbers x1"),
    "no finite ones": (
        with_annotation(segmentation=[[1, 2, float("inf"), -float("inf"), 5, 6]]),
        "lists of numbers x1",
    ),
    "words": (with_annotation(segmentation="mask"), "must be a list of polygons, or an RLE"),
    "RLE of another size": (
        with_annotation(segmentation={"size": [5, 6], "counts": [30]}),
        rf"its RLE is of size \[5, 6\], and must be of its image's, \[{SIZE[0]}, {SIZE[1]}\]",
    ),
    "RLE too short": (
        with_annotation(segmentation={"size": SIZE, "counts": [3, 4]}),
        f"whose sum is {SIZE[0] * SIZE[1]}",
    ),
    "RLE without counts": (with_annotation(segmentation={"size": SIZE}), "must have `size` and `c"),
    "twice an image": (
        lambda c: c | {"images": c["images"] + c["images"][:1]},
        r"`id` \(=1\) of image 12 in .*, from 0, must be given once",
    ),
    "twice an annotation": (
        lambda c: c | {"annotations": c["annotations"][:1] * 2},
        rf"`id` \(={ID}\) of annotation 1 in .*, from 0, must be given once",
    ),
    "twice a category": (
        lambda c: c | {"categories": [*c["categories"], {"id": 3, "name": "person"}]},
        "must have each category once, and has `person` several times",
    ),
    "words for a number": (
        lambda c: c | {"images": [c["images"][0] | {"id": "one"}]},
        r"`id` \(='one'\) of image 0 in .*, from 0, must be a whole number",
    ),
    "a number too large": (
        lambda c: c | {"images": [c["images"][0] | {"id": 2**70}]},
        r"`id` \(=1180591620717411303424\) of image 0 in .* must be a whole number of 64 bits",
    ),
    "nested": (
        lambda c: "[" * 200_000,
        "and is not JSON: RecursionError",
    ),
    "RLE without an end": (
        with_annotation(segmentation={"size": SIZE, "counts": "`0P"}),
        "must be whole numbers, and the last has no end",
    ),
    "RLE of other characters": (
        with_annotation(segmentation={"size": SIZE, "counts": "\ud800"}),
        "must be of characters from `0` to `o`",
    ),
    "huge": (
        lambda c: c | {"images": [c["images"][0] | {"height": 2**31}]},
        r"`height` \(=2147483648\) of image 1 in .* must be a whole number of pixels from 1 to",
    ),
    "no height": (
        lambda c: c | {"images": [c["images"][0] | {"height": 0}]},
        r"`height` \(=0\) of image 1 in .* must be a whole number of pixels from 1 to 65535",
    ),
    "missing": (
        lambda c: (
            c | {"images": c["images"] + [c["images"][0] | {"id": 90, "file_name": "x/y.jpg"}]}
        ),
        "must have the images that .* lists, and 1 of 13 are missing: x/y.jpg",
    ),
    "absolute": (
        lambda c: (
            c | {"images": [c["images"][0] | {"id": 90, "file_name": "/1.jpg"}, *c["images"]]}
        ),
        r"`file_name` \(=/1.jpg\) of an image in .* must be relative to the folder of the images",
    ),
    "one file twice": (
        lambda c: c | {"images": c["images"] + [c["images"][0] | {"id": 90}]},
        "must list each image once, and lists 000000000001.jpg again",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_sentence(case, root):
    changed, message = BAD[case]
    content = changed(CONTENT)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "own.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        opened(root)
    assert "\n" not in str(caught.value) and "own.json" in str(caught.value)


def test_files_that_are_not_there_or_of_another_size(root, tmp_path_factory):
    with pytest.raises(InputError, match="none.json must be a file of annotations in COCO's forma"):
        opened(root, file="none.json")
    with pytest.raises(InputError, match="must have images, and has none of 12"):
        opened(root, "train[:1%]")
    with pytest.raises(InputError, match="cannot be listed: No such file"):
        open_objects("folder", "train", root / "no", training=False, annotations=root / "own.json")
    name = CONTENT["images"][0]["file_name"]
    mini.write_folders(root, {name: saved(Image.new("RGB", (13, 11)), "JPEG")})
    with pytest.raises(InputError, match=rf"{name} has 11 x 13 pixels .*, and its annotations say"):
        opened(root)[0]
    mini.write_folders(root, {name: b"no image"})
    with pytest.raises(InputError, match=rf"the image .*{name} cannot be decoded"):
        opened(root)[0]


def test_boxes_that_reach_beyond_are_noted(root):
    content = with_annotation(bbox=[-3.5, 0, 20, 20])(CONTENT)
    (root / "own.json").write_text(json.dumps(content))
    (note,) = opened(root).notes
    assert note == (
        f"{root / 'own.json'}: 1 boxes reach beyond their images, by up to 3.5 pixels (annotation"
        f" {ID}); training cuts them off"
    )


def test_crowded_images_are_noted(root):
    source = opened(root, training=True)
    most = int(source.counts[:, 0].max())
    assert crowded_notes(source, most) == ()
    over = int((source.counts[:, 0] > 2).sum())
    (note,) = crowded_notes(source, 2)
    assert f"{over} images have more than 2 objects, up to {most}; of each the 2 largest" in note


def test_masks_there_and_back():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 1000), (30, 17)):
        pixels = rng.integers(0, 2, shape)
        rle = encode(pixels)
        np.testing.assert_array_equal(bitmap(rle), pixels)
        assert (rle["size"], area(rle)) == (list(shape), pixels.sum())
        again = to_rle({"size": list(shape), "counts": mini.counts_of(pixels)}, *shape)
        assert again == rle
        for counts in (rle["counts"], rle["counts"].decode()):
            check_segmentation({"size": list(shape), "counts": counts}, *shape)
            assert to_rle({"size": list(shape), "counts": counts}, *shape) == rle
            # pycocotools would leave the rest of the pixels to chance.
            for damaged in (counts[:-1], counts * 2, counts[:0]):
                with pytest.raises(InputError, match="must be numbers of pixels, whose sum is"):
                    check_segmentation({"size": list(shape), "counts": damaged}, *shape)


def test_digits_of_scenes(tmp_path_factory):
    """Their boxes are those of their masks, and their area is what these cover."""
    data_dir = shared_folder(tmp_path_factory) / "tfds"
    source = open_objects("digit_scenes", "test[:40]", data_dir, training=False)
    assert source.class_names == tuple("0123456789")
    assert source.category_ids == tuple(range(1, 11)) and source.num_classes == 10
    again = pickle.loads(pickle.dumps(source))
    for index in range(0, 40, 4):
        image, objects = source[index]
        assert image.size == (96, 96) and source.sizes[index].tolist() == [96, 96]
        assert 1 <= len(objects) == source.counts[index].sum() and not objects.is_crowd.any()
        instances = np.asarray(Image.open(io.BytesIO(source._record(index)["instances"])))
        for i in range(len(objects)):
            mask = bitmap(objects.masks[i])
            np.testing.assert_array_equal(mask, instances == i + 1)
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert objects.boxes[i].tolist() == box
            assert objects.area[i] == mask.sum()
        assert again.objects(index).masks == objects.masks
        assert objects.image_id == source._record(index)["index"]
    assert len(ground_truth(source)["annotations"]) == source.counts.sum()
    train = open_objects("digit_scenes", "train[:100]", data_dir, training=True)
    assert len(train) == 100 and train.notes == ()
    with pytest.raises(InputError, match="dataset `digits` must be one of coco2017, digit_scenes,"):
        open_objects("digits", "train", data_dir, training=False)
    with pytest.raises(InputError, match="dataset `coco_2017` must be .*; did you mean coco2017"):
        open_objects("coco_2017", "train", data_dir, training=False)
