"""Tasks by name: what builds a task from a config, opens its data, and evaluates its models."""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

from convnext_jax.classification import task as of_images
from convnext_jax.config import Config, Steps
from convnext_jax.data.folder import NAME as FOLDER
from convnext_jax.data.instances import crowded_notes
from convnext_jax.data.masks import open_masks
from convnext_jax.data.objects import open_objects
from convnext_jax.data.sources import open_source
from convnext_jax.detection import task as of_objects
from convnext_jax.detection.metrics import words as words_of_objects
from convnext_jax.detection.ordering import steps_per_epoch
from convnext_jax.detection.page import draw_page as draw_objects
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelDescription
from convnext_jax.segmentation import several_sizes
from convnext_jax.segmentation import task as of_masks
from convnext_jax.segmentation.page import draw_page as draw_masks
from convnext_jax.training.task import Evaluation, Metric, Task

# What labels of a dataset of images may be, and what they are mostly.
_SPACE = {"among": None, "lists": False}


@dataclasses.dataclass(frozen=True)
class Wing:
    """A task as commands see it.

    Attributes:
      task: (config, number of classes, examples of a micro-batch, class names, how images were fed
        to the initial weights) -> what is trained.
      open: (config, split, training=..., look=...) -> its examples by index, with `class_names`.
        `training`: those that are trained on, where not all are; `look`: count what their masks
        hold, for notes.
      evaluation: (model, data) -> how that model is evaluated on those examples.
      metric: which of its results decides.
      parts: (model, data, skip=..., further options) -> parts of the data and how each is
        evaluated, to totals that are added up.
      options: names of the further options of `parts`, which are also flags of `evaluate`.
      words: results of an evaluation -> how people read them.
      values: keys of `segmentation` that say what the values of annotations mean, and are also
        flags of `evaluate`.
      of_images: images have classes: what suites of test sets are for.
      steps_per_epoch: (number of examples, examples of a step) -> steps.
      page: (file, model, parameters, batch statistics, data) -> None, draws examples to look at;
        None: there is nothing to draw.
    """

    task: Callable[..., Task]
    open: Callable[..., Any]
    evaluation: Callable[[ModelDescription, Any], Evaluation]
    metric: Metric
    parts: Callable[..., list[tuple[Any, Evaluation]]]
    options: frozenset[str]
    words: Callable[[Mapping[str, Any]], str]
    values: frozenset[str] = frozenset()
    of_images: bool = False
    steps_per_epoch: Callable[[int, int], int] = operator.floordiv
    page: Callable[..., None] | None = None


def _open_images(config: Config, split: str, *, training: bool = False, look: bool = True) -> Any:
    del training, look  # all images are trained on, and there is nothing to count
    return open_source(config.data.name, split, config.data.dir, exif=config.data.exif)


def _open_masks(config: Config, split: str, *, training: bool = False, look: bool = True) -> Any:
    return open_masks(
        config.data.name,
        split,
        config.data.dir,
        exif=config.data.exif,
        first_label=config.segmentation.first_label,
        ignored=config.segmentation.ignored,
        histogram=training and look,
    )


def _open_objects(config: Config, split: str, *, training: bool = False, look: bool = True) -> Any:
    del look  # objects are counted when they are prepared
    data = config.data
    key = "annotations" if training else "eval_annotations"
    if data.name == FOLDER and getattr(data, key) is None:
        raise InputError(
            f"`data.{key}` must be given for the dataset `{FOLDER}`: a file in COCO's format on the"
            f" images of `{split}`"
        )
    source = open_objects(
        data.name,
        split,
        data.dir,
        training=training,
        annotations=getattr(data, key),
        exif=data.exif,
        keep_empty=config.detection.keep_empty,
    )
    if training:
        source.notes += crowded_notes(source, config.detection.max_objects)
    elif not source.counts[:, 0].sum():
        raise InputError(f"{source} must have objects that are to be found, and has none")
    return source


def _parts_of_images(
    model: ModelDescription, data: Any, *, skip: bool, **options: Any
) -> list[tuple[Any, Evaluation]]:
    del skip  # the evaluator does
    space = {name: getattr(data, name, default) for name, default in _SPACE.items()}
    return [(data, of_images.evaluation(model, **(space | options)))]


def _words_of_images(results: Mapping[str, Any]) -> str:
    words = "top-1 {top1:.3%}, top-5 {top5:.3%}".format_map(results)
    return words + (f", loss {results['loss']:.4f}" if "loss" in results else "")


def _parts_of_masks(
    model: ModelDescription,
    data: Any,
    *,
    skip: bool,
    multi_scale: bool = False,
    per_class: bool = False,
) -> list[tuple[Any, Evaluation]]:
    if multi_scale:
        return several_sizes.parts(model, data, per_class=per_class, skip=skip)
    evaluation = of_masks.evaluation(model, largest=data.largest, per_class=per_class)
    return [(data, evaluation)]


def _parts_of_objects(
    model: ModelDescription, data: Any, *, skip: bool, **options: bool
) -> list[tuple[Any, Evaluation]]:
    del skip  # the evaluator does
    return [(data, of_objects.evaluation(model, data, **options))]


WINGS = {
    "classification": Wing(
        task=of_images.classification,
        open=_open_images,
        evaluation=lambda model, data: _parts_of_images(model, data, skip=False)[0][1],
        metric=of_images.METRIC,
        parts=_parts_of_images,
        options=frozenset({"confusion"}),
        of_images=True,
        words=_words_of_images,
    ),
    "segmentation": Wing(
        task=of_masks.segmentation,
        open=_open_masks,
        evaluation=lambda model, data: _parts_of_masks(model, data, skip=False)[0][1],
        metric=of_masks.METRIC,
        parts=_parts_of_masks,
        options=frozenset({"multi_scale", "per_class"}),
        words="mean IoU {miou:.2%}, mean accuracy {macc:.2%}, of all pixels {aacc:.2%}".format_map,
        values=frozenset({"first_label", "ignored"}),
        page=draw_masks,
    ),
    "detection": Wing(
        task=of_objects.detection,
        open=_open_objects,
        evaluation=of_objects.evaluation,
        metric=of_objects.METRIC,
        parts=_parts_of_objects,
        options=frozenset({"per_class", "output"}),
        words=words_of_objects,
        steps_per_epoch=steps_per_epoch,
        page=draw_objects,
    ),
}


def steps_of(config: Config, examples: int) -> Steps:
    """Lengths of a run on so many training examples; raises InputError as `Config.steps`."""
    wing = wing_of(config.model.name)
    return config.steps(examples, wing.steps_per_epoch(examples, config.data.global_batch))


def wing_of(model: str) -> Wing:
    """The task of a model; raises InputError if there is no such model."""
    return WINGS[get_variant(model).task]
