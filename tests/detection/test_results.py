"""Detections of batches become COCO's results of the images as they are stored."""

import contextlib
import io
import json
import os
import pathlib
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from convnext_jax.detection.metrics import results, words
from convnext_jax.detection.records import (
    coco_detections,
    records,
    write_results,
)
from convnext_jax.errors import InputError, RunError

# Height and width as stored and resized: the scales of both axes differ by rounding.
ORIGINAL = np.array([[37, 50], [50, 37], [20, 30]], np.int32)
RESIZED = np.array([[59, 80], [80, 59], [53, 80]], np.int32)


def truth():
    categories = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 90, "name": "brush"}]
    images = [
        {"id": 500 - i, "height": int(h), "width": int(w)} for i, (h, w) in enumerate(ORIGINAL)
    ]
    return {"images": images, "categories": categories, "annotations": []}


def batch(seed=0, count=7):
    """Three images and a row of filling; each has places without a detection."""
    rng = np.random.default_rng(seed)
    sizes = np.concatenate([RESIZED, RESIZED[:1]])
    limits = np.tile(sizes[:, None, ::-1], (1, count, 1)).astype(np.float32)
    first = rng.random((4, count, 2), np.float32) * limits * 0.6
    boxes = np.concatenate([first, first + 0.4 * limits * rng.random(first.shape, np.float32)], -1)
    labels = rng.integers(-1, 3, (4, count)).astype(np.int32)
    labels[:, 0], labels[2] = -1, -1  # the third has none
    detections = types.SimpleNamespace(
        boxes=boxes,
        scores=rng.random((4, count), np.float32),
        labels=labels,
        masks=rng.random((4, count, 28, 28), np.float32),
    )
    rows = {
        "index": np.array([2, 0, 1, -1], np.int32)[[1, 2, 0, 3]],
        "mask": np.array([1, 1, 1, 0], np.int32),
        "size": sizes,
        "original": np.concatenate([ORIGINAL, ORIGINAL[:1]]),
        "portrait": np.zeros(4, np.int32),
    }
    return rows, detections


def test_records_are_of_the_images_as_stored():
    rows, detections = batch()
    kept = records(rows, detections)
    assert [one["index"] for one in kept] == [0, 1, 2]
    for place, one in enumerate(kept):
        labels = detections.labels[place]
        there = np.flatnonzero(labels >= 0)
        there = there[np.argsort(-detections.scores[place, there])]
        assert one["labels"] == labels[there].tolist()
        np.testing.assert_array_equal(
            np.float32(one["scores"]), detections.scores[place, there]
        )  # to the bit
        factors = np.tile(ORIGINAL[place, ::-1] / RESIZED[place, ::-1], 2)
        expected = (detections.boxes[place, there] * factors).reshape(-1, 4)
        # A float32 quotient of a float32 scale.
        np.testing.assert_allclose(np.reshape(one["boxes"], (-1, 4)), expected, rtol=3e-7)
        for counts, box in zip(one["masks"], one["boxes"], strict=True):
            bitmap = coco_mask.decode({"size": ORIGINAL[place].tolist(), "counts": counts})
            rows_of, columns = np.nonzero(bitmap)
            assert len(rows_of)
            x1, y1, x2, y2 = box
            assert x1 <= columns.min() + 0.5 and columns.max() + 0.5 <= x2
            assert y1 <= rows_of.min() + 0.5 and rows_of.max() + 0.5 <= y2
    assert kept[2]["labels"] == kept[2]["boxes"] == kept[2]["masks"] == []


def test_results_have_the_ids_of_the_annotations():
    rows, detections = batch()
    kept = records(rows, detections)
    part, found = coco_detections(truth(), kept[:2])
    assert [image["id"] for image in part["images"]] == [500, 499]
    assert len(found) == sum(len(one["labels"]) for one in kept[:2])
    first = found[0]
    assert first["image_id"] == 500
    assert first["category_id"] == [18, 3, 90][kept[0]["labels"][0]]
    x1, y1, x2, y2 = kept[0]["boxes"][0]
    assert first["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert first["segmentation"] == {"size": [37, 50], "counts": kept[0]["masks"][0]}


def test_records_that_do_not_fit_are_refused():
    kept = records(*batch())
    with pytest.raises(RunError, match="index 0 was evaluated twice"):
        coco_detections(truth(), [*kept, kept[0]])
    with pytest.raises(InputError, match="index 7 is beyond the 3 images"):
        coco_detections(truth(), [kept[0] | {"index": 7}])
    labels = [3] * len(kept[0]["labels"])
    with pytest.raises(InputError, match="label 3 is beyond the 3 classes"):
        coco_detections(truth(), [kept[0] | {"labels": labels}])


def test_files_are_read_by_pycocotools(tmp_path):
    part, found = coco_detections(truth(), records(*batch()))
    files = write_results(tmp_path / "epoch_3.5", found)
    assert [file.name for file in files] == ["epoch_3.5.bbox.json", "epoch_3.5.segm.json"]
    assert sorted(tmp_path.iterdir()) == files
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = part
        coco.createIndex()
        boxes, masks = (coco.loadRes(str(file)).dataset["annotations"] for file in files)
    for row, box, mask in zip(found, boxes, masks, strict=True):
        assert box["bbox"] == row["bbox"]
        assert mask["area"] == coco_mask.area(row["segmentation"])
        assert mask["category_id"] == row["category_id"] == box["category_id"]
    assert [json.loads(file.read_text()) for file in write_results(tmp_path / "none", [])] == [
        [],
        [],
    ]


def test_a_failure_to_write_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match="writing .*x.bbox.json failed"):
        write_results(tmp_path / "nowhere" / "x", [])


def test_skipped_images_do_not_count():
    # Detections that are the truth, of two images; the third could not be read.
    annotated = truth()
    kept = []
    for index in range(2):
        height, width = ORIGINAL[index].tolist()
        bitmap = np.zeros((height, width), np.uint8, order="F")
        bitmap[5:15, 4:30] = 1
        mask = coco_mask.encode(bitmap)["counts"].decode()
        record = {"boxes": [[4.0, 5.0, 30.0, 15.0]], "scores": [0.9], "labels": [1]}
        kept.append({"index": index, **record, "masks": [mask]})
    for number, image in enumerate(annotated["images"]):
        annotated["annotations"].append(
            {
                "id": number + 1,
                "image_id": image["id"],
                "category_id": 3,
                "bbox": [4, 5, 26, 10],
                "area": 260,
                "segmentation": [[4, 5, 30, 5, 30, 15, 4, 15]],
            }
        )
    found = results(annotated, kept)
    assert found == {
        f"{kind}_{name}": pytest.approx(1)
        for kind in ("box", "mask")
        for name in ("ap", "ap50", "ap75", "ap_small")
    }
    assert results(annotated, kept, per_class=True)["mask_ap_by_class"] == {"car": pytest.approx(1)}
    assert words(found) == (
        "box AP 100.0% (at 0.5 100.0%, at 0.75 100.0%),"
        " mask AP 100.0% (at 0.5 100.0%, at 0.75 100.0%)"
    )
    nothing = {"boxes": [], "scores": [], "labels": [], "masks": []}
    # One that was read, and where nothing was found, does count: 67 of 101 recalls are reached.
    with_third = results(annotated, [*kept, {"index": 2, **nothing}])
    assert with_third["box_ap"] == pytest.approx(67 / 101)


_PROGRAM = """
import json, sys
import jax
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[1]))
from convnext_jax.processes import lists_from_all
own = {"0": [{"index": 3, "masks": ["a" * 1000]}, {"index": 0, "masks": []}], "1": []}
print(json.dumps(lists_from_all(own[sys.argv[1]])))
"""


def test_processes_gather_their_records():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    root = pathlib.Path(__file__).parents[2]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(index), address],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    ends = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    everything = [{"index": 3, "masks": ["a" * 1000]}, {"index": 0, "masks": []}]
    assert [json.loads(said.splitlines()[-1]) for said, _ in ends] == [everything] * 2
