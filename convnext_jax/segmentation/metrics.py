"""Intersection over union and accuracy of classes, summed over the pixels of a whole set."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from convnext_jax.constants import IGNORED
from convnext_jax.errors import InputError


def class_areas(
    predictions: jax.Array, labels: jax.Array, num_classes: int
) -> dict[str, jax.Array]:
    """Counts the pixels of each class, of those whose label is not ignored.

    (mmsegmentation 0.11, `intersect_and_union`.)

    Args:
      predictions: whole numbers [N, H, W], classes.
      labels: whole numbers [N, H, W], of a class or `IGNORED`.
      num_classes: how many classes there are.

    Returns:
      int32 [N, num_classes] each: `intersection`, where both say the class; `predicted`;
      `labelled`. Of each image alone, so that no count overflows before it is summed elsewhere.
    """

    def count(classes: jax.Array, where: jax.Array) -> jax.Array:
        def of_image(classes: jax.Array, where: jax.Array) -> jax.Array:
            # What does not count goes to a bin of its own.
            bins = jnp.where(where, classes.astype(jnp.int32), num_classes).reshape(-1)
            return jnp.bincount(bins, length=num_classes + 1)[:num_classes]

        return jax.vmap(of_image)(classes, where)

    valid = labels != IGNORED
    same = valid & (predictions.astype(jnp.int32) == labels.astype(jnp.int32))
    return {
        "intersection": count(predictions, same),
        "predicted": count(predictions, valid),
        "labelled": count(labels, valid),
    }


def class_scores(areas: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores of each class, nan where nothing says anything of it.

    Args:
      areas: those of `class_areas`, summed over all images.

    Returns:
      float64 [num_classes]: `iou`, intersection over union; `accuracy`, the share of its pixels
      that were found.
    """
    intersection, predicted, labelled = (
        np.asarray(areas[name], np.float64) for name in ("intersection", "predicted", "labelled")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "iou": intersection / (predicted + labelled - intersection),
            "accuracy": intersection / labelled,
        }


def scores(areas: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The scores of a set: fractions.

    A class that is neither in the labels nor predicted is left out of the means.

    Args:
      areas: those of `class_areas`, summed over all images.

    Returns:
      `miou` and `macc`, means over classes; `aacc`, the share of all pixels that are right.

    Raises:
      InputError: no pixel has a class.
    """
    if not np.sum(areas["labelled"]):
        raise InputError("no pixel of the annotations has a class: all have the ignored value")
    of_classes = class_scores(areas)
    return {
        "miou": float(np.nanmean(of_classes["iou"])),
        "macc": float(np.nanmean(of_classes["accuracy"])),
        "aacc": float(np.sum(areas["intersection"]) / np.sum(areas["labelled"])),
    }
