"""A dataset whose labels are those of a model, which has its classes in another order, or more."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from convnext_jax.constants import IGNORED


class Relabelled:
    """A split of a dataset with other labels. Can be pickled if the dataset can.

    Attributes:
      name: dataset name, as the dataset has it.
      split: split, likewise.
      class_names: name of each class, by the new label.
      num_classes: how many classes there are.
      num_files: that reading it keeps open, at most.
      notes: sentences on the dataset, as it has them.
      among: the new labels that examples can have, if not all.
      lists: an example has a tuple of labels, and not one.
    """

    def __init__(self, source: Any, places: Sequence[int], class_names: Sequence[str] = ()):
        """Opens nothing.

        Args:
          source: the dataset, as `sources.open_source` gives it.
          places: the new label of each of its labels, each another one.
          class_names: by the new label, where there are more of them; none: the dataset's own.
        """
        self.name, self.split = source.name, source.split
        names = dict(zip(places, source.class_names, strict=True))
        self.class_names = tuple(class_names) or tuple(names[label] for label in sorted(names))
        self.num_classes = len(self.class_names)
        self.num_files, self.notes = source.num_files, source.notes
        among = getattr(source, "among", None)
        self.among = None if among is None else tuple(sorted(places[label] for label in among))
        self.lists = getattr(source, "lists", False)
        self._source = source
        self._places = tuple(places)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        """Reads and decodes one example, as the dataset does; with its new label."""
        image, label = self._source[index]
        if self.lists:
            return image, tuple(self._places[each] for each in label)
        return image, self._places[label]

    def __str__(self) -> str:
        """Dataset and split, as messages name them."""
        return str(self._source)


class RelabelledMasks(Relabelled):
    """The same of a dataset of masks, as `masks.open_masks` gives it: pixels have new labels."""

    def __init__(self, source: Any, places: Sequence[int]):
        """Takes what `Relabelled` does."""
        super().__init__(source, places)
        self._labels = np.full(IGNORED + 1, IGNORED, np.uint8)
        self._labels[: self.num_classes] = places

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Reads and decodes one example, as the dataset does; with its new labels."""
        image, labels = self._source[index]
        return image, self._labels[labels]

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width that no mask exceeds."""
        return self._source.largest


class RelabelledObjects(Relabelled):
    """The same of a dataset of objects, as `objects.open_objects` gives it.

    Attributes: those of `instances.ObjectSource`, too.
    """

    def __init__(self, source: Any, places: Sequence[int]):
        """Takes what `Relabelled` does."""
        super().__init__(source, places)
        ids = dict(zip(places, source.category_ids, strict=True))
        self.category_ids = tuple(ids[label] for label in sorted(ids))

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        """Reads and decodes one image, as the dataset does; with its objects' new labels."""
        image, objects = self._source[index]
        return image, self._relabelled(objects)

    def objects(self, index: int) -> Any:
        """The objects of an image, which is not decoded."""
        return self._relabelled(self._source.objects(index))

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each image, int32 [N, 2]."""
        return self._source.sizes

    @property
    def counts(self) -> np.ndarray:
        """Of each image its objects, and its crowds: int32 [N, 2]."""
        return self._source.counts

    def _relabelled(self, objects: Any) -> Any:
        labels = np.array(self._places, np.int32)[objects.labels]
        return dataclasses.replace(objects, labels=labels)


def relabelled(source: Any, places: Sequence[int]) -> Any:
    """A dataset with other labels, of images, masks or objects; see the three classes above."""
    for attribute, kind in (("largest", RelabelledMasks), ("objects", RelabelledObjects)):
        if hasattr(source, attribute):
            return kind(source, places)
    return Relabelled(source, places)
