"""Models by name."""

import dataclasses
import fnmatch
import inspect
from typing import Any

from flax import nnx

from convnext_jax.constants import IMAGENET_1K_CLASSES
from convnext_jax.errors import InputError, did_you_mean
from convnext_jax.models.convnext import ConvNeXt
from convnext_jax.models.isotropic import ConvNeXtIsotropic
from convnext_jax.models.pretrained import PRETRAINED, Pretrained
from convnext_jax.models.variants import VARIANTS, Variant

Model = ConvNeXt | ConvNeXtIsotropic

_ARCHITECTURES = {"convnext": ConvNeXt, "convnext_isotropic": ConvNeXtIsotropic}


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted names that match a shell pattern such as `convnext_*o`."""
    return sorted(fnmatch.filter(VARIANTS, pattern))


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


def get_pretrained(name: str) -> Pretrained:
    """Returns the table's row of a set of published weights, by a name of `list_pretrained()`.

    Raises:
      InputError: if there are no such weights; the message has the closest names.
    """
    if name not in PRETRAINED:
        raise InputError(f"`name` (={name}) must be known weights{did_you_mean(name, PRETRAINED)}")
    return PRETRAINED[name]


def create_model(
    name: str,
    num_classes: int = IMAGENET_1K_CLASSES,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> Model:
    """Builds a model with random initial weights.

    Args:
      name: one of `list_models()`.
      num_classes: length of the logits; 0 for a model without a head, which returns its embedding.
      rngs: its `params` stream draws the initial weights; None is `nnx.Rngs(0)`.
      **overrides: keyword arguments of `ConvNeXt` that replace what the variant has, such as
        `drop_path=0.1` (probability of dropping) or `dtype="bfloat16"`.

    Returns:
      The model; `model(images)` maps [N, H, W, 3] to logits [N, num_classes].

    Raises:
      InputError: if the name or an override is unknown, or a value is out of range.
    """
    variant = get_variant(name)
    architecture = _ARCHITECTURES[variant.architecture]
    parameters = inspect.signature(architecture.__init__).parameters
    allowed = sorted(set(parameters) - {"self", "num_classes", "rngs"})
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
    if rngs is None:
        rngs = nnx.Rngs(0)
    return architecture(num_classes=num_classes, rngs=rngs, **arguments)
