"""Overlaps, deltas and the GIoU loss beside torchvision's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch, torchvision
from torchvision.models.detection._utils import BoxCoder

from convnext_jax.detection import boxes as box_ops

STDS = ((1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2), (0.033, 0.033, 0.067, 0.067))


def random_boxes(seed: int, *shape: int, least: float = 1.0) -> np.ndarray:
    """Boxes [*shape, 4] in an image of 800 x 1333."""
    rng = np.random.default_rng(seed)
    starts = rng.uniform(-20, (1333, 800), (*shape, 2))
    sides = np.exp(rng.uniform(np.log(least), np.log(600), (*shape, 2)))
    return np.concatenate([starts, starts + sides], -1).astype(np.float32)


def test_areas_and_overlaps_are_torchvisions():
    a, b = random_boxes(0, 3, 40), random_boxes(1, 3, 60)
    b[:, :20] = a[:, :20]  # equal ones
    b[:, 20:30, :2] = a[:, 20:30, 2:]  # that touch, and may end before they begin
    b[:, 20:30, 2:] = a[:, 20:30, 2:] + 5
    found = np.asarray(box_ops.iou(jnp.asarray(a), jnp.asarray(b)))
    for n in range(3):
        wanted = torchvision.ops.box_iou(torch.from_numpy(a[n]), torch.from_numpy(b[n]))
        np.testing.assert_allclose(found[n], wanted, atol=1e-6)  # float32's rounding of 1
        area = torchvision.ops.box_area(torch.from_numpy(a[n]))
        np.testing.assert_array_equal(box_ops.area(jnp.asarray(a[n])), area)
    assert found[0, 25, 25] == 0
    empty = jnp.asarray([[3.0, 3, 3, 3]])
    assert box_ops.iou(empty, empty) == 0


def test_clipping_is_torchvisions():
    given = random_boxes(2, 2, 50)
    size = np.asarray([[600, 900], [800, 1000]])
    found = box_ops.clip(jnp.asarray(given), jnp.asarray(size)[:, None])
    for n in range(2):
        wanted = torchvision.ops.clip_boxes_to_image(torch.from_numpy(given[n]), size[n].tolist())
        np.testing.assert_array_equal(found[n], wanted)


@pytest.mark.parametrize("stds", STDS, ids=str)
def test_deltas_are_torchvisions_and_lead_back(stds):
    anchors, boxes = random_boxes(3, 200), random_boxes(4, 200)
    coder = BoxCoder(tuple(1 / s for s in stds), bbox_xform_clip=box_ops.LARGEST_LOG_RATIO)
    wanted = coder.encode_single(torch.from_numpy(boxes), torch.from_numpy(anchors)).numpy()
    deltas = box_ops.encode(jnp.asarray(anchors), jnp.asarray(boxes), stds)
    # Differences of coordinates up to 1933 with 1e-4 of rounding, over sides of 1 or more.
    np.testing.assert_allclose(deltas, wanted, rtol=1e-5, atol=2e-4 / min(stds))
    back = np.asarray(box_ops.decode(jnp.asarray(anchors), deltas, stds))
    near = (np.abs(wanted[:, 2:] * stds[2:]) < box_ops.LARGEST_LOG_RATIO).all(-1)
    assert near.sum() > 100
    np.testing.assert_allclose(back[near], boxes[near], rtol=1e-5, atol=2e-3)


def test_boxes_of_any_delta_are_torchvisions_but_for_the_lower_clamp():
    anchors = random_boxes(5, 300)
    deltas = np.random.default_rng(6).normal(0, 3, (300, 7, 4)).astype(np.float32)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0), bbox_xform_clip=box_ops.LARGEST_LOG_RATIO)
    limited = deltas.copy()
    limited[..., 2:] = np.maximum(deltas[..., 2:], -box_ops.LARGEST_LOG_RATIO * 5)
    wanted = coder.decode_single(
        torch.from_numpy(limited.reshape(300, -1)), torch.from_numpy(anchors)
    )
    found = box_ops.decode(jnp.asarray(anchors)[:, None], jnp.asarray(deltas), STDS[1])
    np.testing.assert_allclose(found.reshape(300, -1), wanted, rtol=1e-5, atol=1e-3)
    far = jnp.asarray([0.0, 0, 100, -100])
    box = box_ops.decode(jnp.asarray([0.0, 0, 32, 32]), far, STDS[0])
    width, height = box[2] - box[0], box[3] - box[1]
    np.testing.assert_allclose((width, height), (2000, 0.512), rtol=1e-4)


def test_boxes_that_fill_up_have_finite_deltas_and_gradients():
    nothing, box = jnp.zeros(4), jnp.asarray([1.0, 2, 30, 40])
    for anchors, boxes in ((nothing, nothing), (nothing, box), (box, nothing)):
        gradients = jax.grad(
            lambda a, b: box_ops.encode(a, b, STDS[1]).sum() + box_ops.giou_loss(a, b), (0, 1)
        )(anchors, boxes)
        assert np.isfinite(box_ops.encode(anchors, boxes, STDS[1])).all()
        assert all(np.isfinite(g).all() for g in gradients)


def test_giou_loss_and_its_gradient_are_torchvisions():
    predicted, target = random_boxes(7, 300), random_boxes(8, 300)
    predicted[:100] = target[:100] + np.random.default_rng(9).normal(0, 2, (100, 4))
    predicted[:100, 2:] = np.maximum(predicted[:100, 2:], predicted[:100, :2] + 1)
    theirs = torch.from_numpy(predicted).requires_grad_()
    wanted = torchvision.ops.generalized_box_iou_loss(theirs, torch.from_numpy(target))
    wanted.sum().backward()
    found = box_ops.giou_loss(jnp.asarray(predicted), jnp.asarray(target))
    # Its areas are at least 1, to which it adds 1e-7 where we have a limit.
    np.testing.assert_allclose(found, wanted.detach(), atol=2e-6)
    gradient = jax.grad(lambda x: box_ops.giou_loss(x, jnp.asarray(target)).sum())
    np.testing.assert_allclose(gradient(jnp.asarray(predicted)), theirs.grad, rtol=1e-3, atol=1e-5)
    same = jnp.asarray(target)
    np.testing.assert_allclose(box_ops.giou_loss(same, same), 0, atol=1e-6)
