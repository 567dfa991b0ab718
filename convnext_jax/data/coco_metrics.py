"""COCO's average precision of boxes and masks.

Overlaps are pycocotools's; matching and the precision over recall are written out here, as its own
take minutes for COCO's size and print. Results are equal to those of its `COCOeval`.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convnext_jax.data.coco_tools import Rle, to_rle
from convnext_jax.errors import InputError, needed_for

# What is matched: boxes, or masks; and where rows have them.
KINDS = ("box", "mask")
_SHAPES = {"box": "bbox", "mask": "segmentation"}
# Overlaps that count as found; not `arange`, whose values are a little larger.
_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
# Areas in pixels from and to, of all objects and of those that results name.
_AREAS = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
# Detections of a class in an image that count, those with the highest scores.
_MOST = 100


@dataclasses.dataclass(frozen=True)
class _Image:
    """The detections of a class in an image, matched with its objects, for each range of areas.

    Attributes:
      scores: float64 [D], descending.
      matched: bool [A, T, D], detections that have an object.
      ignored: bool [A, T, D], detections that count neither way.
      objects: int [A], those that count.
    """

    scores: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray


def average_precisions(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    kinds: Sequence[str] = KINDS,
) -> dict[str, Any]:
    """COCO's average precisions, fractions, with at most 100 detections of an image and class.

    AP is the mean of the highest precision at 101 recalls, over classes and over ten overlaps
    (intersection over union) from 0.5 to 0.95; the field also calls it mAP. Objects marked as
    crowds count neither as found nor as missed. Classes without objects are left out.

    The size of a detected mask is its own area. Results written by mmdet up to 2.11 have the box
    beside the mask, whose area pycocotools then takes: the masks' figures by size, and no others,
    come out slightly different there.

    Args:
      ground_truth: as in COCO's files: `images` with `id`, `height` and `width`; `categories` with
        `id` and `name`; `annotations` with `image_id`, `category_id`, `bbox`, `area`, perhaps
        `iscrowd`, and for masks `segmentation`. Not changed, and ids may be any numbers.
      detections: as in COCO's results: `image_id`, `category_id`, `score`; for boxes `bbox` (x, y,
        width, height), for masks `segmentation` (run lengths); further keys are not looked at.
      kinds: of `KINDS`, what to compute.

    Returns:
      For boxes `box_ap`; `box_ap50` and `box_ap75` at one overlap; `box_ap_small` (area up to 32^2
      pixels), `box_ap_medium` (up to 96^2) and `box_ap_large`, each only if there is such an object
      that is no crowd; and `box_ap_by_class`, a dictionary by name. For masks the same with `mask`.

    Raises:
      InputError: there is no object to find; or a row lacks a key, belongs to an unknown image or
        class, or has a score that is not finite or a mask of another size than its image.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    names = _names(ground_truth["categories"])
    shapes = [_SHAPES[kind] for kind in kinds]
    objects = _grouped("annotation", ground_truth["annotations"], ["area", *shapes], sizes, names)
    found = _grouped("detection", detections, ["score", *shapes], sizes, names)
    if all(row.get("iscrowd") for row in ground_truth["annotations"]):
        raise InputError("the annotations have no object that is to be found")
    results: dict[str, Any] = {}
    for kind in kinds:
        # [T, recalls, classes, A], NaN without objects: in the order that pycocotools averages in.
        precision = np.full((len(_THRESHOLDS), len(_RECALLS), len(names), len(_AREAS)), np.nan)
        for number, category in enumerate(names):
            there, claimed = objects[category], found[category]
            images = [
                _matched(kind, there.get(image, []), claimed.get(image, []), sizes[image])
                for image in sorted({*there, *claimed})
            ]
            if images:
                precision[:, :, number] = _precision(images)
        results |= {f"{kind}_{name}": value for name, value in _means(precision, names).items()}
    return results


def _names(categories: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """Names of classes by their ids, ascending, made unique by their ids where they are not."""
    often = collections.Counter(category["name"] for category in categories)
    return {
        category["id"]: category["name"]
        if often[category["name"]] == 1
        else f"{category['name']} ({category['id']})"
        for category in sorted(categories, key=lambda category: category["id"])
    }


def _grouped(
    what: str,
    rows: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    sizes: Mapping[Any, Any],
    names: Mapping[Any, Any],
) -> dict[Any, dict[Any, list[Mapping[str, Any]]]]:
    """Rows by class, then by image, in their order; they are checked to have the keys."""
    groups: dict[Any, dict[Any, list[Mapping[str, Any]]]] = {name: {} for name in names}
    for row in rows:
        for key in ("image_id", "category_id", *keys):
            if key not in row:
                raise InputError(f"a {what} has no `{key}`: {str(row)[:100]}")
        category, image = row["category_id"], row["image_id"]
        if image not in sizes:
            raise InputError(f"a {what} has the `image_id` {image}, which is no image's")
        if category not in names:
            raise InputError(f"a {what} has the `category_id` {category}, which is no category's")
        if "score" in row and not math.isfinite(row["score"]):
            raise InputError(f"a {what} of image {image} has the score {row['score']}")
        groups[category].setdefault(image, []).append(row)
    return groups


def _matched(
    kind: str,
    objects: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
) -> _Image:
    from convnext_jax.data import coco_matching  # Numba takes a while to import.

    tools: Any = _tools()
    scores = np.array([row["score"] for row in found], np.float64)
    order = np.argsort(-scores, kind="stable")[:_MOST]
    found = [found[i] for i in order]
    if kind == "box":
        shapes, true_shapes = (
            np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
            for rows in (found, objects)
        )
        areas = shapes[:, 2] * shapes[:, 3]
    else:
        shapes, true_shapes = ([_rle(row, size) for row in rows] for rows in (found, objects))
        areas = np.array(tools.area(shapes) if shapes else [], np.float64)
    crowd = np.array([bool(row.get("iscrowd", 0)) for row in objects], bool)
    true_areas = np.array([row["area"] for row in objects], np.float64)
    outside, ignored = (
        np.stack([(values < low) | (values > high) for low, high in _AREAS.values()])
        for values in (areas, true_areas)
    )
    ignored |= crowd[None]
    if len(objects) and len(found):
        overlaps = np.ascontiguousarray(tools.iou(shapes, true_shapes, crowd.astype(np.uint8)))
        matched, of_ignored = coco_matching.match(overlaps, _THRESHOLDS, crowd, ignored)
    else:
        matched = of_ignored = np.zeros((len(_AREAS), len(_THRESHOLDS), len(found)), bool)
    # Neither right nor wrong is also what matches nothing and is of another size.
    of_ignored = of_ignored | (~matched & outside[:, None])
    return _Image(scores[order], matched, of_ignored, (~ignored).sum(1))


def _tools() -> Any:
    with needed_for("COCO's average precision", "predict"):
        from pycocotools import mask
    return mask


def _rle(row: Mapping[str, Any], size: tuple[int, int]) -> Rle:
    mask = row["segmentation"]
    # More is checked where annotations are read; of half a million detections it would take long.
    if isinstance(mask, dict) and list(mask["size"]) != list(size):
        raise InputError(
            f"a mask in the image {row['image_id']} cannot be used: its RLE is of size"
            f" {list(mask['size'])}, and must be of its image's, {list(size)} (height, width)"
        )
    return to_rle(mask, *size)


def _precision(images: Sequence[_Image]) -> np.ndarray:
    """Highest precision at each recall or above, float64 [T, recalls, A]; NaN without objects."""
    scores = np.concatenate([image.scores for image in images])
    # Of equal scores, the image with the lower id is first, as with pycocotools.
    order = np.argsort(-scores, kind="stable")
    matched, ignored = (
        np.concatenate([getattr(image, name) for image in images], axis=2)[:, :, order]
        for name in ("matched", "ignored")
    )
    objects = np.sum([image.objects for image in images], axis=0)
    right = np.cumsum(matched & ~ignored, axis=2, dtype=np.float64)
    wrong = np.cumsum(~matched & ~ignored, axis=2, dtype=np.float64)
    precision = right / (right + wrong + np.spacing(1))
    highest = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
    result = np.full((len(_THRESHOLDS), len(_RECALLS), len(objects)), np.nan)
    for a, t in np.ndindex(*highest.shape[:2]):
        if objects[a]:
            recall = right[a, t] / objects[a]
            places = np.searchsorted(recall, _RECALLS, side="left")
            reached = places < len(order)
            result[t, :, a] = 0.0
            result[t, reached, a] = highest[a, t, places[reached]]
    return result


def _means(precision: np.ndarray, names: Mapping[Any, str]) -> dict[str, Any]:
    """Results by name, of [T, recalls, classes, A]."""
    means: dict[str, Any] = {}
    chosen = {
        "ap": precision[..., 0],
        "ap50": precision[0, ..., 0],
        "ap75": precision[5, ..., 0],
    } | {f"ap_{name}": precision[..., a] for a, name in enumerate(_AREAS) if a}
    for name, values in chosen.items():
        there = values[~np.isnan(values)]
        if there.size:
            means[name] = float(there.mean())
    means["ap_by_class"] = {
        name: float(precision[:, :, number, 0].mean())
        for number, name in enumerate(names.values())
        if not np.isnan(precision[0, 0, number, 0])
    }
    return means
