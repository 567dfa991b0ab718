"""Random erasing against timm's, given the same draws and in distribution."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from quick_compilation import SAME_BITS

from convnext_jax import sharding
from convnext_jax.classification.erasing import RandomErasing, apply_boxes, first_that_fits
from convnext_jax.errors import InputError

COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce", "reduce-scatter")

erase = jax.jit(RandomErasing.erase, static_argnums=0)


class Script:
    """Stands in for timm's `random` module and gives out what a test wants drawn."""

    def __init__(self, uniform=(), randint=(), choices=()):
        self.queues = {"uniform": list(uniform), "randint": list(randint), "random": list(choices)}

    def random(self):
        return self.queues["random"].pop(0)

    def uniform(self, low, high):
        return self.queues["uniform"].pop(0)

    def randint(self, low, high):
        assert low == 0 <= high
        return self.queues["randint"].pop(0) if self.queues["randint"] else 0


class Recorder:
    """Stands in for an image and notes which boxes timm writes to."""

    def __init__(self):
        self.boxes = []

    def __setitem__(self, index, value):
        _, rows, columns = index
        size = (rows.stop - rows.start, columns.stop - columns.start)
        self.boxes.append((rows.start, columns.start, *size))


def timms_boxes(erasing, height, width, monkeypatch, images, seed=0):
    """What timm's sampler draws for so many images: a list of boxes for each."""
    from oracles import timm

    module = timm.data.random_erasing
    monkeypatch.setattr(module, "_get_pixels", lambda *args, **options: None)
    monkeypatch.setattr(module, "random", random.Random(seed))
    theirs = timm.data.random_erasing.RandomErasing(
        erasing.probability, *erasing.area, *erasing.aspect, min_count=erasing.count, device="cpu"
    )
    recorders = [Recorder() for _ in range(images)]
    for recorder in recorders:
        theirs._erase(recorder, 3, height, width, None)
    return [recorder.boxes for recorder in recorders]


@pytest.mark.parametrize(("mode", "count"), [("pixel", 1), ("pixel", 3), ("rand", 3), ("const", 3)])
def test_given_the_same_draws_images_equal_timms(monkeypatch, mode, count):
    from oracles import timm, torch

    n, height, width = 16, 21, 34
    erasing = RandomErasing(probability=0.6, area=(0.1, 0.9), mode=mode, count=count)
    images = np.random.default_rng(0).normal(size=(n, height, width, 3)).astype(np.float32)
    boxes = np.asarray(erasing.draw_boxes(jax.random.key(1), n, height, width))
    fill = np.asarray(erasing.draw_fill(jax.random.key(2), n, height, width, 3))
    erased = boxes[..., 2].all(axis=1)
    assert 0 < erased.sum() < n
    assert not boxes[~erased].any()
    found = apply_boxes(jnp.asarray(images), jnp.asarray(boxes), jnp.asarray(fill))

    module = timm.data.random_erasing
    taken = boxes[erased].reshape(-1, 4).astype(float)
    areas = taken[:, 2] * taken[:, 3] / (height * width) * count
    log_aspects = np.log(taken[:, 2] / taken[:, 3])
    script = Script(
        uniform=np.stack([areas, log_aspects], axis=1).ravel(),
        randint=boxes[erased][..., :2].ravel(),
        choices=np.where(erased, 0.0, 1.0),
    )
    patches = [
        torch.tensor(fill[i, j, top : top + h, left : left + w]).permute(2, 0, 1)
        for i in np.flatnonzero(erased)
        for j, (top, left, h, w) in enumerate(boxes[i])
    ]
    monkeypatch.setattr(module, "random", script)
    monkeypatch.setattr(module, "_get_pixels", lambda *args, **options: patches.pop(0))
    theirs = module.RandomErasing(0.6, mode=mode, min_count=count, device="cpu")
    expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert not patches
    np.testing.assert_array_equal(found, expected.numpy())


def test_given_the_same_tries_sizes_equal_timms(monkeypatch):
    from oracles import timm

    n, tries, height, width = 400, 10, 40, 90
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.3, 1.0, (n, tries)).astype(np.float32)
    log_aspects = rng.uniform(-1, 4, (n, tries)).astype(np.float32)
    log_aspects[:4] = 4  # Boxes higher than the image in every try.
    areas = shares * np.float32(height * width)
    found = first_that_fits(jnp.asarray(areas), jnp.asarray(log_aspects), height, width)

    module = timm.data.random_erasing
    monkeypatch.setattr(module, "_get_pixels", lambda *args, **options: None)
    theirs = module.RandomErasing(1.0, device="cpu")
    expected = []
    for row in range(n):
        pairs = np.stack([shares[row], log_aspects[row]], axis=1)
        script = Script(uniform=pairs.astype(float).ravel(), choices=[0.0])
        monkeypatch.setattr(module, "random", script)
        recorder = Recorder()
        theirs._erase(recorder, 3, height, width, None)
        expected.append(recorder.boxes[0][2:] if recorder.boxes else (0, 0))
    # timm computes in float64. Sides this close to the middle of two integers round either way
    # in float32, whose error on sides below 10^3 is below 10^-3.
    exact = shares.astype(float) * height * width
    sides = np.sqrt(exact * np.exp([log_aspects, -log_aspects]))
    clear = (np.abs(sides % 1 - 0.5) > 1e-3).all(axis=(0, 2))
    assert clear.mean() > 0.9
    assert (np.asarray(found[0]) == 0).sum() >= 4
    np.testing.assert_array_equal(np.stack(found, axis=1)[clear], np.array(expected)[clear])


@pytest.mark.parametrize(
    ("erasing", "height", "width"),
    [
        (RandomErasing(), 224, 224),
        (RandomErasing(probability=0.7, area=(0.2, 1.0), aspect=(0.2, 4.0)), 60, 100),
        (RandomErasing(probability=0.5, count=2), 32, 32),
    ],
)
def test_boxes_are_distributed_as_timms(monkeypatch, erasing, height, width):
    n = 20_000
    ours = np.asarray(erasing.draw_boxes(jax.random.key(1), n, height, width))
    theirs = timms_boxes(erasing, height, width, monkeypatch, images=n)
    lost = ours[..., 2] > 0
    assert (ours[~lost] == 0).all()
    numbers = np.array([len(boxes) for boxes in theirs])
    table = [np.bincount(x, minlength=erasing.count + 1) for x in (lost.sum(axis=1), numbers)]
    table = np.array(table)[:, np.sum(table, axis=0) > 0]
    assert scipy.stats.chi2_contingency(table).pvalue > 0.01

    first = ours[lost]
    second = np.concatenate([boxes for boxes in theirs if boxes])
    assert (first[:, 2:] < [height, width]).all()
    assert (first[:, :2] + first[:, 2:] <= [height, width]).all()
    properties = {
        "area": lambda box: box[:, 2] * box[:, 3],
        "aspect": lambda box: box[:, 2] / box[:, 3],
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "distance to the bottom": lambda box: height - box[:, 0] - box[:, 2],
        "distance to the right": lambda box: width - box[:, 1] - box[:, 3],
    }
    for name, function in properties.items():
        assert scipy.stats.ks_2samp(function(first), function(second)).pvalue > 0.01, name


def test_fill_is_what_the_mode_says():
    images = jnp.full((200, 16, 16, 3), 9.0)
    found = {}
    for mode in ("pixel", "rand"):
        erasing = RandomErasing(probability=1.0, mode=mode)
        result = np.asarray(erase(erasing, images, jax.random.key(0)))
        changed = (result != 9).all(axis=-1)
        assert (result[~changed] == 9).all()
        assert changed.any(axis=(1, 2)).all()
        found[mode] = [image[inside] for image, inside in zip(result, changed, strict=True)]
    pixels = np.concatenate(found["pixel"])
    assert scipy.stats.kstest(pixels.ravel(), "norm").pvalue > 0.01
    correlation = np.corrcoef(pixels.T) - np.eye(3)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(pixels))  # Five standard errors.
    colours = np.array([inside[0] for inside in found["rand"]])
    assert all((inside == inside[0]).all() for inside in found["rand"])
    assert scipy.stats.kstest(colours.ravel(), "norm").pvalue > 0.01
    zeros = RandomErasing(mode="const").draw_fill(jax.random.key(0), 2, 4, 5, 3)
    assert zeros.shape == (2, 1, 4, 5, 3) and not zeros.any()


def test_probability_zero_changes_nothing_and_the_key_decides():
    images = jnp.full((200, 16, 16, 3), 9.0)
    same = erase(RandomErasing(probability=0.0), images, jax.random.key(0))
    np.testing.assert_array_equal(same, images)
    erasing = RandomErasing(probability=1.0)
    first = np.asarray(erase(erasing, images, jax.random.key(0)))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, erase(erasing, images, jax.random.key(0)))
    other = np.asarray(erase(erasing, images, jax.random.key(1)))
    assert (first != other).any(axis=(1, 2, 3)).all()


def test_eight_devices_erase_as_one_without_communication():
    mesh = sharding.create_mesh(fsdp=2)
    erasing = RandomErasing(probability=0.5, count=2)
    images = np.random.default_rng(0).normal(size=(32, 12, 17, 3)).astype(np.float32)
    key = jax.random.key(3)
    placed = jax.device_put(images, sharding.batch_sharding(mesh))
    shared = jax.device_put(key, sharding.replicated(mesh))
    program = erase.lower(erasing, placed, shared).compile(SAME_BITS)
    found = program(placed, shared)
    assert found.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 4)
    alone = erase.lower(erasing, jnp.asarray(images), key).compile(SAME_BITS)
    np.testing.assert_array_equal(found, alone(jnp.asarray(images), key))
    text = program.as_text()
    for collective in COLLECTIVES:
        assert collective not in text
    # No device draws the noise of all.
    assert "f32[4,12,17,3]" in text
    assert "[32,12,17,3]" not in text and "[32,1,12,17,3]" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 1.5}, r"`probability` \(=1.5\) must lie in \[0, 1\]"),
        ({"probability": float("nan")}, r"`probability` \(=nan\)"),
        ({"area": (0.5, 0.1)}, r"`area` \(=\(0.5, 0.1\)\) must be an ascending pair"),
        ({"area": (0.5, 1.1)}, r"`area` .* within \[0, 1\]"),
        ({"aspect": (0.0, 1.0)}, r"`aspect` \(=\(0.0, 1.0\)\) must be an ascending pair above 0"),
        ({"mode": "pixels"}, r"`mode` \(='pixels'\) must be one of pixel, rand, const"),
        ({"count": 0}, r"`count` \(=0\) must be at least 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        RandomErasing(**options)
