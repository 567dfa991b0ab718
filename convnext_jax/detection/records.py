"""What is kept of the detections in evaluated images: from a batch to COCO's result files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convnext_jax.checkpointing.steps import write_at_once
from convnext_jax.detection.pasting import encode, paste
from convnext_jax.errors import InputError, RunError
from convnext_jax.processes import usable_cores

# What is kept of an image: `index`, its place in the source; of its D detections, by score, `boxes`
# [D, 4] (x1, y1, x2, y2 in pixels of the image as it is stored), `scores` and `labels` [D], and
# `masks` [D], counts of COCO's compressed run lengths. Lists of Python's numbers and texts, as JSON
# has them.
Record = dict[str, Any]


class Found(NamedTuple):
    """The D detections of a row that are there, in the image as it is stored.

    Attributes:
      boxes: float32 [D, 4], x1, y1, x2, y2, pixels.
      scores: float32 [D], descending.
      labels: int32 [D].
      masks: float32 [D, m, m], probabilities over the boxes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def in_original(row: Mapping[str, np.ndarray], detections: Any, place: int) -> Found:
    """Takes the detections of a row from the resized image to the one that is stored.

    Args:
      row: arrays of which the row is one: `size` and `original`, int [N, 2], height and width of
        the resized image without filling and of the stored one.
      detections: `boxes` [N, D, 4] in pixels of the resized image, upright; `scores` [N, D],
        `labels` [N, D], -1 where nothing is; `masks` [N, D, m, m].
      place: the row's.
    """
    labels = np.asarray(detections.labels[place])
    scores = np.asarray(detections.scores[place])
    there = np.flatnonzero(labels >= 0)
    there = there[np.argsort(-scores[there], kind="stable")]
    resized, original = (np.asarray(row[name][place]) for name in ("size", "original"))
    # Width and height have scales of their own: both sides were rounded.
    scale = (resized / original).astype(np.float32)[[1, 0, 1, 0]]
    boxes = np.asarray(detections.boxes[place], np.float32)[there] / scale
    masks = np.asarray(detections.masks[place], np.float32)[there]
    return Found(boxes, scores[there].astype(np.float32), labels[there].astype(np.int32), masks)


def records(rows: Mapping[str, np.ndarray], detections: Any) -> list[Record]:
    """What is kept of a batch: masks are pasted, on all cores.

    Args:
      rows: of this process, arrays by name: `index` int [N], -1 for filling; `mask` [N], if it is
        there 0 for filling; `size` and `original` as in `in_original`.
      detections: of the same rows, as in `in_original`; on the host or a device of this process.

    Returns:
      One for each row that is no filling, also where nothing was found.
    """
    # Each array comes from the device once, not once a row.
    detections = Found(*(np.asarray(getattr(detections, name)) for name in Found._fields))
    real = np.asarray(rows["index"]) >= 0
    if "mask" in rows:
        real &= np.asarray(rows["mask"]) > 0

    def record(place: int) -> Record:
        found = in_original(rows, detections, place)
        height, width = (int(side) for side in rows["original"][place])
        masks = [
            encode(paste(mask, box, height, width), height, width)["counts"]
            for mask, box in zip(found.masks, found.boxes, strict=True)
        ]
        return {
            "index": int(rows["index"][place]),
            "boxes": _numbers(found.boxes),
            "scores": _numbers(found.scores),
            "labels": found.labels.tolist(),
            "masks": masks,
        }

    with futures.ThreadPoolExecutor(usable_cores()) as threads:
        return list(threads.map(record, np.flatnonzero(real).tolist()))


def coco_detections(
    ground_truth: Mapping[str, Any], kept: Iterable[Record]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Records as COCO has results, with its ids of images and classes.

    Args:
      ground_truth: as in COCO's files, with `images` in the order of the source and `categories` in
        that of the labels.
      kept: of images of the source, in any order, each once.

    Returns:
      The ground truth of those images alone, without those that could not be read; and their
      detections: `image_id`, `category_id`, `score`, `bbox` (x, y, width, height), `segmentation`.

    Raises:
      InputError: the ground truth has no such image or class.
      RunError: an image is there twice.
    """
    images, categories = ground_truth["images"], ground_truth["categories"]
    detections: list[dict[str, Any]] = []
    seen: set[int] = set()
    for one in kept:
        index = one["index"]
        if index in seen:
            raise RunError(f"the image with index {index} was evaluated twice")
        seen.add(index)
        if not 0 <= index < len(images):
            raise InputError(f"the index {index} is beyond the {len(images)} images annotated")
        image = images[index]
        size = [image["height"], image["width"]]
        for box, score, label, counts in zip(
            one["boxes"], one["scores"], one["labels"], one["masks"], strict=True
        ):
            if not 0 <= label < len(categories):
                raise InputError(f"the label {label} is beyond the {len(categories)} classes")
            x1, y1, x2, y2 = box
            detections.append(
                {
                    "image_id": image["id"],
                    "category_id": categories[label]["id"],
                    "score": score,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": {"size": size, "counts": counts},
                }
            )
    evaluated = {images[index]["id"] for index in seen}
    part = {
        **ground_truth,
        "images": [image for image in images if image["id"] in evaluated],
        "annotations": [a for a in ground_truth["annotations"] if a["image_id"] in evaluated],
    }
    return part, detections


def write_results(prefix: Path, detections: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Writes PREFIX.bbox.json and PREFIX.segm.json, which COCO's tools and its server read.

    Masks come without boxes: pycocotools would take sizes of boxes for theirs. It reads no file
    without any detection.

    Args:
      prefix: of both, with the folder, which must be there.
      detections: as `coco_detections` gives them.

    Returns:
      The files.

    Raises:
      RunError: one cannot be written.
    """
    files = []
    for ending, other in (("bbox", "segmentation"), ("segm", "bbox")):
        rows = [{k: v for k, v in row.items() if k != other} for row in detections]
        file = prefix.with_name(f"{prefix.name}.{ending}.json")
        try:
            write_at_once(file, json.dumps(rows, separators=(",", ":")))
        except OSError as error:
            raise RunError(f"writing {file} failed: {error}") from error
        files.append(file)
    return files


def _numbers(values: np.ndarray) -> list[Any]:
    """Float32 as the shortest numbers that stand for them: half as long as their exact values."""
    if values.ndim == 1:
        return [float(str(value)) for value in values]
    return [_numbers(row) for row in values]
