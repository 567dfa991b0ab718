"""How images are evaluated, against the reference's steps done plainly with OpenCV and PyTorch."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import confusion_matrix

from convnext_jax.constants import IGNORED, IMAGENET_MEAN, IMAGENET_STD
from convnext_jax.models.spec import ModelDescription, ModelSpec
from convnext_jax.models.variants import Preprocessing
from convnext_jax.segmentation import inference
from convnext_jax.segmentation.task import METRIC, evaluation
from convnext_jax.segmentation.views import whole, windows

# Two of the reference's six: a program has the model once for each.
RATIOS = (0.5, 1.25)
CROP, STRIDE, CLASSES = 64, 42, 5
LARGEST = (300, 260)
# Height and width: one window, several along either axis, a long side that hits the limit of four
# times the shorter, so that the only windows are smaller than a crop, and enlarged ones.
SIZES = [(64, 64), (90, 120), (133, 100), (64, 256), (300, 60), (40, 50)]
SPEC = ModelSpec(
    "upernet_convnext_atto",
    CLASSES,
    {
        "depths": (1, 1, 1, 1),
        "dims": (8, 16, 16, 16),
        "kernel_size": 3,
        "decoder_channels": 8,
        "auxiliary_channels": 8,
    },
)
MODEL = ModelDescription(
    SPEC, Preprocessing(input_size=CROP, crop_fraction=1.0, crop_mode="window")
)


@pytest.fixture(scope="module")
def variables():
    """Weights of order 1, so that classes differ from place to place."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        values = 0.4 * rng.normal(size=leaf.shape)
        return np.float32(np.abs(1 + values) if len(leaf.shape) == 1 else values)

    params, stats = jax.tree.map(draw, (SPEC.abstract_params(), SPEC.abstract_batch_stats()))
    # Probabilities of 1 would make ties where sizes disagree.
    params["decode_head"]["conv_seg"]["kernel"] *= 0.1
    return params, stats


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(1)

    def example(height, width):
        small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        labels = rng.integers(0, CLASSES, (height, width)).astype(np.uint8)
        labels[rng.random((height, width)) < 0.1] = IGNORED
        return Image.fromarray(image), labels

    return [example(*size) for size in SIZES]


@functools.lru_cache
def plain_model():
    apply = SPEC.function_with_batch_stats()
    return jax.jit(lambda p, s, x: apply(p, s, x)[0].decode)


def logits_at_size(variables, pixels):
    """float64 [1, classes, H, W] of an image alone, upsampled to its size."""
    x = (pixels / np.float32(255) - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    logits = np.array(plain_model()(*variables, jnp.asarray(x[None], jnp.float32)))
    logits = torch.tensor(logits).permute(0, 3, 1, 2).double()
    return F.interpolate(logits, pixels.shape[:2], mode="bilinear", align_corners=False)


def resized(image, side):
    """By the reference's rule, so that (4 side, side) hold the longer and the shorter side."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    factor = min(int(4 * side) / max(height, width), int(side) / min(height, width))
    size = (int(width * factor + 0.5), int(height * factor + 0.5))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)


def by_windows(variables, image, shape):
    pixels = resized(image, CROP)
    height, width = pixels.shape[:2]
    total = torch.zeros(1, CLASSES, height, width, dtype=torch.float64)
    counts = torch.zeros(1, 1, height, width, dtype=torch.float64)
    for row in range(max(height - CROP + STRIDE - 1, 0) // STRIDE + 1):
        for column in range(max(width - CROP + STRIDE - 1, 0) // STRIDE + 1):
            bottom, right = min(row * STRIDE + CROP, height), min(column * STRIDE + CROP, width)
            part = slice(max(bottom - CROP, 0), bottom), slice(max(right - CROP, 0), right)
            total[:, :, *part] += logits_at_size(variables, pixels[part])
            counts[:, :, *part] += 1
    return F.interpolate(total / counts, shape, mode="bilinear", align_corners=False)[0]


def by_sizes(variables, image, shape):
    total = torch.zeros(CLASSES, *shape, dtype=torch.float64)
    for ratio in RATIOS:
        pixels = resized(image, CROP * ratio)
        for mirrored in (False, True):
            seen = pixels[:, ::-1].copy() if mirrored else pixels
            logits = logits_at_size(variables, seen)
            logits = F.interpolate(logits, shape, mode="bilinear", align_corners=False)[0]
            found = logits.softmax(0)
            total += found.flip(-1) if mirrored else found
    return total / (2 * len(RATIOS))


def batch_of(views, examples):
    rows = [views(example) | {"mask": np.float32(1)} for example in examples]
    blank = views.blank | {"mask": np.float32(0)}
    for row in rows:
        assert {k: (np.shape(v), np.asarray(v).dtype) for k, v in row.items()} == {
            k: (np.shape(v), np.asarray(v).dtype) for k, v in blank.items()
        }
    return {key: np.stack([row[key] for row in [*rows, blank]]) for key in blank}


def class_maps(grouped, variables, batch):
    def find(variables, batch):
        return inference.class_maps(grouped(MODEL, *variables, batch), batch)

    return np.asarray(jax.jit(find)(variables, batch))


def check_classes(maps, examples, expected):
    """Where two classes are nearly as likely float32 may see it otherwise; that is rare."""
    close = total = 0
    for found, (image, labels), scores in zip(maps, examples, expected, strict=True):
        height, width = labels.shape
        assert image.size == (width, height)
        best = scores.topk(2, dim=0).values
        clear = np.asarray(best[0] - best[1] > 1e-4 * best[0].abs())
        np.testing.assert_array_equal(
            found[:height, :width][clear], np.asarray(scores.argmax(0))[clear]
        )
        close, total = close + (~clear).sum(), total + clear.size
    assert close < 0.005 * total


def check_areas(views, variables, batch, examples, expected):
    """The counts of scikit-learn; as many pixels may differ as classes are close."""
    found = evaluation(MODEL, views=views, per_class=True)
    assert found.metric is METRIC
    totals = jax.jit(found.sums)(*variables, batch)
    labels = np.concatenate([labels.ravel() for _, labels in examples])
    said = np.concatenate([np.asarray(scores.argmax(0)).ravel() for scores in expected])
    valid = labels != IGNORED
    table = confusion_matrix(labels[valid], said[valid], labels=range(CLASSES))
    assert totals["count"] == len(examples)
    np.testing.assert_array_equal(totals["labelled"], table.sum(1))
    slack = 0.005 * valid.sum()
    np.testing.assert_allclose(totals["predicted"], table.sum(0), atol=slack)
    np.testing.assert_allclose(totals["intersection"], table.diagonal(), atol=slack)
    results = found.results(jax.device_get(totals))
    iou = table.diagonal() / (table.sum(0) + table.sum(1) - table.diagonal())
    assert results["miou"] == pytest.approx(iou.mean(), abs=0.002)
    np.testing.assert_allclose(results["iou"], iou, atol=0.005)
    assert results["pixels"].sum() == valid.sum()


def test_windows(variables, examples):
    views = windows(MODEL, LARGEST)
    batch = batch_of(views, examples)
    assert batch["views"].tolist() == [1, 2, 2, 6, 6, 2, 0]
    assert views.most == 6
    maps = class_maps(inference.window_groups, variables, batch)
    expected = [by_windows(variables, image, labels.shape) for image, labels in examples]
    assert len({int(c) for scores in expected for c in scores.argmax(0).unique()}) > 2
    check_classes(maps[:-1], examples, expected)
    check_areas(views, variables, batch, examples, expected)


def test_whole_images_in_several_sizes_and_mirrored(variables, examples):
    """Images of several sizes share one program, in which each is as if it were alone."""
    views = whole(MODEL, LARGEST, RATIOS)
    buckets = [views.bucket(*image.size) for image, _ in examples]
    assert buckets == [(64, 64), (64, 96), (96, 64), (64, 256), (256, 64), (64, 96)]
    views = views.of_shape((96, 256))
    # Not the one whose half is too small to be seen at all.
    examples = [examples[i] for i in (0, 1, 2, 3, 5)]
    batch = batch_of(views, examples)
    maps = class_maps(inference.whole_groups, variables, batch)
    expected = [by_sizes(variables, image, labels.shape) for image, labels in examples]
    check_classes(maps[:-1], examples, expected)
    check_areas(views, variables, batch, examples, expected)
