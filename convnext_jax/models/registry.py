"""Models by name."""

import dataclasses
import fnmatch
import importlib
import inspect
import operator
from typing import Any

from flax import nnx

from convnext_jax.errors import InputError, did_you_mean
from convnext_jax.models import initial
from convnext_jax.models.convnext import ConvNeXt
from convnext_jax.models.isotropic import ConvNeXtIsotropic
from convnext_jax.models.pretrained import NOT_ON_HUB, PRETRAINED, Pretrained
from convnext_jax.models.roadmap import RoadmapNet
from convnext_jax.models.variants import VARIANTS, Preprocessing, Variant

# A model of any task, an `nnx.Module` to call; of classification one of the classes above.
Model = Any

# Classes of other tasks are in their wings, above this file: named, and imported when one is built.
_ARCHITECTURES: dict[str, Any] = {
    "convnext": ConvNeXt,
    "convnext_isotropic": ConvNeXtIsotropic,
    "roadmap": RoadmapNet,
    "upernet": "convnext_jax.segmentation.upernet.UPerNet",
    "mask_rcnn": "convnext_jax.detection.mask_rcnn.MaskRCNN",
    "cascade_mask_rcnn": "convnext_jax.detection.cascade.CascadeMaskRCNN",
}


def list_models(pattern: str = "*", task: str | None = None) -> list[str]:
    """Returns the sorted names that match a shell pattern such as `convnext_*o`.

    Args:
      pattern: of names.
      task: `classification`, `segmentation` or `detection`; None: of all tasks.
    """
    names = fnmatch.filter(VARIANTS, pattern)
    return sorted(name for name in names if task in (None, VARIANTS[name].task))


def list_pretrained(pattern: str = "*") -> list[str]:
    """Returns the sorted names of published weights that match, such as `convnext_tiny.*`."""
    return sorted(fnmatch.filter(PRETRAINED, pattern))


def get_variant(name: str) -> Variant:
    """Returns the table's row of a model.

    Raises:
      InputError: if there is no such model; the message has the closest names.
    """
    if name not in VARIANTS:
        raise InputError(f"`name` (={name}) must be a known model{did_you_mean(name, VARIANTS)}")
    return VARIANTS[name]


def backbone_name(name: str) -> str | None:
    """The classifier that a model has as its backbone; None: it has none."""
    variant = get_variant(name)
    if variant.task == "classification":
        return None
    return name.removeprefix(f"{variant.architecture}_")


def same_network(one: str, other: str) -> bool:
    """Whether two names stand for one network, whose images may be fed differently."""
    plain = {field.name: field.default for field in dataclasses.fields(Preprocessing)}
    rows = (dataclasses.replace(get_variant(name), **plain) for name in (one, other))
    return operator.eq(*rows)


def get_pretrained(name: str) -> Pretrained:
    """Returns the table's row of a set of published weights, by a name of `list_pretrained()`.

    Raises:
      InputError: if there are no such weights; the message has the closest names.
    """
    if name not in PRETRAINED:
        near = did_you_mean(name, [*PRETRAINED, *NOT_ON_HUB])
        raise InputError(f"`name` (={name}) must be known weights{near}")
    return PRETRAINED[name]


def create_model(
    name: str,
    num_classes: int | None = None,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> Model:
    """Builds a model with random initial weights.

    Args:
      name: one of `list_models()`.
      num_classes: length of the logits; 0 for a classifier without a head, which returns its
        embedding; None: those of the dataset in the paper, ImageNet-1K, ADE20K or COCO.
      rngs: its `params` stream draws the initial weights; None is `nnx.Rngs(0)`.
      **overrides: keyword arguments of the model's class that replace what the variant has, such
        as `drop_path=0.1` (probability of dropping) or `dtype="bfloat16"`.

    Returns:
      The model; of a classifier `model(images)` maps [N, H, W, 3] to logits [N, num_classes], of
      the others see their class.

    Raises:
      InputError: if the name or an override is unknown, or a value is out of range.
    """
    variant = get_variant(name)
    architecture = _ARCHITECTURES[variant.architecture]
    if isinstance(architecture, str):
        module, _, name_in_module = architecture.rpartition(".")
        architecture = getattr(importlib.import_module(module), name_in_module)
    allowed = _arguments(architecture)
    for override, value in overrides.items():
        if override not in allowed:
            raise InputError(
                f"`{override}` (={value}) must be one of the overrides {', '.join(allowed)}"
                f"{did_you_mean(override, allowed)}"
            )
    # The variant's other fields are about feeding images; the isotropic class takes fewer.
    fields = (field.name for field in dataclasses.fields(variant))
    arguments: dict[str, Any] = {
        **{field: getattr(variant, field) for field in fields if field in allowed},
        **overrides,
    }
    if not isinstance(rngs, nnx.Rngs | None):
        raise InputError(f"`rngs` (={rngs}) must be `nnx.Rngs`, such as `nnx.Rngs(0)`")
    if num_classes is None:
        num_classes = variant.num_classes
    with initial.postponed(), initial.seeds(rngs) as seeds:
        model = architecture(num_classes=num_classes, rngs=seeds, **arguments)
    initial.draw(model)
    return model


def _arguments(architecture: Any) -> list[str]:
    """Names of what a model's class takes beside classes and generators."""
    parameters = inspect.signature(architecture.__init__).parameters
    names = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    if len(names) < len(parameters) - 1:  # beside `self`: others go to the backbone
        names |= {*_arguments(ConvNeXt)}
    return sorted(names - {"num_classes", "rngs"})
