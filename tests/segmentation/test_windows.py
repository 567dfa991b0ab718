"""Where windows lie, against the reference's loop written down plainly."""

import itertools

import numpy as np
import pytest

from convnext_jax.segmentation.windows import stride_of, window_counts, window_starts


def slide(height, width, crop, stride):
    """mmsegmentation 0.11's `slide_inference`: boxes in its order."""
    rows = max(height - crop + stride - 1, 0) // stride + 1
    columns = max(width - crop + stride - 1, 0) // stride + 1
    boxes = []
    for row in range(rows):
        for column in range(columns):
            y1, x1 = row * stride, column * stride
            y2, x2 = min(y1 + crop, height), min(x1 + crop, width)
            y1, x1 = max(y2 - crop, 0), max(x2 - crop, 0)
            boxes.append((y1, x1, y2, x2))
    return boxes


@pytest.mark.parametrize("crop, stride", [(512, 341), (640, 426), (32, 21)])
def test_windows_are_the_references(crop, stride):
    assert stride_of(crop) == stride
    rng = np.random.default_rng(0)
    sizes = [(crop, crop), (crop, crop + 1), (crop, 4 * crop), (crop // 2, crop // 3)]
    sizes += [tuple(rng.integers(crop // 2, 5 * crop, 2).tolist()) for _ in range(20)]
    for height, width in sizes:
        boxes = slide(height, width, crop, stride)
        starts = [window_starts(side, crop, stride) for side in (height, width)]
        assert list(itertools.product(*starts)) == [box[:2] for box in boxes]
        counts = np.zeros((height, width))
        for y1, x1, y2, x2 in boxes:
            counts[y1:y2, x1:x2] += 1
        assert counts.min() >= 1
        ours = [window_counts(side, crop, stride) for side in (height, width)]
        np.testing.assert_array_equal(np.outer(*ours), counts)


def test_an_image_of_ade20k_has_at_most_five():
    """Its shorter side is 512 and the longer at most 3.2 times that."""
    found = {len(window_starts(width, 512, 341)) for width in range(512, 1639)}
    assert found == {1, 2, 3, 4, 5}
