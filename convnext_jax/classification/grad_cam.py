"""Grad-CAM (arXiv 1610.02391): where in an image a classifier sees a class."""

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from convnext_jax.errors import InputError
from convnext_jax.models.registry import Model

if TYPE_CHECKING:
    from PIL import Image


# Colours of 0, 1/4, ... 1: dark, purple, red, orange, light yellow.
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])


def grad_cam(model: Model, images: ArrayLike, labels: ArrayLike | None = None) -> Array:
    """Computes the Grad-CAM of the last feature map.

    Each channel of the map is weighted by the mean over the places of the logit's gradient; what is
    below zero in the sum is cut off, and the largest value becomes 1. The gradient goes through
    pooling, norm and head alone, so that this costs no more than the logits do.

    Args:
      model: a classifier from `create_model` or `load_pretrained`.
      images: [N, H, W, channels] floating point, normalised as for the model.
      labels: whose logit, int [N] in 0..num_classes-1; None: the likeliest class of each.

    Returns:
      float32 [N, h, w] in 0..1, of the size of the last feature map, [N, H // 32, W // 32] in most
      models; all zeros where nothing speaks for the class.

    Raises:
      InputError: the model has no head, or `labels` or `images` are not as above.
    """
    if getattr(model, "head", None) is None:
        raise InputError("`model` must have a head: Grad-CAM explains the logit of a class")
    if labels is not None:
        labels = np.asarray(labels)
        count = len(np.shape(images)) and np.shape(images)[0]
        if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
            raise InputError(f"`labels` (={labels}) must be {count} whole numbers, one an image")
        if labels.size and not 0 <= labels.min() <= labels.max() < model.num_classes:
            raise InputError(f"`labels` (={labels}) must lie in 0..{model.num_classes - 1}")
    graph, state = nnx.split(model)
    return _compiled(graph, state, jnp.asarray(images), labels)


@functools.partial(jax.jit, static_argnums=0)
def _compiled(graph: Any, state: Any, images: Array, labels: Array | None) -> Array:
    _, maps = logits_and_maps(nnx.merge(graph, state), images, labels)
    return maps


def logits_and_maps(model: Model, images: Array, labels: Array | None) -> tuple[Array, Array]:
    """The logits too, of a function that is compiled; the arguments are those of `grad_cam`."""
    last = model.features(images)[-1].astype(jnp.float32)
    logits, pull_back = jax.vjp(model.classify, last)
    chosen = jnp.argmax(logits, -1) if labels is None else labels
    (gradient,) = pull_back(jax.nn.one_hot(chosen, logits.shape[-1]))
    weights = gradient.mean((1, 2), keepdims=True)
    maps = jax.nn.relu((weights * last).sum(-1))
    largest = maps.max((1, 2), keepdims=True)
    return logits, jnp.where(largest > 0, maps / jnp.where(largest > 0, largest, 1), 0)


def overlay(image: "Image.Image", heat: np.ndarray, *, opacity: float = 0.5) -> "Image.Image":
    """Lays a map over what the model saw.

    Args:
      image: as it was fed to the model, in RGB.
      heat: float [h, w] in 0..1, of all of that image.
      opacity: of the colours where the map is 1, in 0..1; nothing is laid over where it is 0.

    Returns:
      An RGB image of the same size.
    """
    from PIL import Image  # only pictures need it

    smooth = Image.fromarray(np.asarray(heat, np.float32)).resize(
        image.size, Image.Resampling.BILINEAR
    )
    heat = np.clip(np.asarray(smooth), 0, 1)
    places = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(heat, places, channel) for channel in _HEAT.T], -1)
    share = opacity * np.sqrt(heat)[..., None]
    mixed = (1 - share) * np.asarray(image.convert("RGB")) + share * colours
    return Image.fromarray(mixed.round().astype(np.uint8))
