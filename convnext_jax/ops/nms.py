"""Non-maximum suppression: greedy, exact, with static shapes."""

import jax
import jax.numpy as jnp
from jax import Array, lax

_BLOCK = 128  # boxes that are decided on together


@jax.named_scope("nms")
def nms(boxes: Array, valid: Array, threshold: float, groups: Array | None = None) -> Array:
    """Keeps each box unless it overlaps one that is kept and comes before it.

    As torchvision's `nms` and `batched_nms`, and mmcv's, but that IoUs of groups are not those of
    boxes moved far apart, whose coordinates have lost places.

    Boxes are decided on a block at a time, first to last: those that no earlier block's boxes have
    dropped are decided on among themselves, and what is kept drops its part of the rest. No more
    than a block's IoUs with all boxes is in memory; nothing is done behind the last valid box.

    Args:
      boxes: float32 [..., K, 4]: x1, y1, x2, y2, in descending order of score.
      valid: bool [..., K]; others are not kept and drop nothing.
      threshold: boxes are dropped whose IoU is larger (not: equal), in float32. That of two boxes
        without an area is 0.
      groups: whole numbers [..., K], such as labels; boxes drop only those of their own group.

    Returns:
      bool [..., K]: which boxes are kept.
    """
    if valid.size == 0:
        return valid
    count = boxes.shape[-2]
    block = min(_BLOCK, count)
    padding = [(0, 0)] * (valid.ndim - 1) + [(0, -count % block)]
    alive = jnp.pad(valid, padding)
    # A coordinate each: of [..., 4], compilers make one operation for every number.
    fields = [jnp.pad(boxes[..., i], padding) for i in range(4)]
    if groups is not None:
        fields.append(jnp.pad(groups, padding))
    order = jnp.arange(count + padding[-1][1])
    leading = (1,) * (valid.ndim - 1)
    before = (order[:block, None] < order[None, :block]).reshape(*leading, block, block)

    def decide(index: Array, alive: Array) -> Array:
        start = index * block
        own, candidates = (
            [lax.dynamic_slice_in_dim(x, start, block, -1) for x in arrays]
            for arrays in (fields, [alive])
        )
        keep = _fixed_point(_overlap(own, own, threshold) & before, candidates[0])
        dropped = (_overlap(own, fields, threshold) & keep[..., :, None]).any(-2)
        alive &= ~dropped | (order < start + block).reshape(*leading, -1)
        return lax.dynamic_update_slice_in_dim(alive, keep, start, -1)

    behind = jnp.max(jnp.where(alive, (order + 1).reshape(*leading, -1), 0))
    return lax.fori_loop(0, -(-behind // block), decide, alive)[..., :count]


def _fixed_point(drops: Array, candidates: Array) -> Array:
    """Which candidates [..., B] are kept if kept i drop j where `drops` [..., B, B] has i, j.

    The greedy choice is the only one that a round does not change, and each round makes right at
    least one more of its boxes, first to last: as many rounds as the longest chain of boxes that
    drop one another, which is mostly below ten.
    """

    def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        _, keep = state
        return keep, candidates & ~(drops & keep[..., :, None]).any(-2)

    start = (jnp.zeros_like(candidates), candidates)
    return lax.while_loop(lambda state: (state[0] != state[1]).any(), again, start)[1]


def _overlap(a: list[Array], b: list[Array], threshold: float) -> Array:
    """Which of `a`, coordinates and perhaps groups [..., A], overlap which of `b`: [..., A, B]."""
    ax1, ay1, ax2, ay2, *a_groups = (x[..., :, None] for x in a)
    bx1, by1, bx2, by2, *b_groups = (x[..., None, :] for x in b)
    width = jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1), 0)
    height = jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1), 0)
    intersection = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    # Divided, not multiplied by the threshold: at the threshold that rounds another way.
    found = intersection / jnp.where(union > 0, union, 1) > threshold
    for x, y in zip(a_groups, b_groups, strict=True):
        found &= x == y
    return found
