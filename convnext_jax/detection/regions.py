"""Regions of interest (RoIs): where they come from, and which of them a head learns from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from convnext_jax.detection import matching


class Objects(NamedTuple):
    """What there is to find in each image.

    Attributes:
      boxes: float32 [N, G, 4], pixels.
      labels: int32 [N, G], classes.
      valid: bool [N, G]; others fill up the arrays.
    """

    boxes: Array
    labels: Array
    valid: Array


class Regions(NamedTuple):
    """Where something may be.

    Attributes:
      boxes: float32 [N, P, 4], pixels, within the image.
      valid: bool [N, P]; others fill up the array.
    """

    boxes: Array
    valid: Array


class Sampled(NamedTuple):
    """Regions drawn at random, and what they are to become; positives come first.

    Attributes:
      boxes: float32 [N, R, 4], pixels; 0 where not valid.
      labels: int32 [N, R], classes; the number of classes for background.
      objects: int32 [N, R], index of the object of a positive; negative for the others.
      targets: float32 [N, R, 4], its box; their own for the others.
      positive: bool [N, R].
      valid: bool [N, R]; others fill up the array.
      given: bool [N, R], the region is the box of an object.
    """

    boxes: Array
    labels: Array
    objects: Array
    targets: Array
    positive: Array
    valid: Array
    given: Array


def find_objects(boxes: Array, labels: Array) -> Objects:
    """Of what fills the arrays of a batch: objects have a label, and an area."""
    boxes, labels = boxes.astype(jnp.float32), labels.astype(jnp.int32)
    sides = boxes[..., 2:] - boxes[..., :2]
    return Objects(boxes, labels, (labels >= 0) & (sides > 0).all(-1))


def sample_regions(
    key: Array,
    regions: Regions,
    objects: Objects,
    background: int,
    *,
    threshold: float,
    low_quality: bool,
    samples: int,
    positives: int,
) -> Sampled:
    """Draws regions of each image, and the boxes of the objects themselves among them.

    Args:
      key: of the drawing.
      regions: to draw from.
      objects: that regions are matched with.
      background: the label of what is no object.
      threshold: IoU with an object from which on a region is positive; below it is negative.
      low_quality: each object also claims its best regions, if they reach the threshold: of
        regions that two objects overlap this decides for whose best they are.
      samples: so many of each image.
      positives: so many of them at most.
    """

    def of_image(key: Array, regions: Regions, objects: Objects) -> Sampled:
        assigned = matching.assign(
            regions.boxes,
            regions.valid,
            objects.boxes,
            objects.valid,
            positive=threshold,
            negative=threshold,
            minimum=threshold,
            low_quality=low_quality,
        )
        count = len(objects.labels)
        own = jnp.where(objects.valid, jnp.arange(count, dtype=jnp.int32), matching.NEITHER)
        assigned = jnp.concatenate([own, assigned])
        valid = jnp.concatenate([objects.valid, regions.valid])
        index, positive, drawn = matching.sample(key, assigned, valid, samples, positives)
        boxes = jnp.concatenate([objects.boxes, regions.boxes])[index]
        boxes = jnp.where(drawn[:, None], boxes, 0.0)
        matched = jnp.where(positive, assigned[index], matching.NEGATIVE)
        target = jnp.maximum(matched, 0)
        return Sampled(
            boxes=boxes,
            labels=jnp.where(positive, objects.labels[target], background),
            objects=matched,
            targets=jnp.where(positive[:, None], objects.boxes[target], boxes),
            positive=positive,
            valid=drawn,
            given=positive & (index < count),
        )

    return jax.vmap(of_image)(jax.random.split(key, len(regions.valid)), regions, objects)
