"""Assigning and sampling beside a plain statement of mmdet's rules, on thousands of cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch, torchvision

from convnext_jax.detection import matching

CASES, BOXES, OBJECTS = 2000, 40, 5
# Of the region proposal network, of Mask R-CNN's heads, of a cascade's stage; and one in which
# thresholds are what IoUs of small whole numbers are.
RULES = {
    "proposals": dict(positive=0.7, negative=0.3, minimum=0.3, low_quality=True),
    "heads": dict(positive=0.5, negative=0.5, minimum=0.5, low_quality=True),
    "cascade": dict(positive=0.6, negative=0.6, minimum=0.6, low_quality=False),
    "even": dict(positive=0.75, negative=0.25, minimum=0.125, low_quality=True),
}


def assigned_by_mmdet(boxes, objects, positive, negative, minimum, low_quality) -> np.ndarray:
    """`MaxIoUAssigner` with its own numbers: object + 1, 0 for a negative, -1 for neither."""
    if len(objects) == 0 or len(boxes) == 0:
        return np.zeros(len(boxes), int)
    overlaps = torchvision.ops.box_iou(torch.from_numpy(objects), torch.from_numpy(boxes)).numpy()
    overlaps = np.nan_to_num(overlaps)  # of no area
    assigned = np.full(len(boxes), -1)
    largest, of = overlaps.max(0), overlaps.argmax(0)
    assigned[(largest >= 0) & (largest < np.float32(negative))] = 0
    is_positive = largest >= np.float32(positive)
    assigned[is_positive] = of[is_positive] + 1
    if low_quality:
        for index, best in enumerate(overlaps.max(1)):
            if best >= np.float32(minimum):
                assigned[overlaps[index] == best] = index + 1
    return assigned


@functools.cache
def cases() -> tuple[np.ndarray, ...]:
    """Boxes, valid, objects, object_valid of small whole numbers: ties are frequent."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray:
        starts = rng.integers(0, 6, (CASES, count, 2))
        sides = rng.integers(0, 7, starts.shape)
        return np.concatenate([starts, starts + sides], -1).astype(np.float32)

    boxes, objects = draw(BOXES), draw(OBJECTS)
    valid = rng.uniform(size=(CASES, BOXES)) < rng.uniform(size=(CASES, 1)) * 1.3
    object_valid = rng.uniform(size=(CASES, OBJECTS)) < rng.uniform(size=(CASES, 1)) * 1.3
    valid[:50], object_valid[50:100] = False, False
    return boxes, valid, objects, object_valid


@pytest.mark.parametrize("name", RULES)
def test_boxes_learn_the_objects_that_mmdet_says(name):
    rules = RULES[name]
    found = np.asarray(jax.jit(jax.vmap(functools.partial(matching.assign, **rules)))(*cases()))
    kinds = np.zeros(3, int)
    for boxes, valid, objects, object_valid, ours in zip(*cases(), found, strict=True):
        theirs = assigned_by_mmdet(boxes[valid], objects[object_valid], **rules)
        # Positions among the valid objects are places in the array; others move by one.
        places = np.append(np.flatnonzero(object_valid), [matching.NEITHER, matching.NEGATIVE])
        wanted = np.full(BOXES, matching.NEITHER)
        wanted[valid] = places[theirs - 1]
        np.testing.assert_array_equal(ours, wanted)
        kinds += (theirs > 0).sum(), (theirs == 0).sum(), (theirs < 0).sum()
    assert kinds[0] > 500 and kinds[1] > 10_000
    assert (kinds[2] > 0) == (rules["positive"] != rules["negative"])


def test_every_box_that_ties_is_claimed_and_later_objects_win():
    boxes = jnp.asarray([[0.0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [20, 20, 24, 24]])
    objects = jnp.asarray([[0.0, 0, 8, 4], [0, 0, 4, 8], [0, 0, 0, 0]])
    valid, object_valid = jnp.ones(4, bool), jnp.asarray([True, True, False])
    found = matching.assign(boxes, valid, objects, object_valid, **RULES["proposals"])
    assert found.tolist() == [1, 0, 1, matching.NEGATIVE]
    without = matching.assign(boxes, valid, objects, object_valid, **RULES["cascade"])
    assert without.tolist() == [matching.NEGATIVE] * 4
    none = matching.assign(boxes, valid, objects[:0], object_valid[:0], **RULES["proposals"])
    assert none.tolist() == [matching.NEGATIVE] * 4


def test_real_anchors_keep_their_ties():
    """IoUs that are not small fractions: a shift by a stride leaves them equal only by rounding."""
    rng = np.random.default_rng(1)
    starts = rng.uniform(0, 900, (3000, 2))
    boxes = np.concatenate([starts, starts + np.exp(rng.normal(4, 1, (3000, 2)))], 1)
    boxes = np.concatenate([boxes, boxes]).astype(np.float32)  # each has a double, that ties
    objects = boxes[:30] + rng.normal(0, 40, (30, 4)).astype(np.float32)
    objects[:, 2:] = np.maximum(objects[:, 2:], objects[:, :2] + 5)
    arguments = boxes, np.ones(6000, bool), objects, np.ones(30, bool)
    found = jax.jit(functools.partial(matching.assign, **RULES["proposals"]))(*arguments)
    theirs = assigned_by_mmdet(boxes, objects, **RULES["proposals"])
    wanted = np.where(theirs == 0, matching.NEGATIVE, theirs - 1)
    np.testing.assert_array_equal(found, np.where(theirs < 0, matching.NEITHER, wanted))
    np.testing.assert_array_equal(found[:3000], found[3000:])


@pytest.fixture(scope="module")
def drawn():
    """What is drawn of 2000 cases with more, and fewer, candidates than asked for."""
    rng = np.random.default_rng(2)
    shares = rng.dirichlet((0.5, 0.5, 0.5), CASES)
    assigned = np.stack([rng.choice([-2, -1, 3], BOXES, p=p) for p in shares])
    valid = rng.uniform(size=assigned.shape) < rng.uniform(size=(CASES, 1)) * 1.2
    keys = jax.random.split(jax.random.key(0), CASES)
    draw = jax.jit(jax.vmap(lambda *x: matching.sample(*x, 16, 4)))
    return assigned, valid, [np.asarray(x) for x in draw(keys, assigned, valid)]


def test_samples_have_the_numbers_of_mmdets(drawn):
    """`RandomSampler`: positives up to their share, negatives up to what is left; no box twice."""
    assigned, valid, found = drawn
    fewer = 0
    for kinds, counts, index, is_positive, is_valid in zip(assigned, valid, *found, strict=True):
        positives = min((counts & (kinds >= 0)).sum(), 4)
        negatives = min((counts & (kinds == -1)).sum(), 16 - positives)
        assert is_valid.tolist() == [i < positives + negatives for i in range(16)]
        assert is_positive.tolist() == [i < positives for i in range(16)]
        chosen = index[is_valid]
        assert len(set(chosen)) == len(chosen) and counts[chosen].all()
        assert (kinds[index[is_positive]] >= 0).all()
        assert (kinds[index[is_valid & ~is_positive]] == -1).all()
        assert (index >= 0).all() and (index < BOXES).all()
        fewer += positives + negatives < 16
    assert 100 < fewer < CASES - 100


def test_all_candidates_are_equally_likely():
    assigned = jnp.asarray([0] * 10 + [-1] * 30)
    keys = jax.random.split(jax.random.key(1), 4000)
    draw = jax.jit(jax.vmap(lambda key: matching.sample(key, assigned, assigned > -2, 16, 4)[0]))
    counts = np.bincount(np.asarray(draw(keys)).reshape(-1), minlength=40)
    # Binomial: 1600 of each, with a deviation of 31.
    np.testing.assert_allclose(counts, 1600, atol=150)
    again = matching.sample(keys[0], assigned, assigned > -2, 16, 4)[0]
    np.testing.assert_array_equal(again, draw(keys[:1])[0])


def test_fewer_boxes_than_asked_for():
    index, is_positive, is_valid = matching.sample(
        jax.random.key(0), jnp.asarray([-1, 2, -2]), jnp.ones(3, bool), 8, 2
    )
    assert index[:2].tolist() == [1, 0] and index.shape == (8,)
    assert is_positive.sum() == 1 and is_valid.sum() == 2
