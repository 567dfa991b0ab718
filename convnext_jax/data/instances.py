"""What is known of the objects in an image, and what sources of such examples share."""

import dataclasses
from collections.abc import Sequence
from concurrent import futures
from typing import Any, Protocol

import numpy as np
from PIL import Image

from convnext_jax.data.coco_tools import Rle
from convnext_jax.data.listing import answered
from convnext_jax.errors import InputError

# Threads that read what is known of images.
_THREADS = 8
# Images with a shorter side, pixels, and boxes with one, are not trained on.
_LEAST_SIDE, LEAST_BOX_SIDE = 32, 1.0


@dataclasses.dataclass(frozen=True)
class Objects:
    """The n objects of an image, as COCO has them.

    Attributes:
      bbox: float64 [n, 4]: left, top, width, height, pixels of the image.
      labels: int32 [n], 0..num_classes-1.
      is_crowd: bool [n], a region with many objects instead of one.
      area: float64 [n], pixels that each covers, by which COCO tells small from large.
      masks: n compressed RLEs of the image's size (`data.coco_tools`).
      height: of the image, pixels.
      width: likewise.
      image_id: its number in COCO's files.
      index: its place in the source.
    """

    bbox: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    area: np.ndarray
    masks: tuple[Rle, ...]
    height: int
    width: int
    image_id: int
    index: int

    def __len__(self) -> int:
        """How many there are."""
        return len(self.labels)

    @property
    def boxes(self) -> np.ndarray:
        """Left, top, right, bottom: float32 [n, 4]."""
        corner = self.bbox[:, :2]
        return np.concatenate([corner, corner + self.bbox[:, 2:]], 1).astype(np.float32)

    def chosen(self, keep: np.ndarray) -> "Objects":
        """Some of them: those where `keep`, bool [n], is true."""
        return dataclasses.replace(
            self,
            bbox=self.bbox[keep],
            labels=self.labels[keep],
            is_crowd=self.is_crowd[keep],
            area=self.area[keep],
            masks=tuple(self.masks[place] for place in np.flatnonzero(keep)),
        )


# An image in RGB, at its own size, and its objects.
Example = tuple[Image.Image, Objects]


class ObjectSource(Protocol):
    """Images with objects, by index. Can be pickled.

    Attributes:
      name: dataset name, as given.
      split: split, as given.
      class_names: name of each class, by label.
      category_ids: COCO's number of each class, by label, which files of results are written with.
      num_classes: how many classes there are.
      num_files: how many files stay open in a process that has read from all of them.
      notes: sentences about the split, if there are any.
      sizes: int32 [N, 2], height and width of each image.
      counts: int32 [N, 2], of each image its objects without crowds, and its crowds.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    num_classes: int
    num_files: int
    notes: tuple[str, ...]

    @property
    def sizes(self) -> np.ndarray: ...  # noqa: D102

    @property
    def counts(self) -> np.ndarray: ...  # noqa: D102

    def __len__(self) -> int: ...  # noqa: D105

    def __getitem__(self, index: int, /) -> Example: ...  # noqa: D105

    def objects(self, index: int, /) -> Objects:
        """The objects of an image, which is not decoded."""
        ...


class ForTraining:
    """The images of a source that are trained on, each with its objects that are.

    As mmdetection 2.11 (`CocoDataset`): images without any annotation, and those with a side below
    32 pixels, are left out; so are objects whose box has a side below one pixel or is outside of
    the image, and those of no area. An image of nothing but crowds stays, and one whose every
    object is left out.

    Attributes: those of `ObjectSource`; indices are others than the source's.
    """

    def __init__(self, source: ObjectSource, *, keep_empty: bool = False):
        """Chooses the images; reads nothing.

        Args:
          source: the examples.
          keep_empty: keep images without any annotation.

        Raises:
          InputError: none is left.
        """
        self.name, self.split = source.name, source.split
        self.class_names, self.category_ids = source.class_names, source.category_ids
        self.num_classes, self.num_files = source.num_classes, source.num_files
        self._source = source
        small = source.sizes.min(1) < _LEAST_SIDE
        empty = source.counts.sum(1) == 0
        self._indices = np.flatnonzero(~small & (keep_empty | ~empty)).astype(np.int32)
        self.sizes, self.counts = source.sizes[self._indices], source.counts[self._indices]
        left_out = len(source) - len(self)
        reasons = f"{int(small.sum())} have a side below {_LEAST_SIDE} pixels"
        if not keep_empty:
            reasons = f"{int((empty & ~small).sum())} have no objects, {reasons}"
        if not len(self):
            raise InputError(
                f"{source} must have images to train on: {reasons}, of {len(source)} images"
            )
        self.notes = source.notes
        if left_out:
            self.notes += (f"{source}: {left_out} of {len(source)} images left out: {reasons}",)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        """An image in RGB and its objects; raises what the source raises."""
        image, found = self._source[self._place(index)]
        return image, self._chosen(found, index)

    def objects(self, index: int) -> Objects:
        """The objects of an image, which is not decoded."""
        return self._chosen(self._source.objects(self._place(index)), index)

    def __str__(self) -> str:
        """Dataset and split, as messages name them."""
        return str(self._source)

    def _place(self, index: int) -> int:
        check_index(index, len(self))
        return int(self._indices[index])

    def _chosen(self, found: Objects, index: int) -> Objects:
        left, top, width, height = found.bbox.T
        inside_width = np.minimum(left + width, found.width) - np.maximum(left, 0)
        inside_height = np.minimum(top + height, found.height) - np.maximum(top, 0)
        keep = (
            (width >= LEAST_BOX_SIDE)
            & (height >= LEAST_BOX_SIDE)
            & (inside_width > 0)
            & (inside_height > 0)
            & (found.area > 0)
        )
        return dataclasses.replace(found.chosen(keep), index=index)


def crowded_notes(source: ObjectSource, max_objects: int) -> tuple[str, ...]:
    """A sentence about images of which not all objects can be trained on, if there are any.

    Args:
      source: the examples.
      max_objects: that a row of a batch holds.
    """
    objects = source.counts[:, 0]
    crowded = int((objects > max_objects).sum())
    if not crowded:
        return ()
    return (
        f"{source}: {crowded} images have more than {max_objects} objects, up to {objects.max()};"
        f" of each the {max_objects} largest that are left after cropping are trained on",
    )


def ground_truth(source: ObjectSource) -> dict[str, Any]:
    """What COCO's evaluation compares detections with; no image is decoded.

    Args:
      source: the examples; all of them, with crowds.

    Returns:
      A dictionary as COCO's files of annotations: `images` (`id`, `height`, `width`) by the
      source's index; `annotations` (`id`, `image_id`, `category_id`, `bbox`, `area`, `iscrowd`, and
      `segmentation`, an RLE with bytes), numbered from 1, as pycocotools takes 0 for no match; and
      `categories` (`id`, `name`) by label.

    Raises:
      InputError: an example cannot be read.
      Lost: the file system does not answer.
    """
    with futures.ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(lambda i: answered(lambda: source.objects(i)), range(len(source))))
    images = [{"id": o.image_id, "height": o.height, "width": o.width} for o in found]
    annotations = [
        {
            "image_id": objects.image_id,
            "category_id": source.category_ids[objects.labels[i]],
            "bbox": objects.bbox[i].tolist(),
            "area": float(objects.area[i]),
            "iscrowd": int(objects.is_crowd[i]),
            "segmentation": objects.masks[i],
        }
        for objects in found
        for i in range(len(objects))
    ]
    categories = zip(source.category_ids, source.class_names, strict=True)
    return {
        "images": images,
        "annotations": [{"id": i} | each for i, each in enumerate(annotations, 1)],
        "categories": [{"id": category, "name": name} for category, name in categories],
    }


def check_index(index: int, count: int) -> None:
    """Raises IndexError unless `index` is in 0..count-1."""
    if not 0 <= index < count:
        raise IndexError(f"`index` (={index}) must be in 0..{count - 1}")


def check_size(image: Image.Image, objects: Objects, name: str, exif: bool) -> None:
    """Raises InputError unless an image is of the size that its annotations say.

    Args:
      image: as it was decoded.
      objects: its annotations.
      name: what to call the image.
      exif: whether it was turned as its EXIF orientation says.
    """
    size, expected = (image.height, image.width), (objects.height, objects.width)
    if size == expected:
        return
    hint = ""
    if size == expected[::-1]:
        hint = f"; `exif` (={exif}) says whether they were made for the image as EXIF turns it"
    raise InputError(
        f"the image {name} has {size[0]} x {size[1]} pixels (height x width), and its annotations"
        f" say {expected[0]} x {expected[1]}; they must be the same{hint}"
    )


def stacked_boxes(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Boxes as an array, float64 [n, 4], also where there are none."""
    return np.asarray(boxes, np.float64).reshape(-1, 4)
