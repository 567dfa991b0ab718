"""What a classifier takes for what, and where it is surest and wrong."""

import collections
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from convnext_jax.classification.grad_cam import overlay
from convnext_jax.classification.metrics import class_scores
from convnext_jax.classification.predictor import Failure, Predictor
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription
from convnext_jax.processes import usable_cores
from convnext_jax.weights.class_names import readable


class Mistake(NamedTuple):
    """An example that is taken for another class.

    Attributes:
      index: in the split.
      label: its class.
      found: the class it is taken for.
      probability: of that class, in 0..1.
      seen: what the model saw.
      explained: the same, with where it sees the class it is taken for.
    """

    index: int
    label: int
    found: int
    probability: float
    seen: Image.Image
    explained: Image.Image


class Findings(NamedTuple):
    """What was found on examples of a split.

    Attributes:
      class_names: by label, for people.
      pairs: how many examples there were of each label that was taken for each class: of as many
        classes as ImageNet-22K has a matrix would be of gigabytes.
      mistakes: the surest ones, the surest first.
      split: name.
      total: examples of the split; `pairs` counts those looked at and readable.
    """

    class_names: tuple[str, ...]
    pairs: Mapping[tuple[int, int], int]
    mistakes: list[Mistake]
    split: str
    total: int


def find_mistakes(
    described: ModelDescription,
    params: Any,
    batch_stats: Any,
    source: Any,
    *,
    examples: int,
    most: int = 12,
    batch_size: int = 64,
) -> Findings:
    """Runs a classifier on examples, spread evenly over a split.

    Args:
      described: the model, and how images are fed to it.
      params: its parameters.
      batch_stats: its batch statistics, empty for most.
      source: the split: images with labels by index, `class_names` and `split`.
      examples: how many to look at.
      most: how many mistakes to keep.
      batch_size: images at once.
    """
    names = readable(source.class_names, len(source.class_names))
    assert names is not None
    model = described.spec.with_params(params, batch_stats)
    predictor = Predictor(model, described.preprocessing, batch_size=batch_size)
    count = min(examples, len(source))
    places = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
    pairs = collections.Counter[tuple[int, int]]()
    labels: dict[int, int] = {}

    def read(place: int) -> Image.Image | str:
        try:
            image, labels[place] = source[place]
        except InputError:  # the run was told what to do about those, and has said so
            return ""
        return image

    def images() -> Iterator[Image.Image | str]:
        threads = usable_cores()
        with futures.ThreadPoolExecutor(threads) as pool:
            waiting = collections.deque[futures.Future[Any]]()
            for place in places:
                waiting.append(pool.submit(read, place))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    wrong: list[tuple[float, int, int]] = []
    for place, found in zip(places, predictor.predictions(images(), 1), strict=True):
        if isinstance(found, Failure):
            continue
        label = labels.pop(place)
        pairs[label, found.labels[0]] += 1
        if found.labels[0] != label:
            wrong.append((-found.probabilities[0], place, label))
    surest = sorted(wrong)[:most]
    explained = predictor.explanations((source[place][0] for _, place, _ in surest), 1)
    mistakes = [
        Mistake(
            place,
            label,
            found.prediction.labels[0],
            found.prediction.probabilities[0],
            found.seen,
            overlay(found.seen, found.heat),
        )
        for (_, place, label), found in zip(surest, explained, strict=True)
        if not isinstance(found, Failure)
    ]
    return Findings(names, pairs, mistakes, source.split, len(source))


def matrix(pairs: Mapping[tuple[int, int], int], classes: int) -> np.ndarray:
    """The confusion matrix, int64 [classes, classes], by label and class found."""
    confusion = np.zeros((classes, classes), np.int64)
    for place, count in pairs.items():
        confusion[place] = count
    return confusion


def per_class(pairs: Mapping[tuple[int, int], int], classes: int) -> dict[str, np.ndarray]:
    """`class_scores` of `classes` classes, from `pairs` as `Findings` has them."""
    right, of_class, taken = np.zeros((3, classes), np.int64)
    for (label, found), count in pairs.items():
        of_class[label] += count
        taken[found] += count
        right[label] += count if label == found else 0
    return class_scores(right, of_class, taken)
