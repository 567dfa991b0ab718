"""The region proposal network (RPN, arXiv 1506.01497) as mmdetection 2.11 has it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from convnext_jax.detection import anchors, boxes, matching
from convnext_jax.detection.fpn import only
from convnext_jax.detection.layers import Conv
from convnext_jax.detection.loss import binary_cross_entropy, share, smooth_l1
from convnext_jax.detection.regions import Objects, Regions
from convnext_jax.models import initial
from convnext_jax.ops.nms import nms

# Of the five levels, in pixels.
STRIDES = (4, 8, 16, 32, 64)
# IoU of anchors with objects: positives from here on, negatives below; what an object may claim.
POSITIVE, NEGATIVE, MINIMUM = 0.7, 0.3, 0.3
POSITIVE_FRACTION = 0.5
NMS_THRESHOLD = 0.7
STDS = (1.0, 1.0, 1.0, 1.0)


class RPNHead(nnx.Module):
    """Is there an object at an anchor, and how does its box differ; one head for all levels.

    Args:
      channels: of the maps.
      dtype: dtype of computation; the results are float32.
      rngs: its `params` stream draws the kernels, normal of standard deviation 0.01.
    """

    def __init__(self, channels: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        ratios = len(anchors.RATIOS)
        init = initial.normal(0.01)
        self.rpn_conv = Conv(channels, channels, 3, dtype, rngs, init)
        self.rpn_cls = Conv(channels, ratios, 1, jnp.float32, rngs, init)
        self.rpn_reg = Conv(channels, 4 * ratios, 1, jnp.float32, rngs, init)

    def __call__(
        self, levels: Sequence[Array], sizes: Sequence[Array]
    ) -> tuple[list[Array], list[Array]]:
        """Looks at every place.

        Args:
          levels: maps [N, H, W, channels].
          sizes: whole numbers [N, 2] for each, the rows and columns that are an example's own.

        Returns:
          For each level logits of objectness, float32 [N, A], and deltas, float32 [N, A, 4], of all
          its anchors in the order of `anchors.anchor_boxes`.
        """
        logits, deltas = [], []
        for x, size in zip(levels, sizes, strict=True):
            x = jax.nn.relu(self.rpn_conv(only(x, size)))
            logits.append(self.rpn_cls(x).reshape(len(x), -1))
            deltas.append(self.rpn_reg(x).reshape(len(x), -1, 4))
        return logits, deltas


def propose(
    logits: Sequence[Array],
    deltas: Sequence[Array],
    anchor_boxes: Sequence[Array],
    valid: Sequence[Array],
    sizes: Array,
    *,
    before: int,
    after: int,
) -> Regions:
    """The regions that the network is surest of, without near duplicates. No gradient.

    Of each level the best `before` anchors go through non-maximum suppression; of what is left on
    all levels the best `after` remain, in descending order. (Sorted are logits, not their sigmoids,
    many of which round to 1.)

    Args:
      logits: float32 [N, A] of each level.
      deltas: float32 [N, A, 4] of each level.
      anchor_boxes: [A, 4] of each level.
      valid: bool [N, A] of each level, which anchors are an image's own.
      sizes: whole numbers [N, 2], heights and widths that regions are clipped to.
      before: so many of a level, or all.
      after: so many of an image, or all.
    """
    of_levels = []
    most = min(before, max(x.shape[1] for x in logits))
    for scores, moves, places, inside in zip(logits, deltas, anchor_boxes, valid, strict=True):
        scores = jnp.where(inside, lax.stop_gradient(scores), -jnp.inf)
        scores, index = lax.top_k(scores, min(before, scores.shape[1]))
        moves = jnp.take_along_axis(lax.stop_gradient(moves), index[..., None], axis=1)
        found = boxes.clip(boxes.decode(places[index], moves, STDS), sizes[:, None])
        short = most - scores.shape[1]
        of_levels.append(
            (
                jnp.pad(scores, ((0, 0), (0, short)), constant_values=-jnp.inf),
                jnp.pad(found, ((0, 0), (0, short), (0, 0))),
            )
        )
    # Levels side by side, [N, levels, most]: each is suppressed by itself.
    scores, found = (jnp.stack(x, axis=1) for x in zip(*of_levels, strict=True))
    keep = nms(found, scores > -jnp.inf, NMS_THRESHOLD)
    scores = jnp.where(keep, scores, -jnp.inf).reshape(len(scores), -1)
    scores, index = lax.top_k(scores, min(after, scores.shape[1]))
    found = jnp.take_along_axis(found.reshape(len(found), -1, 4), index[..., None], axis=1)
    there = scores > -jnp.inf
    return Regions(jnp.where(there[..., None], found, 0.0), there)


def rpn_losses(
    key: Array,
    logits: Array,
    deltas: Array,
    anchor_boxes: Array,
    valid: Array,
    objects: Objects,
    *,
    samples: int,
    beta: float,
) -> dict[str, Array]:
    """The losses at some anchors of each image, drawn at random.

    Both are divided by the number of anchors drawn in all images of the micro-batch, on all
    devices; the reference's by those of the images of one device.

    Args:
      key: of the drawing.
      logits: float32 [N, A], of all levels one after the other.
      deltas: float32 [N, A, 4].
      anchor_boxes: [A, 4].
      valid: bool [N, A], which anchors may be drawn.
      objects: that anchors are matched with.
      samples: so many of each image, at most half of them positive.
      beta: of `smooth_l1`, between deltas.

    Returns:
      `loss_rpn_cls`, `loss_rpn_bbox`, float32 scalars.
    """

    def of_image(
        key: Array, valid: Array, targets: Array, there: Array
    ) -> tuple[Array, Array, Array, Array]:
        assigned = matching.assign(
            anchor_boxes,
            valid,
            targets,
            there,
            positive=POSITIVE,
            negative=NEGATIVE,
            minimum=MINIMUM,
            low_quality=True,
        )
        most = int(samples * POSITIVE_FRACTION)
        index, positive, drawn = matching.sample(key, assigned, valid, samples, most)
        return index, positive, drawn, targets[jnp.maximum(assigned[index], 0)]

    keys = jax.random.split(key, len(logits))
    index, positive, drawn, matched = jax.vmap(of_image)(keys, valid, objects.boxes, objects.valid)
    places = anchor_boxes[index]
    # Where there is no object, any box with an area will do.
    wanted = boxes.encode(places, jnp.where(positive[..., None], matched, places), STDS)
    logits = jnp.take_along_axis(logits, index, axis=1)
    deltas = jnp.take_along_axis(deltas, index[..., None], axis=1)
    count = drawn.sum()
    off = smooth_l1(deltas - wanted, beta).sum(-1)
    return {
        "loss_rpn_cls": share(binary_cross_entropy(logits, positive), drawn, count),
        "loss_rpn_bbox": share(off, positive, count),
    }
