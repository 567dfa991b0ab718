"""From scores and boxes of regions to the detections of an image."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from convnext_jax.detection import boxes
from convnext_jax.detection.regions import Regions
from convnext_jax.ops.nms import nms


class Detections(NamedTuple):
    """What is found in each image, surest first.

    Attributes:
      boxes: float32 [N, D, 4], x1, y1, x2, y2 in pixels of the resized image; 0 where nothing is.
      scores: float32 [N, D], probabilities; 0 where nothing is.
      labels: int32 [N, D], classes; -1 where nothing is.
      masks: float32 [N, D, 28, 28], probability that a place of the box is of the object; upright.
    """

    boxes: Array
    scores: Array
    labels: Array
    masks: Array


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which of the boxes are detections.

    Attributes:
      detections: so many of an image at most.
      candidates: so many pairs of region and class, the surest, are looked at.
      score_threshold: probability that a detection exceeds.
      nms_threshold: IoU with a surer one of its class that it does not exceed.
    """

    detections: int
    candidates: int
    score_threshold: float
    nms_threshold: float


def select(
    logits: Array,
    deltas: Array,
    regions: Regions,
    sizes: Array,
    stds: tuple[float, float, float, float],
    selection: Selection,
) -> tuple[Array, Array, Array]:
    """Chooses detections.

    Args:
      logits: float32 [N, R, classes + 1], the background last.
      deltas: float32 [N, R, classes, 4], from regions to boxes.
      regions: R of each image.
      sizes: whole numbers [N, 2], heights and widths of the images.
      stds: of the deltas.
      selection: how many, and by which thresholds.

    Returns:
      Boxes, scores and labels as `Detections` has them.
    """
    n, _, classes, _ = deltas.shape
    scores = jax.nn.softmax(logits, axis=-1)[..., :-1]
    sure = regions.valid[..., None] & (scores > selection.score_threshold)
    scores = jnp.where(sure, scores, 0.0).reshape(n, -1)
    scores, index = lax.top_k(scores, min(selection.candidates, scores.shape[1]))
    region, labels = index // classes, index % classes
    moves = jnp.take_along_axis(deltas.reshape(n, -1, 4), index[..., None], axis=1)
    places = jnp.take_along_axis(regions.boxes, region[..., None], axis=1)
    found = boxes.clip(boxes.decode(places, moves, stds), sizes[:, None])
    keep = nms(found, scores > 0, selection.nms_threshold, labels)
    scores = jnp.where(keep, scores, 0.0)
    short = max(selection.detections - scores.shape[1], 0)
    scores, index = lax.top_k(jnp.pad(scores, ((0, 0), (0, short))), selection.detections)
    index = jnp.minimum(index, found.shape[1] - 1)
    there = scores > 0
    found = jnp.take_along_axis(found, index[..., None], axis=1)
    labels = jnp.take_along_axis(labels, index, axis=1)
    return jnp.where(there[..., None], found, 0.0), scores, jnp.where(there, labels, -1)
