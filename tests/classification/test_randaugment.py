import inspect
import math
import pickle
import random
from unittest import mock

import numpy as np
import pytest
import scipy.stats
import sklearn.datasets
from oracles import timm, torch, torchvision
from PIL import Image, ImageOps

from convnext_jax.classification import randaugment
from convnext_jax.classification.randaugment import Draw, RandAugment, draw_for, parse_policy
from convnext_jax.classification.transforms import TrainTransform
from convnext_jax.errors import InputError

RECIPE = "rand-m9-mstd0.5-inc1"
BICUBIC = Image.Resampling.BICUBIC
FIRST, SECOND = (Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images)
PHOTOGRAPHS = [FIRST, SECOND.transpose(Image.Transpose.ROTATE_90)]  # 640 x 427 and 427 x 640
COUNT = 20_000
# Of equal distributions a test refuses this share; the fixed seeds decide once.
P_VALUE = 0.01


def recipe_transforms():
    """What timm's `create_transform` builds for the recipe, by class."""
    composed = timm.data.create_transform(
        224, is_training=True, auto_augment=RECIPE, interpolation="bicubic", use_prefetcher=True
    )
    return {type(part).__name__: part for part in composed.transforms}


# The settings of the operations, from the transform that timm would train with.
HPARAMS = {
    key: value
    for key, value in recipe_transforms()["RandAugment"].ops[0].hparams.items()
    if key in ("img_mean", "interpolation", "translate_const")
}


def timm_operation(name, magnitude, **hparams):
    return timm.data.auto_augment.AugmentOp(name, 1.0, magnitude, {**HPARAMS, **hparams})


def posterize_without_a_limit(image, bits):
    """Pillow's posterize as it was before 13, which refuses to keep no bits; timm still asks it."""
    return image.point([value >> (8 - bits) << (8 - bits) for value in range(256)] * 3)


def coin(negated):
    """Makes timm's coin, whatever it decides, fall on one side."""
    return mock.patch.object(random, "random", lambda: 0.75 if negated else 0.25)


def recorded(policy, count=COUNT):
    """What timm's policy does in `count` calls: each a list of (operation, argument)."""
    done = []

    def record(name):
        return lambda image, argument=0.0, **_: done[-1].append((name, argument))

    for operation in policy.ops:
        operation.aug_fn = record(operation.name)
    random.seed(0)
    np.random.seed(0)
    for _ in range(count):
        done.append([])
        policy(None)
    return done


def timm_draws(text, **kwargs):
    return recorded(timm.data.auto_augment.rand_augment_transform(text, dict(HPARAMS), **kwargs))


def our_draws(policy, count=COUNT):
    rng = np.random.default_rng(1)
    return [policy.draw(rng) for _ in range(count)]


def same_counts(ours, theirs):
    """Whether the counts of two samples over the same cells can come from one distribution."""
    table = np.array([ours, theirs])
    return scipy.stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue > P_VALUE


def test_the_sets_of_operations_are_those_of_timm():
    assert list(randaugment.INCREASING) == timm.data.auto_augment._RAND_INCREASING_TRANSFORMS
    assert list(randaugment.PLAIN) == timm.data.auto_augment._RAND_TRANSFORMS
    assert set(randaugment.OPERATIONS) == {*randaugment.INCREASING, *randaugment.PLAIN}
    assert len(randaugment.OPERATIONS) == 15 + 6


def test_fill_and_interpolation_are_those_of_timm():
    assert HPARAMS["img_mean"] == randaugment.FILL
    assert HPARAMS["interpolation"] == BICUBIC


# 15 is reached with `mmax` only.
@pytest.mark.parametrize("magnitude", [0, 1, 5, 9, 10, 15])
@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_operations_have_the_pixels_of_timm(name, magnitude, monkeypatch):
    earlier = mock.Mock(wraps=ImageOps, posterize=posterize_without_a_limit)
    monkeypatch.setattr(timm.data.auto_augment, "ImageOps", earlier)
    reference = timm_operation(name, magnitude, magnitude_max=15)
    source = inspect.getsource(reference.level_fn) if reference.level_fn else ""
    signed = "_randomly_negate" in source
    assert randaugment.OPERATIONS[name].signed == signed
    for negated in (False, True) if signed else (False,):
        draw = draw_for(name, magnitude, negated=negated)
        for image in PHOTOGRAPHS:
            with coin(negated):
                expected = reference(image)
            np.testing.assert_array_equal(randaugment.apply(image, [draw]), expected)


def test_geometric_operations_fill_with_the_mean_colour_of_imagenet():
    white = Image.new("RGB", (40, 30), "white")
    for name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):
        image = randaugment.apply(white, [draw_for(name, 10)])
        assert image.size == white.size
        corners = {image.getpixel((x, y)) for x in (0, 39) for y in (0, 29)}
        assert (124, 116, 104) in corners


def test_no_bits_are_a_black_image():
    image = randaugment.apply(FIRST, [draw_for("PosterizeIncreasing", 10)])
    assert image.size == FIRST.size
    assert image.getextrema() == ((0, 0),) * 3


def test_steps_are_applied_in_order():
    # Inverting and adding to dark values do not commute.
    draws = [Draw("Invert", 0.0), Draw("SolarizeAdd", 60)]
    expected = FIRST
    for name in ("Invert", "SolarizeAdd"):
        kwargs = {"add": 60} if name == "SolarizeAdd" else {}
        expected = timm.data.auto_augment.NAME_TO_OP[name](expected, **kwargs)
    assert randaugment.apply(FIRST, draws) == expected
    assert randaugment.apply(FIRST, draws[::-1]) != expected
    assert randaugment.apply(FIRST, []) == FIRST


def test_pairs_of_operations_are_uniform_as_those_of_timm():
    text, names = f"{RECIPE}-p1", randaugment.INCREASING

    def pairs(draws):
        counts = np.zeros((15, 15), int)
        for (first, _), (second, _) in draws:
            counts[names.index(first), names.index(second)] += 1
        return counts

    ours, theirs = pairs(our_draws(parse_policy(text))), pairs(timm_draws(text))
    # 225 cells: each operation uniform, the two independent, drawn with replacement.
    assert scipy.stats.chisquare(ours.ravel()).pvalue > P_VALUE
    assert scipy.stats.chisquare(ours.sum(1)).pvalue > P_VALUE
    assert same_counts(ours.ravel(), theirs.ravel())


def test_arguments_of_the_recipe_are_distributed_as_those_of_timm():
    ours, theirs = our_draws(parse_policy(RECIPE)), timm_draws(RECIPE)
    lengths = [np.bincount([len(draw) for draw in draws]) for draws in (ours, theirs)]
    assert same_counts(*lengths)
    # Two operations, each applied with probability 1/2.
    expected = COUNT * np.array([0.25, 0.5, 0.25])
    assert scipy.stats.chisquare(lengths[0], expected).pvalue > P_VALUE

    def arguments(draws, name):
        return np.array([step[1] for draw in draws for step in draw if step[0] == name])

    for name in randaugment.INCREASING:
        a, b = arguments(ours, name), arguments(theirs, name)
        # Some 1,300 of each; magnitude and sign together.
        assert min(len(a), len(b)) > 1000
        assert scipy.stats.ks_2samp(a, b).pvalue > P_VALUE, name


@pytest.mark.parametrize(
    ("part", "law"),
    [
        ("mstd0.5", scipy.stats.norm(9, 0.5)),
        ("mstd3", scipy.stats.norm(9, 3)),
        ("mstd101", scipy.stats.uniform(0, 9)),
        ("mstd3-mmax12", scipy.stats.norm(9, 3)),
    ],
)
def test_magnitudes_are_distributed_as_those_of_timm(part, law):
    """Rotations give their magnitudes away: 3 degrees each."""
    text = f"rand-m9-{part}-p1"
    fields = {**vars(parse_policy(text)), "operations": ("Rotate",)}
    ours, theirs = (
        np.array([[degrees / 3 for _, degrees in draw] for draw in draws])
        for draws in (our_draws(RandAugment(**fields)), timm_draws(text, transforms=["Rotate"]))
    )
    assert ours.shape == theirs.shape == (COUNT, 2)
    assert scipy.stats.ks_2samp(ours.ravel(), theirs.ravel()).pvalue > P_VALUE
    largest = 12 if "mmax" in part else 10
    clipped = law.rvs(ours.size, random_state=2).clip(0, largest)
    assert scipy.stats.ks_2samp(abs(ours).ravel(), clipped).pvalue > P_VALUE
    assert abs(ours).max() == pytest.approx(min(largest, law.ppf(1)), abs=0.01)
    moved = ours[ours != 0]
    assert scipy.stats.binomtest(int((moved < 0).sum()), len(moved)).pvalue > P_VALUE
    # The two steps on an image have a magnitude and a sign each.
    assert scipy.stats.spearmanr(*abs(ours).T).pvalue > P_VALUE
    assert scipy.stats.spearmanr(*np.sign(ours).T).pvalue > P_VALUE


def test_without_a_deviation_the_magnitude_is_fixed():
    draws = our_draws(RandAugment(7, probability=1.0, operations=("ShearX",)), 100)
    assert {abs(argument) for draw in draws for _, argument in draw} == {0.7 * 0.3}


@pytest.mark.parametrize(("probability", "lengths"), [(0.0, {0}), (1.0, {3})])
def test_probabilities_of_0_and_1_are_exact(probability, lengths):
    draws = our_draws(RandAugment(9, num_ops=3, probability=probability), 1000)
    assert {len(draw) for draw in draws} == lengths


def test_draws_do_not_depend_on_the_image():
    policy = RandAugment(9, operations=randaugment.INCREASING)
    states = set()
    for image in (FIRST, SECOND.resize((31, 47)), Image.new("RGB", (1, 1))):
        rng = np.random.default_rng(3)
        policy(image, rng)
        states.add(rng.random())
    assert len(states) == 1


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", None),
        (None, None),
        ("rand", RandAugment()),
        (RECIPE, RandAugment(9, 2, 0.5, 0.5, 10, randaugment.INCREASING)),
        ("rand-inc1-mstd0.5-m9", RandAugment(9, 2, 0.5, 0.5, 10, randaugment.INCREASING)),
        ("rand-n3-p0.25-m0-inc0", RandAugment(0, 3, 0.25)),
        ("rand-mstd101", RandAugment(magnitude_std=math.inf)),
        ("rand-mstdinf", RandAugment(magnitude_std=math.inf)),
        ("rand-m14-mmax30", RandAugment(14, magnitude_max=30)),
    ],
)
def test_policies_are_read_as_timm_reads_them(text, policy):
    assert parse_policy(text) == policy
    # timm passes over `mstdinf`, which its documentation promises.
    if text and text != "rand-mstdinf":
        reference = timm.data.auto_augment.rand_augment_transform(text, dict(HPARAMS))
        operation = reference.ops[0]
        assert reference.num_layers == policy.num_ops
        assert [op.name for op in reference.ops] == list(policy.operations)
        assert operation.prob == policy.probability
        assert operation.magnitude == policy.magnitude
        assert operation.magnitude_std == policy.magnitude_std
        assert (operation.magnitude_max or 10) == policy.magnitude_max


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("original-m9", "must begin with 'rand', as 'rand-m9-mstd0.5-inc1' does"),
        ("randm9", "must begin with 'rand'"),
        ("rand-m9-std0.5", "not 'std0.5'; the closest is mstd"),
        ("rand-m9-", "must have parts of m, n, p, mstd, mmax, inc and a number, not ''"),
        ("rand-m9-in1", "not 'in1'; the closest is inc"),
        ("rand-m9-tweights", "not 'tweights'"),
        ("rand-m", "must have a whole number in its part 'm'"),
        ("rand-m9.5", "must have a whole number in its part 'm9.5'"),
        ("rand-p0.5x", "must have a number in its part 'p0.5x'"),
        ("rand-m9-m8", "must have the part m once"),
        ("rand-m9-inc2", "must have inc0 or inc1, not inc2"),
        ("rand-m11", "`magnitude` (=11) must be in 0..`magnitude_max` (=10)"),
        ("rand-m9-mmax8", "`magnitude` (=9) must be in 0..`magnitude_max` (=8)"),
        ("rand-m9-mmax0", "`magnitude_max` (=0) must be positive and finite"),
        ("rand-m-1", "must have a whole number in its part 'm'"),
        ("rand-n0", "`num_ops` (=0) must be 1 or more"),
        ("rand-p1.5", "`probability` (=1.5) must be from 0 to 1"),
    ],
)
def test_a_bad_policy_is_an_error(text, words):
    with pytest.raises(InputError) as error:
        TrainTransform(32, auto_augment=text)
    assert str(error.value).startswith(f"`auto_augment` (={text!r}) ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandAugment(operations=("Rotate", "Sheer")), "(='Sheer') must be names of oper"),
        (lambda: RandAugment(operations=("TranslateX",)), "the closest is TranslateXRel"),
        (lambda: RandAugment(operations=()), "`operations` (=()) must name at least one"),
        (lambda: RandAugment(-1), "`magnitude` (=-1) must be"),
        (lambda: RandAugment(math.nan), "`magnitude` (=nan) must be"),
        (lambda: RandAugment(9, magnitude_std=-0.1), "`magnitude_std` (=-0.1) must be"),
    ],
)
def test_a_field_out_of_range_is_an_error(make, words):
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)


@pytest.mark.parametrize("crop", ["random_resized", "padded"])
def test_train_transform_augments_the_cropped_and_flipped_image(crop):
    plain = TrainTransform(48, crop)
    transform = TrainTransform(48, crop, auto_augment=RECIPE)
    changed = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        before = Image.fromarray(plain(FIRST, rng))
        expected = before
        for name, argument in parse_policy(RECIPE).draw(rng):
            # timm's function with our argument.
            reference = timm_operation(name, 9)
            arguments = () if reference.level_fn is None else (argument,)
            expected = reference.aug_fn(expected, *arguments, **reference.kwargs)
        changed += expected != before
        pixels = transform(FIRST, np.random.default_rng(seed))
        assert pixels.dtype == np.uint8
        assert pixels.shape == (48, 48, 3)
        np.testing.assert_array_equal(pixels, expected)
    assert 0 < changed < 20


@pytest.mark.parametrize("options", [{"auto_augment": RECIPE}, {"color_jitter": 0.4}])
def test_train_transform_depends_on_the_generator_alone_and_pickles(options):
    transform = TrainTransform(64, **options)
    copy = pickle.loads(pickle.dumps(transform))
    assert copy == transform
    results = set()
    for seed in range(10):
        pixels = transform(FIRST, np.random.default_rng(seed))
        transform(SECOND, np.random.default_rng())  # leaves nothing behind
        np.testing.assert_array_equal(pixels, transform(FIRST, np.random.default_rng(seed)))
        np.testing.assert_array_equal(pixels, copy(FIRST, np.random.default_rng(seed)))
        results.add(pixels.tobytes())
    assert len(results) == 10


def test_color_jitter_has_the_pixels_of_torchvision():
    jitter = torchvision.transforms.ColorJitter(0.4, 0.4, 0.4)
    order = ["Brightness", "Contrast", "Color", "hue"]
    plain, transform = TrainTransform(48), TrainTransform(48, color_jitter=0.4)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        before = Image.fromarray(plain(FIRST, rng))
        draws = randaugment.draw_color_jitter(rng, 0.4)
        factors = dict(draws)
        given = (
            torch.tensor([order.index(name) for name, _ in draws]),
            *(factors[name] for name in order[:3]),
            None,
        )
        with mock.patch.object(jitter, "get_params", lambda *_, given=given: given):
            expected = jitter(before)
        np.testing.assert_array_equal(transform(FIRST, np.random.default_rng(seed)), expected)


@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_color_jitter_is_distributed_as_that_of_torchvision(strength):
    count = 5000  # torchvision takes 50 us a draw
    jitter = torchvision.transforms.ColorJitter(strength, strength, strength)
    torch.manual_seed(0)
    theirs = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for _ in range(count)
    ]
    rng = np.random.default_rng(2)
    ours = [randaugment.draw_color_jitter(rng, strength) for _ in range(count)]
    names = ["Brightness", "Contrast", "Color"]
    for i, name in enumerate(names):
        a, b = [dict(draws)[name] for draws in ours], [params[1 + i] for params in theirs]
        assert scipy.stats.ks_2samp(a, b).pvalue > P_VALUE
    orders = [[names.index(name) for name, _ in draws] for draws in ours]
    reference = [[i for i in params[0].tolist() if i < 3] for params in theirs]
    weights = [9, 3, 1]
    counts = [np.bincount(np.dot(a, weights), minlength=27) for a in (orders, reference)]
    assert (counts[0] > 0).sum() == 6
    assert same_counts(*counts)


@pytest.mark.parametrize("strength", [-0.1, math.inf, math.nan])
def test_a_color_jitter_out_of_range_is_an_error(strength):
    with pytest.raises(InputError, match=r"^`color_jitter` \(="):
        TrainTransform(32, color_jitter=strength)


def test_color_jitter_beside_a_policy_is_an_error_not_ignored():
    with pytest.raises(InputError, match=r"^`color_jitter` \(=0.4\) must be 0 where"):
        TrainTransform(32, auto_augment=RECIPE, color_jitter=0.4)
    # What timm does: it makes no mention of its own default, 0.4.
    assert "ColorJitter" not in recipe_transforms()
