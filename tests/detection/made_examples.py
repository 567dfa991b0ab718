"""Images with objects to test with, and a small training transform."""

import numpy as np
from PIL import Image

from convnext_jax.data.coco_tools import encode
from convnext_jax.data.instances import Objects
from convnext_jax.detection.transforms import TrainCanvas

# The recipe's proportions at an eighth of its size, so that hundreds of images are quick.
SMALL = TrainCanvas(
    canvas=(128, 192),
    longer=166,
    scales=(60, 70, 80, 100),
    first_scales=(50, 62, 75),
    crop=(48, 75),
    max_objects=12,
)


def an_example(rng, height, width, count, crowds=0):
    """Noise with rectangles and ellipses, some of whose boxes reach beyond the image."""
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    boxes, masks = [], []
    for i in range(count):
        left, top = rng.uniform(-2, 0.9 * width), rng.uniform(-2, 0.9 * height)
        wide, high = rng.uniform(1, width - left + 2), rng.uniform(1, height - top + 2)
        y, x = np.mgrid[:height, :width] + 0.5
        far = abs((x - left) / wide - 0.5), abs((y - top) / high - 0.5)
        inside = np.maximum(*far) < 0.5 if i % 2 else np.hypot(*far) < 0.5
        boxes.append([left, top, wide, high])
        masks.append(inside)
    is_crowd = np.arange(count) < crowds
    objects = Objects(
        bbox=np.array(boxes).reshape(-1, 4),
        labels=rng.integers(0, 80, count).astype(np.int32),
        is_crowd=is_crowd,
        area=np.array([mask.sum() for mask in masks], np.float64),
        masks=tuple(encode(mask) for mask in masks),
        height=height,
        width=width,
        image_id=7,
        index=3,
    )
    return image, objects, np.array(masks, np.uint8).reshape(count, height, width)
