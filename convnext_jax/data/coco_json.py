"""Reads files of annotations in COCO's format, and checks them."""

import dataclasses
import json
from typing import Any

import numpy as np

from convnext_jax.data import coco_tools
from convnext_jax.data.decode import one_line
from convnext_jax.data.instances import LEAST_BOX_SIDE, Objects, stacked_boxes
from convnext_jax.errors import InputError, did_you_mean

# Pixels; pycocotools counts those of an image in 32 bits.
_LARGEST_SIDE = 2**16 - 1
# A box may reach so far beyond its image before a note says so: what rounding does.
_ROUNDING = 1.0

# An annotation as it is kept: its box, label, whether it is a crowd, area, and segmentation.
Annotation = tuple[list[float], int, bool, float | None, Any]


@dataclasses.dataclass(frozen=True)
class CocoFile:
    """What a file of annotations has, in its order.

    Attributes:
      class_names: by label; a label is a category's place in the file.
      category_ids: the number of each category, by label.
      image_ids: the number of each image.
      file_names: of each image.
      sizes: int32 [N, 2], height and width of each image.
      annotations: of each image.
      notes: sentences on what is odd about it.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: list[int]
    file_names: list[str]
    sizes: np.ndarray
    annotations: list[list[Annotation]]
    notes: tuple[str, ...]

    @property
    def counts(self) -> np.ndarray:
        """Objects without crowds, and crowds, of each image: int32 [N, 2]."""
        crowds = [sum(each[2] for each in found) for found in self.annotations]
        return np.array([[len(a) - c, c] for a, c in zip(self.annotations, crowds, strict=True)])


def read_coco(content: bytes, name: str) -> CocoFile:
    """Reads a file of annotations.

    Args:
      content: of the file.
      name: what to call it in an error.

    Raises:
      InputError: it is not JSON or lacks something; a number is given twice; an annotation names an
        image or a category that is not there, or its box or segmentation cannot be its image's.
    """
    if not content.strip():
        raise InputError(f"{name} must have annotations in COCO's format, and is empty")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name} must have annotations in COCO's format, and is not JSON: {one_line(error)}"
        ) from error
    parts = {key: _listed(found, key, name) for key in ("categories", "images", "annotations")}
    categories = _numbered(parts["categories"], "category", ("name",), name)
    names = [str(category["name"]) for category in categories.values()]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise InputError(f"{name} must have each category once, and has `{twice}` several times")
    if not names:
        raise InputError(f"{name} must have categories, and has none")
    images = _numbered(parts["images"], "image", ("file_name", "height", "width"), name)
    if not images:
        raise InputError(f"{name} must have images, and has none")
    for number, image in images.items():
        for side in ("height", "width"):
            if not isinstance(image[side], int) or not 1 <= image[side] <= _LARGEST_SIDE:
                raise InputError(
                    f"`{side}` (={image[side]}) of image {number} in {name} must be a whole number"
                    f" of pixels from 1 to {_LARGEST_SIDE}"
                )
    reader = _Reader(name, images, {category: label for label, category in enumerate(categories)})
    for number, annotation in _numbered(
        parts["annotations"], "annotation", ("image_id", "category_id", "bbox"), name
    ).items():
        reader.add(number, annotation)
    return CocoFile(
        class_names=tuple(names),
        category_ids=tuple(categories),
        image_ids=list(images),
        file_names=[str(image["file_name"]) for image in images.values()],
        sizes=np.array([(i["height"], i["width"]) for i in images.values()], np.int32),
        annotations=list(reader.annotations.values()),
        notes=reader.notes(),
    )


def drawn(
    annotations: list[Annotation], height: int, width: int, image_id: int, index: int
) -> Objects:
    """The objects of annotations, with their masks drawn.

    Args:
      annotations: of an image, as `read_coco` has checked them.
      height: of the image, pixels.
      width: likewise.
      image_id: its number.
      index: its place in its source.
    """
    boxes, labels, crowds, areas, segmentations = (
        zip(*annotations, strict=True) if annotations else [()] * 5
    )
    masks = tuple(coco_tools.to_rle(each, height, width) for each in segmentations)
    areas = [
        coco_tools.area(mask) if given is None else given
        for given, mask in zip(areas, masks, strict=True)
    ]
    return Objects(
        bbox=stacked_boxes(boxes),
        labels=np.array(labels, np.int32),
        is_crowd=np.array(crowds, bool),
        area=np.array(areas, np.float64),
        masks=masks,
        height=height,
        width=width,
        image_id=image_id,
        index=index,
    )


def written(objects: Objects) -> list[Annotation]:
    """What `drawn` makes the same objects of, for JSON: with their masks as they are."""
    return [
        (
            objects.bbox[i].tolist(),
            int(objects.labels[i]),
            bool(objects.is_crowd[i]),
            float(objects.area[i]),
            objects.masks[i] | {"counts": objects.masks[i]["counts"].decode()},
        )
        for i in range(len(objects))
    ]


class _Reader:
    """Takes annotations, and puts each to its image."""

    def __init__(self, name: str, images: dict[int, Any], labels: dict[int, int]):
        self.annotations: dict[int, list[Annotation]] = {number: [] for number in images}
        self._name, self._images, self._labels = name, images, labels
        self._beyond: list[tuple[float, int]] = []
        self._small: list[int] = []

    def add(self, number: int, found: dict[str, Any]) -> None:
        """Checks an annotation; raises InputError."""
        what = f"annotation {number} in {self._name}"
        image = _by_number(self._images, found["image_id"])
        if image is None:
            raise InputError(
                f"`image_id` (={found['image_id']}) of {what} must be that of one of its"
                f" {len(self._images)} images"
            )
        label = _by_number(self._labels, found["category_id"])
        if label is None:
            numbers = ", ".join(map(str, self._labels))
            raise InputError(
                f"`category_id` (={found['category_id']}) of {what} must be that of one of its"
                f" categories: {numbers}"
            )
        height, width = image["height"], image["width"]
        self._check_box(number, found["bbox"], height, width)
        area = found.get("area")
        if area is not None and not _is_number(area):
            raise InputError(f"`area` (={area}) of {what} must be a number")
        if min(found["bbox"][2:]) < LEAST_BOX_SIDE or (area is not None and area <= 0):
            self._small.append(number)
        if found.get("iscrowd", 0) not in (0, 1):
            raise InputError(f"`iscrowd` (={found['iscrowd']}) of {what} must be 0 or 1")
        segmentation = found.get("segmentation", [])
        try:
            coco_tools.check_segmentation(segmentation, height, width)
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
        self.annotations[found["image_id"]].append(
            (found["bbox"], label, bool(found.get("iscrowd", 0)), area, segmentation)
        )

    def _check_box(self, number: int, box: Any, height: int, width: int) -> None:
        what = f"`bbox` (={box}) of annotation {number} in {self._name}"
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise InputError(f"{what} must be four finite numbers: left, top, width, height")
        left, top, wide, high = box
        if wide < 0 or high < 0:
            raise InputError(f"{what} must have a width and a height of 0 or more")
        # Touching counts: a box of no width may lie on the edge.
        if left > width or top > height or left + wide < 0 or top + high < 0:
            raise InputError(
                f"{what} must be in its image of {height} x {width} pixels (height x width), and"
                f" lies outside"
            )
        beyond = max(-left, -top, left + wide - width, top + high - height)
        if beyond > _ROUNDING:
            self._beyond.append((beyond, number))

    def notes(self) -> tuple[str, ...]:
        """What is odd, and no mistake."""
        found = []
        if self._beyond:
            most, number = max(self._beyond)
            found.append(
                f"{self._name}: {len(self._beyond)} boxes reach beyond their images, by up to"
                f" {most:.6g} pixels (annotation {number}); training cuts them off"
            )
        if self._small:
            found.append(
                f"{self._name}: {len(self._small)} objects have a side below {LEAST_BOX_SIDE:g}"
                f" pixel or no area (annotation {self._small[0]}); training leaves them out"
            )
        return tuple(found)


def _listed(found: Any, key: str, name: str) -> list[Any]:
    if not isinstance(found, dict) or not isinstance(found.get(key), list):
        hint = did_you_mean(key, map(str, found)) if isinstance(found, dict) else ""
        raise InputError(
            f"{name} must have annotations in COCO's format, and has no list `{key}`{hint}"
        )
    return found[key]


def _numbered(
    rows: list[Any], what: str, keys: tuple[str, ...], name: str
) -> dict[int, dict[str, Any]]:
    """Rows by their `id`; InputError where one lacks a key or has the number of another."""
    found = dict[int, dict[str, Any]]()
    for place, row in enumerate(rows):
        for key in ("id", *keys):
            if not isinstance(row, dict) or key not in row:
                raise InputError(f"{what} {place} in {name}, from 0, must have `{key}`")
        number = row["id"]
        if not isinstance(number, int) or abs(number) >= 2**63:
            raise InputError(
                f"`id` (={number!r}) of {what} {place} in {name}, from 0, must be a whole number of"
                f" 64 bits"
            )
        if number in found:
            raise InputError(
                f"`id` (={number}) of {what} {place} in {name}, from 0, must be given once"
            )
        found[number] = row
    return found


def _by_number(table: dict[int, Any], number: Any) -> Any:
    """What a table has for a number of JSON, which may be anything; None: nothing."""
    return table.get(number) if isinstance(number, int) else None


def _is_number(value: Any) -> bool:
    # A whole number may be too large for `isfinite`.
    return isinstance(value, int | float) and -1e9 < value < 1e9
