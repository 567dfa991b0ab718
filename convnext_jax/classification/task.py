"""Classification as the loop sees it: from a config to the model, its loss and its evaluation."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convnext_jax.classification.erasing import RandomErasing
from convnext_jax.classification.loss import as_pictures, cross_entropy, training_inputs
from convnext_jax.classification.metrics import confusion_counts, list_sums, masked_sums
from convnext_jax.classification.mixup import Mixup
from convnext_jax.classification.transforms import (
    WARP_FROM_SIZE,
    EvalTransform,
    Labelled,
    LabelLists,
    TrainTransform,
)
from convnext_jax.config import AugmentConfig, Config
from convnext_jax.constants import DECISIVE
from convnext_jax.data.normalize import normalize
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelDescription, ModelSpec
from convnext_jax.models.variants import Preprocessing
from convnext_jax.training.task import Batch, Evaluation, Metric, Task

METRIC = Metric(DECISIVE["classification"], "top-1")


def classification(
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
      InputError: the config does not fit the dataset or the model.
    """
    model = describe_model(config, num_classes, class_names, feeding)
    check_groups(model.spec, examples)
    transform = TrainTransform(
        model.preprocessing.input_size,
        crop=config.data.crop,
        scale=(config.data.crop_scale, 1.0),
        flip=config.data.flip,
        auto_augment=config.augment.auto_augment,
        color_jitter=config.augment.color_jitter,
    )
    feeding = model.preprocessing
    options = {
        "mean": feeding.mean,
        "std": feeding.std,
        "label_smoothing": config.optim.label_smoothing,
        "erasing": build_erasing(config.augment),
        "mixup": build_mixup(config.augment, examples),
    }
    inputs = training_inputs(num_classes, **options)

    def pictures(batch: Batch, key: jax.Array) -> jax.Array:
        return as_pictures(inputs(batch, key)[0], feeding.mean, feeding.std)

    loss = cross_entropy(model.spec.function_with_batch_stats(), num_classes, **options)
    return Task(
        model,
        Labelled(transform),
        loss,
        evaluation(model),
        batch_stats=model.spec.initial_batch_stats(),
        pictures=pictures,
    )


def describe_model(
    config: Config,
    num_classes: int,
    class_names: tuple[str, ...] | None,
    feeding: Preprocessing | None = None,
) -> ModelDescription:
    """The model of a run, whose images are evaluated as the reference does at their size."""
    variant = get_variant(config.model.name)
    size = config.data.image_size or variant.input_size
    warp = size >= WARP_FROM_SIZE
    preprocessing = Preprocessing(
        input_size=size,
        crop_fraction=1.0 if warp else config.data.eval_crop or variant.crop_fraction,
        crop_mode="squash" if warp else "center",
        interpolation="bicubic",
        mean=(feeding or variant).mean,
        std=(feeding or variant).std,
        exif=config.data.exif,
    )
    spec = ModelSpec(config.model.name, num_classes, config.model.overrides())
    return ModelDescription(spec, preprocessing, class_names)


def check_groups(model: ModelSpec, examples: int) -> None:
    """Raises InputError if BatchNorm's groups do not fit a micro-batch of so many examples."""
    group = getattr(model.abstract(), "norm_group", None)
    if group is None:
        return
    if examples < 2:
        raise InputError(
            "`data.global_batch` must leave 2 images or more to a micro-batch over all devices, and"
            f" leaves {examples}: BatchNorm of {model.name} takes its statistics over them"
        )
    if examples > group and examples % group:
        raise InputError(
            f"`model.norm_group` (={group}), the images that share BatchNorm's statistics, must"
            f" divide the {examples} of a micro-batch over all devices, or be more"
        )


def build_erasing(config: AugmentConfig) -> RandomErasing | None:
    """Random erasing as the config has it, or None where it is off."""
    erasing = RandomErasing(
        probability=config.erasing, mode=config.erasing_mode, count=config.erasing_count
    )
    return erasing if erasing.probability > 0 else None


def build_mixup(config: AugmentConfig, examples: int) -> Mixup | None:
    """Mixup and CutMix as the config has them, or None where they are off.

    Raises:
      InputError: `examples`, those of a micro-batch, do not make whole groups.
    """
    mixup = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        probability=config.mix_probability,
        switch_probability=config.mix_switch,
        group=config.mix_group,
    )
    if not mixup.enabled:
        return None
    mixup.groups(examples)
    return mixup


def evaluation(
    model: ModelDescription,
    *,
    confusion: bool = False,
    among: Sequence[int] | None = None,
    also: Mapping[str, Sequence[int]] | None = None,
    lists: bool = False,
) -> Evaluation:
    """The evaluation of a classifier: `top1` and `top5` as fractions, and the mean `loss`.

    Args:
      model: described with its preprocessing.
      confusion: also count which class was taken for which: `confusion`, int64 [classes, classes],
        by label (first axis) and prediction.
      among: classes that are looked at; images of others do not count. None: all.
      also: further such classes by a name of the caller's, whose results are in `among`, by name,
        if images of them are there.
      lists: images have several labels, of which any is right, or none, and do not count; there is
        no loss.
    """
    feeding = model.preprocessing
    transform = EvalTransform(
        feeding.input_size, feeding.crop_fraction, feeding.crop_mode, feeding.interpolation
    )
    apply = model.spec.function_with_batch_stats()
    if lists and (confusion or among is not None or also):
        raise InputError("images with several labels each have no confusion matrix and no subsets")
    subsets = {"": among, **(also or {})}
    examples = LabelLists(transform, model.spec.num_classes) if lists else Labelled(transform)
    return Evaluation(
        examples,
        functools.partial(_sums, apply, feeding, confusion, subsets, lists),
        functools.partial(_results, tuple(also or ())),
        METRIC,
        key=(confusion, lists, *((name, x and tuple(x)) for name, x in subsets.items())),
    )


def _sums(
    apply: Any,
    feeding: Preprocessing,
    confusion: bool,
    subsets: Mapping[str, Sequence[int] | None],
    lists: bool,
    params: Any,
    batch_stats: Any,
    batch: Batch,
) -> dict[str, jax.Array]:
    """Sums of each subset, their names before `top1` and the others; and `count` of all rows."""
    images = normalize(batch["image"], feeding.mean, feeding.std)
    logits, _ = apply(params, batch_stats, images)
    labels, mask = batch["label"], batch["mask"]
    sums = {"count": jnp.sum(mask > 0, dtype=jnp.float32)}
    for name, among in subsets.items():
        found, counted = logits, mask
        if among is not None:
            inside = np.isin(np.arange(logits.shape[1]), among)
            found = jnp.where(inside.reshape(1, -1), logits, -jnp.inf)
            counted = mask * jnp.asarray(inside)[labels]
        part = (list_sums if lists else masked_sums)(found, labels, counted)
        part["scored"] = part.pop("count")
        if confusion and not name:
            part["confusion"] = confusion_counts(found, labels, counted)
        sums |= {_key(name, key): value for key, value in part.items()}
    return sums


def _key(subset: str, key: str) -> str:
    return f"{subset}/{key}" if subset else key


def _results(also: Sequence[str], totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    results = _scores(totals, "")
    if "confusion" in totals:
        results["confusion"] = totals["confusion"].astype(np.int64)
    if also:
        there = [name for name in also if totals[_key(name, "scored")]]
        results["among"] = {name: _scores(totals, name) for name in there}
    return results


def _scores(totals: Mapping[str, np.ndarray], subset: str) -> dict[str, Any]:
    """Fractions and mean loss over what counts; and how many that is, where it is not all."""
    scored = int(totals[_key(subset, "scored")])
    if not scored:
        raise InputError("none of the images has a label that counts")
    names = [name for name in ("top1", "top5", "loss") if _key(subset, name) in totals]
    results = {name: float(totals[_key(subset, name)] / scored) for name in names}
    if subset or scored != int(totals["count"]):
        results |= {"num_examples": scored, "num_uncounted": int(totals["count"]) - scored}
    return results
