"""Non-maximum suppression: greedy, exact, with static shapes."""

import jax.numpy as jnp
from jax import Array, lax


def nms(boxes: Array, valid: Array, threshold: float, groups: Array | None = None) -> Array:
    """Keeps each box unless it overlaps one that is kept and comes before it.

    Args:
      boxes: float32 [..., K, 4]: x1, y1, x2, y2, in descending order of score.
      valid: bool [..., K]; others are not kept and suppress nothing.
      threshold: boxes are dropped whose IoU is larger (not: equal).
      groups: whole numbers [..., K], such as labels; boxes suppress only their own group.

    Returns:
      bool [..., K]: which boxes are kept.
    """
    count = boxes.shape[-2]
    overlaps = _iou(boxes, boxes) > threshold
    if groups is not None:
        overlaps &= groups[..., :, None] == groups[..., None, :]
    order = jnp.arange(count)
    overlaps &= (order[:, None] < order[None]).reshape((1,) * (valid.ndim - 1) + (count, count))
    overlaps &= valid[..., :, None]

    # The greedy choice is the one fixed point: the first box is right after one round, and each
    # round makes right at least one more.
    def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        _, keep = state
        return keep, valid & ~(overlaps & keep[..., :, None]).any(-2)

    start = (jnp.zeros_like(valid), valid)
    return lax.while_loop(lambda state: (state[0] != state[1]).any(), again, start)[1]


def _iou(a: Array, b: Array) -> Array:
    a, b = a[..., :, None, :], b[..., None, :, :]
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    sides = jnp.maximum(sides, 0)
    intersection = sides[..., 0] * sides[..., 1]
    area_a, area_b = (((x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1])) for x in (a, b))
    union = area_a + area_b - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)
