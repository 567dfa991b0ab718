"""Masks against torch's grid_sample over whole images, and their runs against pycocotools."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from convnext_jax.detection.pasting import Pasted, encode, paste

HEIGHT, WIDTH = 61, 83


def sampled(probabilities, box, height, width):
    """What each pixel of the image reads, float32 [height, width], as mmdet 2.11 does it."""
    x1, y1, x2, y2 = (torch.tensor(float(v), dtype=torch.float32) for v in box)
    x = (torch.arange(width, dtype=torch.float32) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(height, dtype=torch.float32) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)], -1)
    maps = torch.tensor(probabilities)[None, None]
    return torch.nn.functional.grid_sample(maps, grid[None], align_corners=False)[0, 0].numpy()


def whole(pasted, height, width):
    full = np.zeros((height, width), np.uint8)
    rows, columns = pasted.bitmap.shape
    full[pasted.top :, pasted.left :][:rows, :columns] = pasted.bitmap
    return full


def boxes(rng, count):
    """Inside, partly outside, all outside, tiny, huge, and long and thin ones; float32 [n, 4]."""
    scale = rng.choice([0.3, 2, 20, 60, 400], (count, 2))
    centre = rng.uniform(-20, [WIDTH + 20, HEIGHT + 20], (count, 2))
    half = scale * rng.uniform(0.1, 1, (count, 2))
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_pixels_are_those_of_grid_sample(kind):
    rng = np.random.default_rng(0)
    differ = covered = 0
    for box in boxes(rng, 400):
        if kind == "noise":
            probabilities = rng.random((28, 28), np.float32)
        else:
            rows, columns = np.mgrid[:28, :28] / 27 - rng.uniform(0.2, 0.8, (2, 1, 1))
            logits = 8 - 80 * (rows**2 + columns**2)
            probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32)
        values = sampled(probabilities, box, HEIGHT, WIDTH)
        found = whole(paste(probabilities, box, HEIGHT, WIDTH), HEIGHT, WIDTH)
        other = found != (values >= 0.5)
        # Four products of float32 in [0, 1], summed in another order.
        assert np.abs(values[other] - 0.5).max(initial=0) < 4e-7
        differ += other.sum()
        covered += found.sum()
    assert covered > 50_000
    assert differ <= covered / 10_000


def test_certain_masks_fill_their_boxes_with_edges_included():
    ones = np.ones((28, 28), np.float32)
    box = np.array([10.5, 20.5, 17.5, 26.5], np.float32)  # through centres of pixels
    values = sampled(ones, box, HEIGHT, WIDTH)
    found = whole(paste(ones, box, HEIGHT, WIDTH), HEIGHT, WIDTH)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[20:27, 10:18] = True
    # A corner has a quarter, an edge exactly half.
    inside[[20, 20, 26, 26], [10, 17, 10, 17]] = False
    np.testing.assert_array_equal(values >= 0.5, inside)
    np.testing.assert_array_equal(found, inside)


def test_a_mask_of_one_half_everywhere_is_a_tie():
    # Weights that do not sum to 1 after rounding decide, pixel by pixel: either is right.
    half = np.full((28, 28), 0.5, np.float32)
    box = np.array([3.3, 4.7, 61.1, 50.9], np.float32)
    values = sampled(half, box, HEIGHT, WIDTH)
    found = whole(paste(half, box, HEIGHT, WIDTH), HEIGHT, WIDTH)
    certain = np.abs(values - 0.5) > 2e-7
    np.testing.assert_array_equal(found[certain], values[certain] >= 0.5)


@pytest.mark.parametrize(
    "box",
    [
        (5, 5, 5, 20),
        (5, 20, 30, 20),
        (9, 9, 3, 3),
        (np.nan, 0, 5, 5),
        (0, 0, np.inf, 5),
        (-50, -50, -10, -10),
        (200, 200, 300, 300),
    ],
)
def test_boxes_without_pixels_cover_nothing(box):
    pasted = paste(np.ones((28, 28), np.float32), np.array(box, np.float32), HEIGHT, WIDTH)
    assert not pasted.bitmap.any()
    encoded = encode(pasted, HEIGHT, WIDTH)
    nothing = coco_mask.encode(np.zeros((HEIGHT, WIDTH), np.uint8, order="F"))
    assert encoded == {"size": [HEIGHT, WIDTH], "counts": nothing["counts"].decode()}


def test_runs_are_those_of_pycocotools():
    rng = np.random.default_rng(1)
    for i in range(600):
        height, width = rng.integers(1, 40, 2)
        top, left = rng.integers(0, height + 1), rng.integers(0, width + 1)
        rows, columns = rng.integers(0, height - top + 1), rng.integers(0, width - left + 1)
        if i % 5 == 0:  # full height: runs go on from column to column
            top, rows = 0, height
        share = rng.choice([0, 0.1, 0.5, 0.9, 1])
        part = (rng.random((rows, columns)) < share).astype(np.uint8)
        pasted = Pasted(int(top), int(left), part)
        full = np.asfortranarray(whole(pasted, height, width))
        expected = coco_mask.encode(full)
        found = encode(pasted, int(height), int(width))
        assert found["counts"] == expected["counts"].decode(), (height, width, pasted)
        assert found["size"] == expected["size"]


def test_runs_of_large_images_have_large_numbers():
    part = np.ones((1, 1), np.uint8)
    full = np.zeros((3000, 4000), np.uint8, order="F")
    full[2999, 3999] = 1
    found = encode(Pasted(2999, 3999, part), 3000, 4000)
    assert found["counts"] == coco_mask.encode(full)["counts"].decode()
