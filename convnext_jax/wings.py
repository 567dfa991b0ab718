"""Tasks by name: what builds a task from a config, opens its data, and evaluates its models."""

import dataclasses
from collections.abc import Callable
from typing import Any

from convnext_jax.classification.task import classification
from convnext_jax.classification.task import evaluation as classification_evaluation
from convnext_jax.config import Config
from convnext_jax.data.masks import open_masks
from convnext_jax.data.sources import open_source
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelDescription
from convnext_jax.segmentation.task import evaluation as segmentation_evaluation
from convnext_jax.segmentation.task import segmentation
from convnext_jax.training.task import Evaluation, Task


@dataclasses.dataclass(frozen=True)
class Wing:
    """A task as commands see it.

    Attributes:
      task: (config, number of classes, examples of a micro-batch, class names, how images were fed
        to the initial weights) -> what is trained.
      open: (config, split) -> its examples by index, with `class_names`.
      evaluation: (model, data) -> how that model is evaluated on those examples.
    """

    task: Callable[..., Task]
    open: Callable[[Config, str], Any]
    evaluation: Callable[[ModelDescription, Any], Evaluation]


def _open_images(config: Config, split: str) -> Any:
    return open_source(config.data.name, split, config.data.dir, exif=config.data.exif)


def _open_masks(config: Config, split: str) -> Any:
    return open_masks(
        config.data.name,
        split,
        config.data.dir,
        exif=config.data.exif,
        first_label=config.segmentation.first_label,
        ignored=config.segmentation.ignored,
        histogram=split == config.data.train_split,
    )


WINGS = {
    "classification": Wing(
        classification, _open_images, lambda model, _: classification_evaluation(model)
    ),
    "segmentation": Wing(
        segmentation,
        _open_masks,
        lambda model, data: segmentation_evaluation(model, largest=data.largest),
    ),
}


def wing_of(model: str) -> Wing:
    """The task of a model; raises InputError if there is no such model."""
    return WINGS[get_variant(model).task]
