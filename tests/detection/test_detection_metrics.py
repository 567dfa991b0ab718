"""Average precision against pycocotools's COCOeval, and against a plain statement of it."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convnext_jax.data.coco_metrics import average_precisions
from convnext_jax.errors import InputError

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def plainly(ground_truth, detections, kind, *, with_boxes=False):
    """COCOeval as its own examples drive it: the six figures, -1 where nothing is there."""
    key, other = ("bbox", "segmentation") if kind == "box" else ("segmentation", "bbox")
    detections = copy.deepcopy(detections)
    if not with_boxes:
        detections = [{k: v for k, v in d.items() if k != other} for d in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(ground_truth)
        coco.createIndex()
        found = coco.loadRes(detections)
        evaluation = COCOeval(coco, found, "bbox" if key == "bbox" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    by_class = evaluation.eval["precision"][:, :, :, 0, 2]
    return evaluation.stats[:6], by_class


def mask_of(box, height, width, grow=0.0):
    """An ellipse in a box, COCO's run lengths."""
    x, y, w, h = box
    rows, columns = np.mgrid[:height, :width] + 0.5
    inside = ((columns - x - w / 2) / (w / 2 + grow + 1e-6)) ** 2 + (
        (rows - y - h / 2) / (h / 2 + grow + 1e-6)
    ) ** 2 <= 1
    encoded = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def synthetic(seed, images=12, classes=(7, 3, 90, 41), most=8, extra=3, polygons=True):
    """Objects of all sizes, some crowds; detections near them, doubled, and anywhere; ties."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": c, "name": f"class {c}"} for c in classes],
    }
    detections = []
    for image in range(images):
        height, width = (int(v) for v in rng.integers(120, 260, 2))
        identity = 1000 - 7 * image  # neither ascending nor dense
        truth["images"].append({"id": identity, "height": height, "width": width})

        def draw(height=height, width=width):
            w, h = np.exp(rng.uniform(np.log(5), np.log([width, height]), 2))
            return [rng.uniform(0, width - w), rng.uniform(0, height - h), w, h]

        for _ in range(rng.integers(0, most)):
            box = draw()
            # The last class has crowds only, or no object at all.
            last = rng.random() < 0.05
            category = classes[-1] if last else int(rng.choice(classes[:-1]))
            crowd = bool(last or rng.random() < 0.15)
            x, y, w, h = box
            if crowd:
                shape = mask_of(box, height, width)
                bitmap = coco_mask.decode(shape)
                runs = np.diff(
                    np.flatnonzero(np.diff(np.r_[2, bitmap.ravel(order="F"), 2])),
                ).tolist()
                shape = {
                    "size": [height, width],
                    "counts": runs if not bitmap[0, 0] else [0, *runs],
                }
            elif polygons:
                shape = [[x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]]
            else:
                shape = mask_of(box, height, width)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": identity,
                    "category_id": category,
                    "bbox": box,
                    "area": w * h * 0.7,
                    "iscrowd": int(crowd),
                    "segmentation": shape,
                }
            )
            for _ in range(rng.integers(0, 3)):
                near = np.array(box) + rng.normal(0, 0.07, 4) * [w, h, w, h]
                near[2:] = np.maximum(near[2:], 1)
                detections.append([identity, category, near.tolist(), (height, width)])
        for _ in range(extra):
            detections.append([identity, int(rng.choice(classes)), draw(), (height, width)])
    rows = [
        {
            "image_id": identity,
            "category_id": category,
            "bbox": box,
            "score": float(rng.integers(1, 20) / 20),  # many are equal
            "segmentation": mask_of(box, *size),
        }
        for identity, category, box, size in detections
    ]
    return truth, [rows[i] for i in rng.permutation(len(rows))]


def check(ground_truth, detections):
    before = copy.deepcopy((ground_truth, detections))
    found = average_precisions(ground_truth, detections)
    assert (ground_truth, detections) == before  # as it was given
    for kind in ("box", "mask"):
        expected, by_class = plainly(ground_truth, detections, kind)
        for name, value in zip(NAMES, expected, strict=True):
            if value == -1:
                assert f"{kind}_{name}" not in found
            else:
                # The same numbers, averaged in another order.
                assert found[f"{kind}_{name}"] == pytest.approx(value, rel=1e-12, abs=0), name
        categories = sorted(ground_truth["categories"], key=lambda c: c["id"])
        of_class = {
            c["name"]: by_class[:, :, i].mean()
            for i, c in enumerate(categories)
            if (by_class[:, :, i] > -1).all()
        }
        assert found[f"{kind}_ap_by_class"] == pytest.approx(of_class, rel=1e-12, abs=0)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_figures_are_those_of_cocoeval(seed, capfd):
    truth, detections = synthetic(seed, polygons=seed % 2 == 0)
    found = check(truth, detections)
    assert 0 < found["box_ap"] < 1
    assert capfd.readouterr() == ("", "")


def test_a_hundred_detections_of_a_class_count():
    truth, detections = synthetic(100, images=2, classes=(1, 2), extra=260)
    counts = {}
    for row in detections:
        key = row["image_id"], row["category_id"]
        counts[key] = counts.get(key, 0) + 1
    assert min(counts.values()) > 105
    check(truth, detections)


def statement(overlaps, scores, crowd, threshold):
    """AP of one image and class at one threshold, in the words of COCO's definition."""
    matched, right, wrong = set(), [], []
    for d in np.argsort(-np.asarray(scores), kind="stable"):
        free = [g for g in range(len(crowd)) if not crowd[g] and g not in matched]
        best = max(free, key=lambda g: overlaps[d][g], default=None)
        if best is not None and overlaps[d][best] >= threshold:
            matched.add(best)
            right.append(1)
            wrong.append(0)
        elif not any(crowd[g] and overlaps[d][g] >= threshold for g in range(len(crowd))):
            right.append(0)
            wrong.append(1)
    right, wrong = np.cumsum(right), np.cumsum(wrong)
    recall = right / (len(crowd) - sum(crowd))
    precision = right / (right + wrong)
    levels = np.linspace(0, 1, 101)
    return np.mean([max(precision[recall >= level], default=0) for level in levels])


def overlap(found, true, crowd):
    """Intersection over union of boxes x, y, w, h; over the detection's own area for a crowd."""
    low, high = (
        np.maximum(found[:2], true[:2]),
        np.minimum(np.add(found[:2], found[2:]), np.add(true[:2], true[2:])),
    )
    common = np.prod(np.maximum(high - low, 0))
    own, other = found[2] * found[3], true[2] * true[3]
    return common / (own if crowd else own + other - common)


def one_image(boxes, crowd, found, scores):
    truth = {
        "images": [{"id": 1, "height": 300, "width": 300}],
        "categories": [{"id": 5, "name": "thing"}, {"id": 9, "name": "never there"}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": 1,
                "category_id": 5,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(c),
            }
            for i, (box, c) in enumerate(zip(boxes, crowd, strict=True))
        ],
    }
    rows = [
        {"image_id": 1, "category_id": 5, "bbox": box, "score": score}
        for box, score in zip(found, scores, strict=True)
    ]
    return truth, rows


HAND_MADE = {
    "all found": ([[0, 0, 10, 10], [50, 50, 40, 20]], [0, 0], [1.0, 1.0], 0),
    "one missed": ([[0, 0, 10, 10], [50, 50, 40, 20], [100, 0, 50, 50]], [0, 0, 0], [1.0, 1.0], 0),
    "with a crowd": ([[0, 0, 10, 10], [40, 40, 80, 80]], [0, 1], [1.0, 0.5], 3),
    "false ones first": ([[0, 0, 30, 30], [50, 50, 40, 20]], [0, 0], [0.3, 0.2], 4),
}


@pytest.mark.parametrize("case", HAND_MADE)
def test_figures_are_those_of_the_definition(case):
    boxes, crowd, scores, others = HAND_MADE[case]
    rng = np.random.default_rng(len(case))
    found = [np.add(box, rng.uniform(-1.2, 1.2, 4)).tolist() for box in boxes[: len(scores)]]
    # Inside the crowd, where there is one, and so neither right nor wrong.
    found += [[*rng.uniform(45, 80, 2), 20, 20] for _ in range(others)]
    scores = scores + rng.uniform(0.4, 0.9, others).tolist()
    truth, rows = one_image(boxes, crowd, found, scores)
    overlaps = [[overlap(f, b, c) for b, c in zip(boxes, crowd, strict=True)] for f in found]
    expected = {t: statement(overlaps, scores, crowd, t) for t in np.linspace(0.5, 0.95, 10)}
    results = average_precisions(truth, rows, kinds=("box",))
    # Fractions of small whole numbers; pycocotools adds 2e-16 to what it divides by.
    assert results["box_ap"] == pytest.approx(np.mean(list(expected.values())), rel=1e-12)
    assert results["box_ap50"] == pytest.approx(expected[0.5], rel=1e-12)
    assert results["box_ap_by_class"] == {"thing": pytest.approx(results["box_ap"])}
    assert "box_ap_large" not in results  # nothing of 96 x 96 pixels is to be found
    if case == "all found":
        assert results["box_ap50"] == pytest.approx(1)
    if case == "one missed":
        assert results["box_ap50"] == pytest.approx(67 / 101)  # recalls 0, 0.01, .., 0.66


def test_no_detections_give_zero():
    truth, _ = synthetic(3)
    found = average_precisions(truth, [])
    assert {found[f"{kind}_{name}"] for kind in ("box", "mask") for name in NAMES} == {0.0}


def test_an_annotation_may_have_the_id_0():
    truth, detections = synthetic(4)
    whole = average_precisions(truth, detections)
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = number
    assert average_precisions(truth, detections) == whole
    # What is avoided: COCOeval takes that object for none.
    assert plainly(truth, detections, "box")[0][0] < whole["box_ap"]


def test_sizes_of_masks_are_their_own():
    truth, detections = synthetic(5)
    found = average_precisions(truth, detections)
    # What mmdet 2.11 had, whose results of masks have boxes too: the size is the box's.
    expected, _ = plainly(truth, detections, "mask", with_boxes=True)
    differ = [
        name
        for name, value in zip(NAMES, expected, strict=True)
        if found[f"mask_{name}"] != pytest.approx(value, rel=1e-12)
    ]
    assert differ and set(differ) <= {"ap_small", "ap_medium", "ap_large"}


def test_images_without_objects_count_what_is_found_there():
    truth, rows = one_image([[0, 0, 50, 50]], [0], [[0, 0, 50, 50]], [0.5])
    truth["images"].append({"id": 2, "height": 99, "width": 99})
    assert average_precisions(truth, rows, ["box"])["box_ap"] == pytest.approx(1)
    rows.append({"image_id": 2, "category_id": 5, "bbox": [0, 0, 5, 5], "score": 0.6})
    assert average_precisions(truth, rows, ["box"])["box_ap"] == pytest.approx(0.5)
    # A class that is nowhere has no figure to spoil.
    rows.append({"image_id": 2, "category_id": 9, "bbox": [0, 0, 5, 5], "score": 0.6})
    assert average_precisions(truth, rows, ["box"])["box_ap"] == pytest.approx(0.5)


def test_classes_of_one_name_stay_apart():
    truth, rows = one_image([[0, 0, 50, 50]], [0], [[0, 0, 50, 50]], [0.5])
    truth["categories"][1]["name"] = "thing"
    assert average_precisions(truth, rows, ["box"])["box_ap_by_class"].keys() == {"thing (5)"}


def test_what_does_not_fit_is_refused():
    truth, rows = one_image([[0, 0, 50, 50]], [0], [[0, 0, 50, 50]], [0.5])
    small = coco_mask.encode(np.zeros((299, 300), np.uint8, "F"))
    mask = {"segmentation": coco_mask.encode(np.zeros((300, 300), np.uint8, "F"))}
    truth["annotations"][0]["segmentation"] = [[0, 0, 50, 0, 50, 50, 0, 50]]
    for change, sentence in (
        ({"image_id": 3}, "a detection has the `image_id` 3, which is no image's"),
        ({"category_id": 1}, "the `category_id` 1, which is no category's"),
        ({"score": float("nan")}, "image 1 has the score nan"),
        (
            {"segmentation": small},
            r"its RLE is of size \[299, 300\], and must be of its image's, \[300, 300\]",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            average_precisions(truth, [rows[0] | mask | change])
    with pytest.raises(InputError, match="a detection has no `segmentation`"):
        average_precisions(truth, rows)
    truth["annotations"][0]["iscrowd"] = 1
    with pytest.raises(InputError, match="no object that is to be found"):
        average_precisions(truth, rows, ["box"])
