"""Anchors beside torchvision's generator, and which of them count beside mmdet's rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator

from convnext_jax.detection import anchors as anchor_ops

STRIDES = (4, 8, 16, 32, 64)
CANVAS = (800, 1344)


def test_the_canvas_has_as_many_as_mmdet():
    boxes = jax.eval_shape(lambda: anchor_ops.anchor_boxes(CANVAS, STRIDES))
    assert [x.shape for x in boxes] == [(3 * n, 4) for n in (67_200, 16_800, 4_200, 1_050, 273)]
    assert {x.dtype for x in boxes} == {np.dtype("float32")}


def test_anchors_are_torchvisions_with_base_anchors_that_are_not_rounded():
    """Of whole strides only: elsewhere torchvision's strides are not 64."""
    shape = (128, 192)
    found = anchor_ops.anchor_boxes(shape, STRIDES)
    generator = AnchorGenerator(((8,),) * 5, ((0.5, 1.0, 2.0),) * 5)
    bases = []
    for stride in STRIDES:
        roots = torch.sqrt(torch.tensor([0.5, 1, 2]))
        width, height = 8 * stride / roots, 8 * stride * roots
        bases.append(torch.stack([-width, -height, width, height], 1) / 2)
    generator.cell_anchors = bases
    sizes = [[128 // stride, 192 // stride] for stride in STRIDES]
    strides = [[torch.tensor(stride)] * 2 for stride in STRIDES]
    wanted = generator.grid_anchors(sizes, strides)
    for ours, theirs in zip(found, wanted, strict=True):
        # One rounding of coordinates up to 600.
        np.testing.assert_allclose(ours, theirs, atol=6e-5)


@pytest.mark.parametrize("traced", [False, True])
def test_portrait_images_have_the_same_anchors_by_transposed_cells(traced):
    flag = jnp.asarray(True) if traced else True
    lying = anchor_ops.anchor_boxes((64, 160), (8, 64), portrait=flag)
    upright = anchor_ops.anchor_boxes((160, 64), (8, 64))
    for x, y, (rows, columns) in zip(lying, upright, ((8, 20), (1, 3)), strict=True):
        transposed = np.asarray(y).reshape(columns, rows, 3, 4).transpose(1, 0, 2, 3)
        np.testing.assert_array_equal(x, transposed.reshape(-1, 4))


@pytest.mark.parametrize("portrait", [False, True])
def test_cells_beyond_the_images_own_padded_size_do_not_count(portrait):
    """mmdet's `valid_flags`, cell by cell."""
    shape, sizes = (224, 352), np.asarray([[97, 200], [224, 352], [1, 33], [160, 300]])
    given = jnp.asarray(sizes[:, ::-1] if portrait else sizes)
    count = jax.jit(
        lambda given: anchor_ops.valid_anchors(shape, STRIDES, given, portrait=portrait)
    )
    found = count(given)
    for stride, valid in zip(STRIDES, found, strict=True):
        rows, columns = -(-224 // stride), -(-352 // stride)
        assert valid.shape == (4, rows * columns * 3)
        for n, (height, width) in enumerate(sizes):
            wanted = np.zeros((rows, columns, 3), bool)
            padded = -(-height // 32) * 32, -(-width // 32) * 32
            wanted[: -(-padded[0] // stride), : -(-padded[1] // stride)] = True
            np.testing.assert_array_equal(valid[n], wanted.reshape(-1))
    np.testing.assert_array_equal(count(given[0])[1], found[1][0])


def test_anchors_that_cross_the_border():
    """mmdet's `anchor_inside_flags` with border 0: the far sides are exclusive."""
    boxes = jnp.asarray([[0.0, 0, 9, 9], [-0.1, 0, 5, 5], [0, 0, 30, 9], [0, 0, 9, 20.0]])
    sizes = jnp.asarray([[20, 30], [21, 31]])
    both = jnp.broadcast_to(boxes, (2, 4, 4))
    found = anchor_ops.inside_image(both, sizes)
    assert found.tolist() == [[True, False, False, False], [True, False, True, True]]
    assert anchor_ops.inside_image(boxes, sizes[0]).tolist() == found[0].tolist()
