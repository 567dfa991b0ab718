"""What a classifier takes for what, and where it is surest and wrong."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from convnext_jax.classification.grad_cam import overlay
from convnext_jax.classification.predictor import Failure, Predictor
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription


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
      class_names: by label.
      confusion: int64 [classes, classes], by label and class found.
      mistakes: the surest ones, the surest first.
      split: name.
      total: examples of the split; `confusion` counts those looked at and readable.
    """

    class_names: tuple[str, ...]
    confusion: np.ndarray
    mistakes: list[Mistake]
    split: str
    total: int


def find_mistakes(
    described: ModelDescription,
    params: Any,
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
      source: the split: images with labels by index, `class_names` and `split`.
      examples: how many to look at.
      most: how many mistakes to keep.
      batch_size: images at once.
    """
    names = tuple(source.class_names)
    model = described.spec.with_params(params)
    predictor = Predictor(model, described.preprocessing, batch_size=batch_size)
    count = min(examples, len(source))
    places = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
    confusion = np.zeros((len(names), len(names)), np.int64)
    labels: dict[int, int] = {}

    def images() -> Iterator[Image.Image | str]:
        for place in places:
            try:
                image, labels[place] = source[place]
            except InputError:  # the run was told what to do about those, and has said so
                yield ""
            else:
                yield image

    wrong: list[tuple[float, int, int]] = []
    for place, found in zip(places, predictor.predictions(images(), 1), strict=True):
        if isinstance(found, Failure):
            continue
        label = labels.pop(place)
        confusion[label, found.labels[0]] += 1
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
    return Findings(names, confusion, mistakes, source.split, len(source))


def per_class(confusion: np.ndarray) -> dict[str, Sequence[float]]:
    """Scores of each class, nan where nothing can be said of one: scikit-learn's, in fractions.

    Args:
      confusion: [classes, classes], by label and class found.

    Returns:
      `recall` (accuracy on the examples of the class), `precision` and `f1`, each [classes].
    """
    right = np.diag(confusion).astype(np.float64)
    of_class, taken = confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "recall": right / of_class,
            "precision": right / taken,
            "f1": 2 * right / (of_class + taken),
        }
