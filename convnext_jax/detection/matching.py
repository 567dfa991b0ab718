"""Which boxes learn which object, and the random few of them that a loss is computed of.

Both are of one image; `jax.vmap` makes them of several.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from convnext_jax.detection import boxes as box_ops

NEGATIVE, NEITHER = -1, -2


@jax.named_scope("assign")
def assign(
    boxes: Array,
    valid: Array,
    objects: Array,
    object_valid: Array,
    *,
    positive: float,
    negative: float,
    minimum: float,
    low_quality: bool,
) -> Array:
    """Assigns to each box the object that it overlaps most (mmdet's `MaxIoUAssigner`).

    A box is positive, and learns the object of its largest IoU (the first of several), if that is
    `positive` or more; it is negative if all are below `negative`, and neither in between. With
    `low_quality`, each object whose largest IoU is `minimum` or more then takes all boxes that
    reach it, whatever they had; a later object takes from an earlier one.

    Args:
      boxes: [A, 4].
      valid: bool [A]; others are neither positive nor negative, and no object sees them.
      objects: [G, 4].
      object_valid: bool [G]; without any, all valid boxes are negative.
      positive: least IoU of positives.
      negative: IoU that negatives stay below.
      minimum: least IoU of an object's best boxes.
      low_quality: whether objects take their best boxes.

    Returns:
      int32 [A]: the index of the object, -1 for a negative, -2 for neither.
    """

    count = objects.shape[0]
    if count == 0:
        return jnp.where(valid, NEGATIVE, NEITHER).astype(jnp.int32)
    coordinates = box_ops.coordinates(boxes)

    # One object at a time: of all at once, IoUs would be 107 MB for the anchors of an image.
    def overlaps(index: Array) -> Array:
        index = jnp.minimum(index, count - 1)
        found = box_ops.iou_of_coordinates(box_ops.coordinates(objects[index]), coordinates)
        return jnp.where(valid & object_valid[index], found, -1)

    # The IoUs come from the round before, so that they have been written to memory: the largest is
    # then equal to one of them to the bit, which it need not be when a compiler computes them
    # twice, in different surroundings.
    def visit(index: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        current, best, nearest, taken = carry
        nearest = jnp.where(current > best, index, nearest)
        best = jnp.maximum(current, best)
        if low_quality:
            largest = current.max(initial=-1)
            claims = (current == largest) & (current >= 0) & (largest >= minimum)
            taken = jnp.where(claims, index, taken)
        return overlaps(index + 1), best, nearest, taken

    nothing = jnp.full(valid.shape, -1, jnp.int32)
    first = overlaps(jnp.int32(0))
    start = first, jnp.zeros_like(first), nothing, nothing
    # Of the 100 places for objects few are taken.
    behind = jnp.max(jnp.where(object_valid, jnp.arange(1, count + 1, dtype=jnp.int32), 0))
    _, best, nearest, taken = lax.fori_loop(jnp.int32(0), behind, visit, start)
    result = jnp.where(best >= positive, nearest, jnp.where(best < negative, NEGATIVE, NEITHER))
    if low_quality:
        result = jnp.where(taken >= 0, taken, result)
    return jnp.where(valid, result, NEITHER)


@jax.named_scope("sample")
def sample(
    key: Array, assigned: Array, valid: Array, count: int, positives: int
) -> tuple[Array, Array, Array]:
    """Draws boxes at random, without replacement (mmdet's `RandomSampler`).

    At most `positives` positives; negatives fill what they leave of `count`. There may not be so
    many: what then fills the arrays is not valid.

    Args:
      key: of the random numbers.
      assigned: int32 [A], from `assign`.
      valid: bool [A]; others are never drawn.
      count: how many to draw.
      positives: how many of them may be positive.

    Returns:
      The indices, int32 [count], positives first; which of them are positive, and which are valid,
      bool [count].
    """
    # Not `uniform`, which gives 2^23 different numbers, few for 268,569 anchors: these are 2^30,
    # positive, and as floats in the order of their bits. Of whole numbers, `top_k` is slow on CPU.
    bits = jax.random.bits(key, assigned.shape, jnp.uint32) >> 2
    places = lax.bitcast_convert_type(bits, jnp.float32)
    # Both at once: compilers take long for each `top_k`.
    candidates = valid[None] & jnp.stack([assigned >= 0, assigned == NEGATIVE])
    there = candidates.sum(1, dtype=jnp.int32)
    chosen_count, rest_count = jnp.minimum(there[0], positives), there[1]
    ordered = jnp.where(candidates, places[None], -1)
    chosen, rest = lax.top_k(ordered, min(count, len(assigned)))[1]
    order = jnp.arange(count, dtype=jnp.int32)
    is_positive = order < chosen_count
    behind = order - chosen_count
    index = jnp.where(
        is_positive,
        chosen[jnp.minimum(order, chosen.shape[0] - 1)],
        rest[jnp.clip(behind, 0, rest.shape[0] - 1)],
    )
    return index, is_positive, is_positive | (behind < rest_count)
