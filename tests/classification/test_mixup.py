"""Mixup and CutMix against timm's, given the same draws and in distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from convnext_jax import sharding
from convnext_jax.classification.mixup import Draws, Mixup, apply, cutmix_boxes
from convnext_jax.errors import InputError

CLASSES = 7
GROUPS = 16  # The same in many tests: compiling the sampler takes a second for each number.
COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce", "reduce-scatter")


def batch(examples, height=6, width=10, smoothing=0.1, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(examples, height, width, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, examples)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), smoothing)
    return jnp.asarray(images), targets, labels


def corners(box):
    top, left, height, width = (int(side) for side in box)
    return top, top + height, left, left + width


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [2, 8])
def test_given_the_same_draws_images_and_targets_equal_timms(monkeypatch, smoothing, size):
    from oracles import timm, torch

    groups = GROUPS
    mixup = Mixup(probability=0.8)
    images, targets, labels = batch(groups * size, smoothing=smoothing)
    draws = mixup.draw(jax.random.key(2), groups, 6, 10)
    kinds = np.where(draws.use_cutmix, 2, np.asarray(draws.lam) < 1)
    assert set(kinds) == {0, 1, 2}
    found_images, found_targets = apply(images, targets, draws)

    theirs = timm.data.mixup.Mixup(
        0.8, 1.0, mode="batch", label_smoothing=smoothing, num_classes=CLASSES
    )
    for group, (lam, box, use_cutmix) in enumerate(zip(*draws, strict=True)):
        rows = slice(group * size, (group + 1) * size)
        # timm corrects this lambda itself: a wrong one must not reach the targets.
        drawn = 0.123 if use_cutmix else float(lam)
        monkeypatch.setattr(theirs, "_params_per_batch", lambda x=drawn, y=use_cutmix: (x, bool(y)))
        monkeypatch.setattr(timm.data.mixup, "rand_bbox", lambda *a, x=box, **o: corners(x))
        images_in = torch.tensor(np.asarray(images[rows])).permute(0, 3, 1, 2).contiguous()
        expected, expected_targets = theirs(images_in, torch.tensor(labels[rows]))
        expected = expected.permute(0, 2, 3, 1).numpy()
        # A product or a sum may round once more or less: 2 ulp of the largest value.
        np.testing.assert_allclose(found_images[rows], expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(
            found_targets[rows], expected_targets.numpy(), rtol=0, atol=2.4e-7
        )
        if kinds[group] != 1:  # What is copied is exact.
            np.testing.assert_array_equal(found_images[rows], expected)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (33, 80), (1, 2)])
def test_given_the_same_draws_boxes_equal_timms(monkeypatch, height, width):
    from oracles import timm

    rng = np.random.default_rng(0)
    lam = rng.beta(1, 1, 500).astype(np.float32)
    lam[:3] = 0, 1, 0.75
    rows, columns = rng.integers(0, height, 500), rng.integers(0, width, 500)
    found = cutmix_boxes(*(jnp.asarray(x) for x in (lam, rows, columns)), height, width)
    for index, box in enumerate(np.asarray(found)):
        centre = [rows[index], columns[index]]
        monkeypatch.setattr(np.random, "randint", lambda *a, x=centre, **o: x.pop(0))
        expected = timm.data.mixup.rand_bbox((3, height, width), float(lam[index]))
        # Sides are cut to integers, of numbers that float32 may put on the other side of one;
        # none of these 500 is that close.
        assert corners(box) == tuple(expected)


@pytest.mark.parametrize(
    ("options", "height", "width"),
    [
        ({}, 224, 224),
        ({"probability": 0.7, "switch_probability": 0.3, "cutmix_alpha": 0.4}, 32, 48),
        ({"cutmix_alpha": 0.0, "mixup_alpha": 0.2, "probability": 0.6}, 32, 32),
        ({"mixup_alpha": 0.0, "probability": 0.6}, 32, 32),
    ],
)
def test_draws_are_distributed_as_timms(options, height, width):
    from oracles import timm

    n = 20_000
    mixup = Mixup(**options)
    draws = mixup.draw(jax.random.key(1), n, height, width)
    assert [x.dtype for x in draws] == [jnp.float32, jnp.int32, jnp.bool_]
    lam, boxes, use_cutmix = (np.asarray(x) for x in draws)
    assert ((lam >= 0) & (lam <= 1)).all()

    np.random.seed(0)
    theirs = timm.data.mixup.Mixup(
        mixup.mixup_alpha,
        mixup.cutmix_alpha,
        prob=mixup.probability,
        switch_prob=mixup.switch_probability,
    )
    kinds, lams, corner_rows = [], [[], []], []
    for _ in range(n):
        value, cutmix = theirs._params_per_batch()
        if cutmix:
            box, value = timm.data.mixup.cutmix_bbox_and_lam((3, height, width), value)
            corner_rows.append(box)
        value = np.float32(value)  # As in timm's product with the images; it may round to 1.
        kinds.append(2 if cutmix else int(value < 1))
        if kinds[-1]:
            lams[cutmix].append(value)
    ours = np.where(use_cutmix, 2, lam < 1).astype(int)
    table = np.array([np.bincount(x, minlength=3) for x in (ours, kinds)])
    present = table.sum(axis=0) > 0
    assert tuple(present[1:]) == (mixup.mixup_alpha > 0, mixup.cutmix_alpha > 0)
    assert scipy.stats.chi2_contingency(table[:, present]).pvalue > 0.01

    assert not boxes[~use_cutmix].any()
    pairs = {}
    if present[1]:
        pairs["mixup lambda"] = lam[ours == 1], lams[0]
    if present[2]:
        top, bottom, left, right = np.array(corner_rows).T
        mine = boxes[use_cutmix]
        area = mine[:, 2] * mine[:, 3]
        np.testing.assert_allclose(lam[use_cutmix], 1 - area / (height * width), atol=1e-7)
        # Both are one of few values; rounding takes float32's error off them.
        pairs["cutmix lambda"] = np.round(lam[use_cutmix], 6), np.round(lams[1], 6)
        pairs["area"] = area, (bottom - top) * (right - left)
        pairs["top"] = mine[:, 0], top
        pairs["left"] = mine[:, 1], left
        pairs["bottom"] = mine[:, 0] + mine[:, 2], bottom
        pairs["right"] = mine[:, 1] + mine[:, 3], right
    for name, (first, second) in pairs.items():
        assert scipy.stats.ks_2samp(first, second).pvalue > 0.01, name


def test_groups_mix_within_themselves_and_draw_for_themselves():
    images, targets, _ = batch(8 * GROUPS)
    mixup = Mixup(group=8, cutmix_alpha=0.0)
    _, found = mixup.mix(images, targets, jax.random.key(0))
    lam = mixup.draw(jax.random.key(0), GROUPS, 6, 10).lam
    assert len(set(lam.tolist())) == GROUPS
    for group in range(GROUPS):
        own = np.asarray(targets[8 * group : 8 * group + 8])
        expected = own * lam[group] + own[::-1] * (1 - lam[group])
        np.testing.assert_allclose(found[8 * group : 8 * group + 8], expected, atol=2e-7)  # 2 ulp


def test_a_batch_smaller_than_the_group_is_one_group(monkeypatch):
    images, targets, _ = batch(4)

    def draw(self, key, groups, height, width):
        assert (groups, height, width) == (1, 6, 10)
        return Draws(jnp.array([0.25]), jnp.zeros((1, 4), jnp.int32), jnp.array([False]))

    monkeypatch.setattr(Mixup, "draw", draw)
    found = Mixup(group=128).mix(images, targets, jax.random.key(4))
    for x, y in zip(found, (images, targets), strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, 0.25 * y + 0.75 * y[::-1], atol=1e-6)  # Fused or not.


@pytest.mark.parametrize("options", [{"mixup_alpha": 0, "cutmix_alpha": 0}, {"probability": 0}])
def test_switched_off_it_changes_nothing(options):
    images, targets, _ = batch(8)
    found = Mixup(**options).mix(images, targets, jax.random.key(0))
    np.testing.assert_array_equal(found[0], images)
    np.testing.assert_array_equal(found[1], targets)
    draws = Mixup(**options).draw(jax.random.key(0), 4, 6, 10)
    assert (draws.lam == 1).all() and not draws.use_cutmix.any()


def test_the_key_decides():
    images, targets, _ = batch(2 * GROUPS)
    mix = Mixup(group=2).mix
    first, again, other = (mix(images, targets, jax.random.key(seed)) for seed in (0, 0, 1))
    for x, y, z in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(x, y)
        assert (np.asarray(x) != z).any()


def on_eight_devices(images, targets, key):
    mesh = sharding.create_mesh(fsdp=2)
    batch = jax.device_put((images, targets), sharding.batch_sharding(mesh))
    return *batch, jax.device_put(key, sharding.replicated(mesh))


def check_equal(found, expected):
    for x, y in zip(found, expected, strict=True):
        # A compiler may fuse a product with a sum, which spares one rounding: 1 ulp of the
        # products, of which none is above 4.
        np.testing.assert_allclose(x, y, rtol=0, atol=4.8e-7)


def test_whole_groups_on_every_device_mix_without_communication():
    mixup = Mixup(group=8, probability=0.9)
    images, targets, _ = batch(8 * GROUPS)
    key = jax.random.key(3)
    arguments = on_eight_devices(images, targets, key)
    program = jax.jit(mixup.mix).lower(*arguments).compile()
    found = program(*arguments)
    assert found[0].sharding.is_equivalent_to(arguments[0].sharding, 4)
    check_equal(found, mixup.mix(images, targets, key))
    text = program.as_text()
    for collective in COLLECTIVES:
        assert collective not in text
    assert f"[{8 * GROUPS},6,10" not in text  # No device holds the whole batch.


@pytest.mark.parametrize(
    ("examples", "group"), [(64, 16), pytest.param(24, 128, marks=pytest.mark.slow)]
)
def test_eight_devices_with_parts_of_groups_mix_as_one(examples, group):
    mixup = Mixup(group=group, probability=0.9)

    @jax.jit
    def program(images, targets, key):
        draws = mixup.draw(key, -(-examples // group), 6, 10)
        return mixup.mix(images, targets, key), draws

    images, targets, _ = batch(examples)
    expected, expected_draws = program(images, targets, jax.random.key(3))
    found, draws = program(*on_eight_devices(images, targets, jax.random.key(3)))
    for x, y in zip(draws, expected_draws, strict=True):
        np.testing.assert_array_equal(x, y)
    assert (draws.lam < 1).any()
    check_equal(found, expected)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_the_ends_of_lambda(lam):
    images, targets, _ = batch(4)
    draws = Draws(jnp.array([lam]), jnp.zeros((1, 4), jnp.int32), jnp.array([False]))
    found = apply(images, targets, draws)
    for x, y in zip(found, (images, targets), strict=True):
        np.testing.assert_array_equal(x, y if lam else y[::-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup_alpha": -0.1}, r"`mixup_alpha` \(=-0.1\) must be at least 0"),
        ({"cutmix_alpha": float("nan")}, r"`cutmix_alpha` \(=nan\) must be at least 0"),
        ({"probability": 2}, r"`probability` \(=2\) must lie in \[0, 1\]"),
        ({"switch_probability": -1}, r"`switch_probability` \(=-1\) must lie in \[0, 1\]"),
        ({"group": 0}, r"`augment.mix_group` \(=0\) must be positive and even"),
        ({"group": 7}, r"`augment.mix_group` \(=7\) must be positive and even"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Mixup(**options)


def test_bad_batches_are_named():
    images, targets, _ = batch(12)
    with pytest.raises(
        InputError, match=r"batch \(=12 examples\) must be a multiple of `augment.mix_group` \(="
    ):
        Mixup(group=8).mix(images, targets, jax.random.key(0))
    with pytest.raises(InputError, match=r"batch \(=5 examples\) must be even"):
        Mixup().mix(images[:5], targets[:5], jax.random.key(0))
