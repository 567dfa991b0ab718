"""Semantic segmentation as the loop sees it: from a config to the model, loss and evaluation."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convnext_jax.config import Config, require_unused
from convnext_jax.constants import DECISIVE
from convnext_jax.data.normalize import normalize
from convnext_jax.errors import InputError
from convnext_jax.models.backbone import inside
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelDescription, ModelSpec
from convnext_jax.models.variants import Preprocessing
from convnext_jax.segmentation import inference, metrics
from convnext_jax.segmentation.loss import segmentation_loss
from convnext_jax.segmentation.transforms import TrainCrops
from convnext_jax.segmentation.views import Whole, Windows, side_of, windows
from convnext_jax.training.task import Batch, Evaluation, Metric, Task

METRIC = Metric(DECISIVE["segmentation"], "mean IoU")
# Of annotations, where nobody knows: height and width, pixels.
_LARGEST = (2048, 2048)


def segmentation(
    config: Config,
    num_classes: int,
    examples: int,
    class_names: tuple[str, ...] | None = None,
    feeding: Preprocessing | None = None,
) -> Task:
    """The task of a run.

    Args:
      config: of the run.
      num_classes: labels lie in [0, num_classes), or are `IGNORED`.
      examples: of a micro-batch, over all devices.
      class_names: name of each class, by label; None: unknown.
      feeding: of the weights that the run starts from, whose mean and standard deviation it keeps;
        None: those of the model's variant.

    Raises:
      InputError: the config does not fit the task, the dataset or the model.
    """
    _check(config, examples)
    model = describe_model(config, num_classes, class_names, feeding)
    options, feeding = config.segmentation, model.preprocessing
    crops = TrainCrops(
        feeding.input_size,
        side_of(feeding),
        scales=(options.scale_min, options.scale_max),
        flip=config.data.flip,
        distort=options.photometric,
    )
    apply = model.spec.function_with_batch_stats()

    def loss(
        params: Any, batch_stats: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        images = normalize(batch["image"], feeding.mean, feeding.std)
        # What images are filled up with is 0 after normalising, as in the reference.
        images = jnp.where(inside(images, batch["size"]), images, 0.0)
        logits, batch_stats = apply(params, batch_stats, images, key)
        return (
            segmentation_loss(logits, batch["label"], options.auxiliary_weight),
            batch_stats,
            {},
        )

    remarks = []
    if examples < config.data.global_batch:
        remarks.append(
            f"statistics of BatchNorm are those of micro-batches of {examples} images, one after"
            f" the other, instead of all {config.data.global_batch} of a step"
        )
    return Task(
        model,
        crops,
        loss,
        evaluation(model),
        batch_stats=model.spec.initial_batch_stats(),
        remarks=tuple(remarks),
        pictures=lambda batch, _: batch["image"],
    )


def _check(config: Config, examples: int) -> None:
    """Raises InputError for keys that have no meaning here, and for a batch without statistics."""
    data = config.data
    require_unused(config, "segments")
    if examples < 2:
        raise InputError(
            f"`data.global_batch` (={data.global_batch}) must leave 2 images or more to a"
            f" micro-batch over all devices: BatchNorm of {config.model.name} takes its statistics"
            " over them"
        )


def describe_model(
    config: Config,
    num_classes: int,
    class_names: tuple[str, ...] | None,
    feeding: Preprocessing | None = None,
) -> ModelDescription:
    """The model of a run, whose images are evaluated in windows as large as its crops."""
    variant = get_variant(config.model.name)
    options = config.segmentation
    preprocessing = Preprocessing(
        input_size=config.data.image_size or variant.input_size,
        crop_fraction=config.data.eval_crop or variant.crop_fraction,
        crop_mode=variant.crop_mode,
        interpolation=variant.interpolation,
        mean=(feeding or variant).mean,
        std=(feeding or variant).std,
        exif=config.data.exif,
    )
    overrides = config.model.overrides() | {"dropout": options.dropout}
    for key in ("decoder_channels", "auxiliary_channels"):
        if getattr(options, key) is not None:
            overrides[key] = getattr(options, key)
    spec = ModelSpec(config.model.name, num_classes, overrides)
    return ModelDescription(spec, preprocessing, class_names)


def evaluation(
    model: ModelDescription,
    *,
    largest: tuple[int, int] | None = None,
    views: Windows | Whole | None = None,
    per_class: bool = False,
) -> Evaluation:
    """The evaluation: `miou`, `macc` and `aacc` as fractions, over all pixels of a set.

    Args:
      model: described with its preprocessing.
      largest: height and width of the largest annotation.
      views: how images are seen; None: in windows.
      per_class: also give `iou` and `accuracy`, float64 [classes], and the pixels of each class.
    """
    views = windows(model, largest or _LARGEST) if views is None else views
    return Evaluation(
        views,
        functools.partial(_sums, model, isinstance(views, Whole)),
        functools.partial(_results, per_class),
        METRIC,
    )


def _sums(
    model: ModelDescription, is_whole: bool, params: Any, batch_stats: Any, batch: Batch
) -> dict[str, jax.Array]:
    grouped = inference.whole_groups if is_whole else inference.window_groups
    groups = grouped(model, params, batch_stats, batch)

    def count(
        areas: dict[str, jax.Array], classes: jax.Array, corner: tuple[jax.Array, jax.Array]
    ) -> dict[str, jax.Array]:
        labels = jax.lax.dynamic_slice(
            batch["label"], (0, *corner), (len(classes), *classes.shape[1:])
        )
        found = metrics.class_areas(classes, labels, model.spec.num_classes)
        return {name: areas[name] + found[name] for name in areas}

    nothing = jnp.zeros((len(batch["label"]), model.spec.num_classes), jnp.int32)
    areas = inference.visit_tiles(
        groups, batch, count, dict.fromkeys(("intersection", "predicted", "labelled"), nothing)
    )
    # Sums of float32 would lose pixels; a batch has fewer than int32 holds.
    return {name: area.sum(0) for name, area in areas.items()} | {"count": batch["mask"].sum()}


def _results(per_class: bool, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    results: dict[str, Any] = dict(metrics.scores(totals))
    if per_class:
        results |= metrics.class_scores(totals)
        results["pixels"] = np.asarray(totals["labelled"], np.int64)
    return results
