"""Detection as the loop sees it: from a config to the model, losses and evaluation."""

import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convnext_jax.config import Config, require_unused
from convnext_jax.constants import DECISIVE
from convnext_jax.data.instances import ObjectSource, ground_truth
from convnext_jax.detection import metrics
from convnext_jax.detection.inputs import model_inputs
from convnext_jax.detection.ordering import EvalOrder, TrainOrder, steps_per_epoch
from convnext_jax.detection.records import records
from convnext_jax.detection.transforms import EvalCanvas, TrainCanvas, canvas_of
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelDescription, ModelSpec
from convnext_jax.models.variants import Preprocessing
from convnext_jax.training.task import Batch, Evaluation, Metric, Task

METRIC = Metric(DECISIVE["detection"], "box AP")
# What losses are called: those of the regions' proposals, then those of each stage of the heads.
_OF_PROPOSALS = ("loss_rpn_cls", "loss_rpn_bbox")
_OF_HEADS = ("loss_cls", "loss_bbox", "loss_mask")
_PREFIXES = {"mask_rcnn": ("",), "cascade_mask_rcnn": ("s0_", "s1_", "s2_")}
# Keys of a config, and the arguments of the model that they are.
_ARGUMENTS = {
    "fpn_channels": "fpn_channels",
    "head_features": "head_features",
    "rpn_before": "rpn_before_train",
    "rpn_after": "rpn_after_train",
    "rpn_before_eval": "rpn_before_test",
    "rpn_after_eval": "rpn_after_test",
    "roi_samples": "roi_samples",
    "detections": "detections",
    "score_threshold": "score_threshold",
}


def detection(
    config: Config,
    num_classes: int,
    examples: int,
    class_names: tuple[str, ...] | None = None,
    feeding: Preprocessing | None = None,
) -> Task:
    """The task of a run.

    Args:
      config: of the run.
      num_classes: labels lie in [0, num_classes).
      examples: of a micro-batch, over all devices.
      class_names: name of each class, by label; None: unknown.
      feeding: of the weights that the run starts from, whose mean and standard deviation it keeps;
        None: those of the model's variant.

    Raises:
      InputError: the config does not fit the task.
    """
    _check(config)
    model = describe_model(config, num_classes, class_names, feeding)
    rows = train_canvas(config)
    prefixes = _PREFIXES[get_variant(config.model.name).architecture]
    apply = model.spec.function_with_batch_stats()

    def loss(
        params: Any, batch_stats: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        targets = {name: batch[name] for name in ("boxes", "labels", "masks")}
        losses, batch_stats = apply(
            params, batch_stats, key=key, **model_inputs(batch, model.preprocessing), **targets
        )
        return jnp.stack([*losses.values()]).sum(), batch_stats, losses

    def order(source: ObjectSource) -> TrainOrder:
        return TrainOrder(source.sizes, rows, config.data.global_batch, config.seed)

    remarks = []
    if len(prefixes) > 1 and examples < config.data.global_batch:
        remarks.append(
            f"statistics of BatchNorm are those of micro-batches of {examples} images, one after"
            f" the other, instead of all {config.data.global_batch} of a step"
        )
    return Task(
        model,
        rows,
        loss,
        evaluation(model),
        scalars=(*_OF_PROPOSALS, *(stage + name for stage in prefixes for name in _OF_HEADS)),
        batch_stats=model.spec.initial_batch_stats(),
        remarks=tuple(remarks),
        pictures=lambda batch, _: batch["image"],
        order=order,
        steps_per_epoch=lambda count: steps_per_epoch(count, config.data.global_batch),
    )


def _check(config: Config) -> None:
    """Raises InputError for keys that have no meaning here."""
    data = config.data
    require_unused(config, "detects", {"data.eval_crop": (data.eval_crop, None)})
    if data.image_size is not None:
        raise InputError(
            f"`data.image_size` (={data.image_size}) must be None: of models that detect"
            " `detection.short_sides` and `detection.longest_side` say how large images are"
        )


def train_canvas(config: Config) -> TrainCanvas:
    """How training makes rows of images."""
    options = config.detection
    return TrainCanvas(
        canvas=canvas_of(max(options.short_sides), options.longest_side),
        longer=options.longest_side,
        scales=options.short_sides,
        crops=options.crops,
        first_scales=options.crop_short_sides,
        crop=(options.crop_min, options.crop_max),
        flip=config.data.flip,
        max_objects=options.max_objects,
    )


def describe_model(
    config: Config,
    num_classes: int,
    class_names: tuple[str, ...] | None,
    feeding: Preprocessing | None = None,
) -> ModelDescription:
    """The model of a run, whose images are evaluated in the largest size of its training."""
    variant = get_variant(config.model.name)
    options = config.detection
    preprocessing = Preprocessing(
        input_size=max(options.short_sides),
        longest_side=options.longest_side,
        crop_fraction=variant.crop_fraction,
        crop_mode=variant.crop_mode,
        interpolation=variant.interpolation,
        mean=(feeding or variant).mean,
        std=(feeding or variant).std,
        exif=config.data.exif,
    )
    overrides = config.model.overrides()
    for key, argument in _ARGUMENTS.items():
        if (value := getattr(options, key)) is not None:
            overrides[argument] = value
    return ModelDescription(
        ModelSpec(config.model.name, num_classes, overrides), preprocessing, class_names
    )


def evaluation(
    model: ModelDescription,
    data: ObjectSource | None = None,
    *,
    per_class: bool = False,
    output: bool = False,
) -> Evaluation:
    """The evaluation: COCO's average precisions of boxes and masks, as fractions.

    Args:
      model: described with its preprocessing.
      data: what is evaluated; None: its results will not be asked for.
      per_class: also give `box_ap_by_class` and `mask_ap_by_class`.
      output: also give `detections`, as files of results have them.
    """
    rows = EvalCanvas.of(model.preprocessing)
    apply = model.spec.function_with_batch_stats()

    @functools.cache
    def truth() -> dict[str, Any]:
        assert data is not None
        return ground_truth(data)

    def found(params: Any, batch_stats: Any, batch: Batch) -> dict[str, jax.Array]:
        inputs = model_inputs(batch, model.preprocessing)
        return apply(params, batch_stats, key=None, **inputs)[0]._asdict()

    def record(rows: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]) -> list[Any]:
        return records(rows, types.SimpleNamespace(**arrays))

    def results(totals: Mapping[str, Any]) -> dict[str, Any]:
        return metrics.results(truth(), totals["records"], per_class=per_class, output=output)

    return Evaluation(
        rows,
        lambda params, batch_stats, batch: {"count": batch["mask"].sum()},
        results,
        METRIC,
        found=found,
        record=record,
        order=lambda source, batch: np.asarray(EvalOrder(source.sizes, rows, batch)).tolist(),
    )
