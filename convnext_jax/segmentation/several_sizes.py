"""Evaluation of whole images in several sizes, plain and mirrored: the paper's main table.

Images of one bucket of sizes share a program, in which each is as if it were alone.
"""

import dataclasses
from concurrent import futures
from typing import Any

from PIL import Image

from convnext_jax.data.pieces import naming_example
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription
from convnext_jax.segmentation.task import evaluation
from convnext_jax.segmentation.views import RATIOS, whole
from convnext_jax.training.task import Evaluation


@dataclasses.dataclass(frozen=True)
class Part:
    """Some examples of a dataset. Can be pickled if the dataset can.

    Attributes:
      source: the dataset.
      indices: of the examples.
    """

    source: Any
    indices: tuple[int, ...]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        """Reads one, as the dataset does."""
        return self.source[self.indices[index]]

    def __str__(self) -> str:
        """As messages name the dataset."""
        return str(self.source)


def parts(
    model: ModelDescription,
    source: Any,
    *,
    ratios: tuple[float, ...] = RATIOS,
    per_class: bool = False,
    skip: bool = False,
) -> list[tuple[Part, Evaluation]]:
    """Puts the examples of a dataset into buckets; reads all of them for that.

    Args:
      model: described with its preprocessing.
      source: images and their annotations.
      ratios: what the shorter side is multiplied by, for each size.
      per_class: see `task.evaluation`.
      skip: go on where examples cannot be read; evaluation meets them again, and says why it
        leaves them out.

    Returns:
      For each bucket its examples, and how they are evaluated: to totals that are added up.

    Raises:
      InputError: an example cannot be read, or is too thin; or images are too small for the
        smallest ratio.
    """
    views = whole(model, source.largest, ratios)

    def bucket(index: int) -> tuple[int, int] | None:
        try:
            image, _ = source[index]
            with naming_example(source, index):
                return views.bucket(*image.size)
        except InputError:
            if skip:
                return None
            raise

    found: dict[tuple[int, int], list[int]] = {}
    unreadable = []
    with futures.ThreadPoolExecutor() as threads:
        for index, shape in enumerate(threads.map(bucket, range(len(source)))):
            if shape is None:
                unreadable.append(index)
            else:
                found.setdefault(shape, []).append(index)
    if not found:
        raise InputError(f"no example of {source} can be read")
    found[min(found)] += unreadable
    return [
        (
            Part(source, tuple(indices)),
            evaluation(model, views=views.of_shape(shape), per_class=per_class),
        )
        for shape, indices in sorted(found.items())
    ]
