"""Non-maximum suppression beside a plain statement of it, and compiled torchvision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch, torchvision
from torchvision.extension import _has_ops

from convnext_jax.ops.nms import nms

ours = jax.jit(nms)  # one program for all thresholds


def overlaps(boxes: np.ndarray) -> np.ndarray:
    """IoUs [..., K, K] in float32, 0 of boxes without an area."""
    a, b = boxes[..., :, None, :], boxes[..., None, :, :]
    sides = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0)
    inner = sides[..., 0] * sides[..., 1]
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    union = area[..., :, None] + area[..., None, :] - inner
    return inner / np.where(union > 0, union, 1)


def greedy(boxes, valid, threshold, groups=None) -> np.ndarray:
    """One box after the other is kept, and drops what overlaps it, in cases [M, K]."""
    drops = overlaps(boxes) > np.float32(threshold)
    if groups is not None:
        drops &= groups[..., :, None] == groups[..., None, :]
    keep = valid.copy()
    for i in range(boxes.shape[-2]):
        keep[:, i + 1 :] &= ~(drops[:, i, i + 1 :] & keep[:, i, None])
    return keep


def small_cases(threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """3000 cases of 24 boxes of few whole pixels, some touching, equal or empty."""
    rng = np.random.default_rng(int(100 * threshold))
    starts = rng.integers(0, 6, (3000, 24, 2))
    boxes = np.concatenate([starts, starts + rng.integers(0, (11, 4), starts.shape)], -1)
    return (
        boxes.astype(np.float32),
        rng.uniform(size=(3000, 24)) < 0.9,
        rng.integers(0, 3, (3000, 24)),
    )


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.7])
def test_thousands_of_small_cases(threshold):
    boxes, valid, groups = small_cases(threshold)
    at_threshold = overlaps(boxes) == np.float32(threshold)
    # 7/10 is rare among such small numbers.
    assert at_threshold.sum() > (50 if threshold == 0.7 else 5000)
    np.testing.assert_array_equal(ours(boxes, valid, threshold), greedy(boxes, valid, threshold))
    found = ours(boxes, valid, threshold, groups)
    np.testing.assert_array_equal(found, greedy(boxes, valid, threshold, groups))


def many_boxes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Boxes [*shape, 4], crowded around a few places, that drop each other in chains."""
    centres = rng.uniform(0, 300, (*shape[:-1], 6, 2))
    which = rng.integers(0, 6, shape)
    starts = np.take_along_axis(centres, which[..., None], -2) + rng.normal(0, 15, (*shape, 2))
    sides = np.exp(rng.normal(3.5, 0.3, (*shape, 2)))
    return np.concatenate([starts, starts + sides], -1).astype(np.float32)


@functools.cache
def large_case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Several blocks, the last not full; the second example's valid boxes end early."""
    rng = np.random.default_rng(0)
    valid = rng.uniform(size=(2, 700)) < 0.95
    valid[1, 200:] = False
    return many_boxes(rng, (2, 700)), valid, rng.integers(0, 4, (2, 700))


@pytest.mark.parametrize("grouped", [False, True])
def test_many_boxes(grouped):
    boxes, valid, groups = large_case()
    # IoUs within a rounding of the threshold could go either way; there is none here.
    assert np.abs(overlaps(boxes) - 0.5).min() > 1e-7
    arguments = (boxes, valid, 0.5, groups) if grouped else (boxes, valid, 0.5)
    wanted = greedy(*arguments)
    np.testing.assert_array_equal(ours(*arguments), wanted)
    assert 50 < wanted[0].sum() < 500
    # Leading axes are nothing special.
    alone = ours(*(x[0] if isinstance(x, np.ndarray) else x for x in arguments))
    np.testing.assert_array_equal(alone, wanted[0])


def test_a_chain_as_long_as_it_gets():
    """Each box overlaps the next one only: every second one is kept, and rounds are many."""
    starts = np.arange(300) * 4
    boxes = np.stack([starts, 0 * starts, starts + 10, 0 * starts + 10], -1).astype(np.float32)
    valid = np.ones(300, bool)
    found = np.asarray(ours(boxes, valid, 0.3))  # 6/14 of the next, 2/18 of the one after
    np.testing.assert_array_equal(found, np.arange(300) % 2 == 0)


def test_no_box_and_no_valid_one():
    assert ours(jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), bool), 0.5).shape == (2, 0)
    assert not np.asarray(ours(jnp.zeros((3, 4)), jnp.zeros(3, bool), 0.5)).any()


def test_boxes_without_an_area_are_all_kept():
    assert np.asarray(ours(jnp.ones((4, 4)), jnp.ones(4, bool), 0.5)).all()


@pytest.mark.skipif(not _has_ops(), reason="torchvision is not built for this PyTorch")
def test_it_is_torchvisions():
    """Scores with ties, in whose order boxes stay; thresholds that float32 does not round up."""
    boxes, valid, groups = large_case()
    rng = np.random.default_rng(1)
    scores = np.round(rng.uniform(size=boxes.shape[1]), 2).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    tensors = [torch.from_numpy(x) for x in (boxes[0], scores, groups[0])]
    for threshold in (0.25, 0.5, 0.7):
        for grouped in (False, True):
            if grouped:
                kept = torchvision.ops.boxes._batched_nms_vanilla(*tensors, threshold)
            else:
                kept = torchvision.ops.nms(*tensors[:2], threshold)
            arguments = (boxes[0][order], np.ones(len(order), bool), threshold)
            found = ours(*arguments, groups[0][order]) if grouped else ours(*arguments)
            np.testing.assert_array_equal(np.sort(order[found]), np.sort(kept.numpy()))
    for threshold in (0.25, 0.5, 0.7):
        boxes = small_cases(threshold)[0][:1000]
        found = np.asarray(ours(boxes, np.ones(boxes.shape[:2], bool), threshold))
        falling = torch.arange(24, 0, -1).float()
        for case, keep in zip(boxes, found, strict=True):
            kept = torchvision.ops.nms(torch.from_numpy(case), falling, threshold)
            np.testing.assert_array_equal(np.flatnonzero(keep), np.sort(kept.numpy()))


@pytest.mark.parametrize("shape", [(2, 0), (0, 3)])
def test_nothing_to_suppress(shape):
    assert nms(jnp.zeros((*shape, 4)), jnp.ones(shape, bool), 0.5).shape == shape
