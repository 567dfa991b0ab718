"""What detectors are made of, their sizes and costs, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import torch
from scipy import stats
from torch.nn import functional

from convnext_jax import create_model, list_models, tree
from convnext_jax.detection import frame
from convnext_jax.detection.fpn import FPN
from convnext_jax.detection.heads import MaskHead
from convnext_jax.detection.layers import Conv, Deconv, he_normal
from convnext_jax.detection.loss import binary_cross_entropy, cross_entropy, smooth_l1
from convnext_jax.detection.regions import Regions, find_objects, sample_regions
from convnext_jax.detection.results import Selection, select
from convnext_jax.errors import InputError
from convnext_jax.models.batch_norm import BatchNorm
from convnext_jax.models.flops import count_macs
from convnext_jax.models.registry import backbone_name
from convnext_jax.models.spec import ModelSpec, params_of

RNG = np.random.default_rng(0)
SMALL = {
    "depths": (1, 1, 1, 1),
    "dims": (4, 8, 12, 16),
    "fpn_channels": 8,
    "head_features": 16,
    "rpn_before_test": 20,
    "rpn_before_train": 20,
    "rpn_after_test": 16,
    "rpn_after_train": 16,
    "roi_samples": 16,
    "detections": 10,
}

# Parameters; multiply-adds at 1280x800 in billions, as the paper has them and as computed from its
# layers, with 1000 regions in each box head and 100 in each mask head.
PAPER = {
    "mask_rcnn_convnext_tiny": (48_095_376, 262, 261.9),
    "mask_rcnn_convnext_small": (69_729_936, None, 348.1),
    "cascade_mask_rcnn_convnext_tiny": (85_930_578, 741, 740.2),
    "cascade_mask_rcnn_convnext_small": (107_565_138, 827, 826.4),
    "cascade_mask_rcnn_convnext_base": (145_800_242, 964, 963.5),
    "cascade_mask_rcnn_convnext_large": (254_710_770, 1354, 1353.4),
    "cascade_mask_rcnn_convnext_xlarge": (406_875_058, 1898, 1897.4),
}


def shape(*sides, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sides, dtype)


def pure(module):
    """A module as a function of its own parameters: (state, function of state and method)."""
    graph, state = nnx.split(module)
    return state, lambda state: nnx.merge(graph, state)


@functools.cache
def macs_of_heads(kind):
    """Of the proposal network, the box heads and the mask heads, which no backbone changes."""
    state, merged = pure(ModelSpec(f"{kind}_convnext_tiny", 80).abstract())
    sides = [(200, 320), (100, 160), (50, 80), (25, 40), (13, 20)]
    levels = [shape(1, *side, 256) for side in sides]
    sizes = [shape(1, 2, dtype=jnp.int32)] * 5
    proposals = count_macs(lambda s, x, z: merged(s).rpn_head(x, z), state, levels, sizes)

    def heads(state, for_boxes, for_masks):
        roi = merged(state).roi_head
        lists = [x if isinstance(x, nnx.List) else [x] for x in (roi.bbox_head, roi.mask_head)]
        return [h(for_boxes) for h in lists[0]], [h(for_masks) for h in lists[1]]

    regions = shape(1000, 7, 7, 256), shape(100, 14, 14, 256)
    return proposals + count_macs(heads, state, *regions)


@pytest.mark.parametrize("name", PAPER)
def test_parameters_and_multiply_adds_are_the_papers(name):
    parameters, published, computed = PAPER[name]
    spec = ModelSpec(name, 80)
    assert sum(x.size for x in jax.tree.leaves(spec.abstract_params())) == parameters
    state, merged = pure(spec.abstract())

    def pyramid(state, images, size):
        model = merged(state)
        return model.neck(*model.backbone.features_within(images, size))

    macs = count_macs(pyramid, state, shape(1, 800, 1280, 3), shape(1, 2, dtype=jnp.int32))
    giga = (macs + macs_of_heads(name.partition("_convnext")[0])) / 1e9
    assert giga == pytest.approx(computed, abs=0.1)  # of parts that are rounded
    if published is not None:
        # Theirs counts norms and activations, too.
        assert giga == pytest.approx(published, abs=1)


def test_every_backbone_of_upernet_has_both_detectors():
    backbones = [name.removeprefix("upernet_") for name in list_models("upernet_*")]
    for kind in ("mask_rcnn", "cascade_mask_rcnn"):
        assert list_models(f"{kind}_*") == sorted(f"{kind}_{name}" for name in backbones)
        assert {backbone_name(f"{kind}_{name}") for name in backbones} == {*backbones}
    assert len(list_models(task="detection")) == 2 * len(backbones)


@pytest.mark.parametrize(
    "name",
    [
        "mask_rcnn_convnext_nano_ols",
        # half a minute to compile
        pytest.param("cascade_mask_rcnn_convnextv2_atto", marks=pytest.mark.slow),
    ],
)
def test_shapes_and_dtypes(name):
    """Of an overlapping stem and of V2, in bfloat16."""
    apply = ModelSpec(name, 7, SMALL | {"dtype": "bfloat16"}).function_with_batch_stats()
    spec = ModelSpec(name, 7, SMALL)
    arrays = {"sizes": shape(2, 2, dtype=jnp.int32), "portrait": shape(2, dtype=jnp.int32)}
    inputs = spec.abstract_params(), spec.abstract_batch_stats(), shape(2, 64, 96, 3)
    found, _ = jax.eval_shape(lambda *a, **b: apply(*a, None, **b), *inputs, **arrays)
    assert [(x.shape, x.dtype.name) for x in found] == [
        ((2, 10, 4), "float32"),
        ((2, 10), "float32"),
        ((2, 10), "int32"),
        ((2, 10, 28, 28), "float32"),
    ]
    arrays |= {
        "boxes": shape(2, 3, 4),
        "labels": shape(2, 3, dtype=jnp.int32),
        "masks": shape(2, 3, 64, 12, dtype=jnp.uint8),
    }
    train = functools.partial(jax.eval_shape, lambda *a, **b: apply(*a, jax.random.key(0), **b))
    losses, after = train(*inputs, **arrays)
    assert {(x.shape, x.dtype.name) for x in losses.values()} == {((), "float32")}
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, inputs[1])
    names = {"loss_cls", "loss_bbox", "loss_mask"}
    if name.startswith("cascade"):
        names = {f"s{i}_{n}" for i in range(3) for n in names}
    assert losses.keys() == names | {"loss_rpn_cls", "loss_rpn_bbox"}
    for key, wrong in (
        ("sizes", shape(2)),
        ("boxes", shape(2, 4, 4)),
        ("masks", shape(2, 3, 64, 96)),
    ):
        with pytest.raises(InputError, match=rf"`{key}` \(=shape .*must have shape \("):
            train(*inputs, **arrays | {key: wrong})
    with pytest.raises(InputError, match=r"`images` .* must have sides that are multiples of 32"):
        train(*inputs[:2], shape(2, 64, 100, 3), **arrays)
    with pytest.raises(InputError, match=r"`labels` \(=None\) must be given in training"):
        train(*inputs, **arrays | {"labels": None})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, r"`num_classes` \(=0\) must be positive"),
        ({"dims": (8, 8), "depths": (1, 1)}, r"`dims` \(=\(8, 8\)\) must be of four stages"),
        ({"fpn_channels": 0}, r"`fpn_channels` \(=0\) must be positive"),
        ({"rpn_samples": 1}, r"`rpn_samples` \(=1\) must be 2 or more"),
        ({"roi_positive_fraction": 0.01}, r"`roi_positive_fraction` \(=0.01\) must be a fraction"),
        ({"roi_positive_fraction": 1.5}, r"`roi_positive_fraction` \(=1.5\) must be a fraction"),
        ({"score_threshold": 1.0}, r"`score_threshold` \(=1.0\) must lie in \[0, 1\)"),
        ({"nms_threshold": -0.5}, r"`nms_threshold` \(=-0.5\) must lie in \[0, 1\]"),
        ({"fpn_chanels": 8}, r"`fpn_chanels` \(=8\) must be .*did you mean fpn_channels"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        nnx.eval_shape(lambda: create_model("mask_rcnn_convnext_atto", **SMALL | arguments))


def test_initial_values():
    leaves = tree.flatten_with_names(
        params_of(create_model("cascade_mask_rcnn_convnext_atto", 9, **SMALL))
    )
    leaves |= tree.flatten_with_names(
        {"plain": params_of(create_model("mask_rcnn_convnext_atto", 9, **SMALL))}
    )

    def spread(name):
        """Standard deviation of a normal distribution, or the limits of an even one."""
        *_, inputs, outputs = leaves[name].shape
        if "rpn_head" in name or "fc_cls" in name:
            return 0.01, "norm"
        if "fc_reg" in name:
            return 0.001, "norm"
        taps = np.prod(leaves[name].shape[:-2])
        if "neck" in name or "shared_fcs" in name:
            return np.sqrt(6 / (taps * (inputs + outputs))), "even"
        return np.sqrt(2 / (taps * outputs)), "norm"  # in and out of the deconvolution are equal

    for name, leaf in leaves.items():
        kind = name.rpartition("/")[2]
        if "backbone" in name and kind != "gamma":
            continue
        if kind != "kernel":
            np.testing.assert_array_equal(leaf, float(kind in ("scale", "gamma")), err_msg=name)
            continue
        scale, family = spread(name)
        found = np.ravel(leaf) / scale
        test = ("norm",) if family == "norm" else ("uniform", (-1, 2))
        # Of true samples one in a million is below.
        assert stats.kstest(found, *test).pvalue > 1e-6, name


def to_torch(x):
    return torch.tensor(np.asarray(x)).movedim(-1, 1)


def test_statistics_of_valid_examples():
    x = RNG.normal(2, 3, (6, 3, 3, 4)).astype(np.float32)
    valid = np.array([True, False, True, True, False, True])
    weights = jnp.asarray(RNG.normal(size=x.shape), jnp.float32)
    norm, theirs = BatchNorm(4, jnp.float32), torch.nn.BatchNorm2d(4)
    graph, params, running = nnx.split(norm, nnx.Param, nnx.BatchStat)
    values = nnx.to_pure_dict(params), nnx.to_pure_dict(running)

    def apply(x, valid):
        norm = nnx.merge(graph, *values)
        y = norm(x, True, valid)
        kept = jnp.where(valid[:, None, None, None], y * weights, 0.0)
        return kept.sum(), (y, norm.mean[...], norm.var[...])

    step = jax.jit(jax.grad(apply, has_aux=True))
    gradient, (y, mean, var) = step(x, valid)
    their_x = to_torch(x[valid]).requires_grad_()
    wanted = theirs(their_x)
    (wanted * to_torch(weights[valid])).sum().backward()
    # float32 sums of 36 numbers.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(to_torch(y[valid]), wanted.detach())
    close(to_torch(gradient[valid]), their_x.grad)
    assert not np.asarray(gradient[~valid]).any()
    close(mean, theirs.running_mean)
    close(var, theirs.running_var)
    # Without any, what is known stays known.
    gradient, (y, mean, var) = step(x, np.zeros(6, bool))
    assert not np.asarray(gradient).any() and np.isfinite(y).all()
    assert not np.asarray(mean).any() and (np.asarray(var) == 1).all()


def test_deconvolution_is_torchs():
    ours, theirs = Deconv(6, jnp.float32, nnx.Rngs(0)), torch.nn.ConvTranspose2d(6, 6, 2, 2)
    ours.bias[...] = jnp.arange(6.0)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.asarray(ours.kernel[...]).transpose(2, 3, 0, 1)))
        theirs.bias.copy_(torch.arange(6.0))
    x = RNG.normal(size=(2, 3, 5, 6)).astype(np.float32)
    found = to_torch(ours(jnp.asarray(x)))
    # float32 sums of 6 products.
    np.testing.assert_allclose(found, theirs(to_torch(x)).detach(), rtol=1e-5, atol=1e-5)


def test_a_mask_of_one_class_is_that_of_all():
    head = MaskHead(8, 5, jnp.float32, nnx.Rngs(0))
    head.conv_logits.bias[...] = jnp.arange(5.0)
    x = jnp.asarray(RNG.normal(size=(3, 14, 14, 8)), jnp.float32)
    labels = jnp.array([4, 0, -1])
    every, one = jax.jit(lambda x: (head(x), head(x, labels)))(x)
    assert every.shape == (3, 28, 28, 5) and one.shape == (3, 28, 28)
    for i, label in enumerate((4, 0, 0)):
        # The same products, summed in another order.
        np.testing.assert_allclose(one[i], every[i, ..., label], rtol=1e-5, atol=1e-5)


def test_losses_are_torchs():
    logits = jnp.asarray(RNG.normal(0, 30, (50, 7)), jnp.float32)
    targets = RNG.integers(0, 2, logits.shape)
    labels = RNG.integers(0, 7, len(logits))
    theirs = torch.tensor(np.asarray(logits))
    pairs = [
        (
            binary_cross_entropy(logits, jnp.asarray(targets)),
            functional.binary_cross_entropy_with_logits(
                theirs, torch.tensor(targets).float(), reduction="none"
            ),
        ),
        (
            cross_entropy(logits, jnp.asarray(labels)),
            functional.cross_entropy(theirs, torch.tensor(labels), reduction="none"),
        ),
        (smooth_l1(logits, 0.0), functional.l1_loss(theirs, 0 * theirs, reduction="none")),
    ]
    for beta in (1 / 9, 20.0):
        wanted = functional.smooth_l1_loss(theirs, 0 * theirs, beta=beta, reduction="none")
        pairs.append((smooth_l1(logits, beta), wanted))
    for found, wanted in pairs:
        # A few roundings of float32, of logits of up to 100.
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_drawing_regions():
    """Bounded numbers of each kind, objects' own boxes among them, nothing twice."""
    objects = find_objects(
        jnp.array([[[0, 0, 0, 0], [10, 10, 50, 50], [60, 20, 100, 90], [5, 5, 5, 40]]] * 2),
        jnp.array([[-1, 3, 1, 2], [-1, -1, -1, -1]]),
    )
    # The last one is degenerate, and no object.
    np.testing.assert_array_equal(objects.valid, [[0, 1, 1, 0], [0, 0, 0, 0]])
    near = RNG.uniform(-2, 2, (20, 4)) + [10, 10, 50, 50]
    far = RNG.uniform(0, 8, (40, 4)) + [110, 110, 120, 120]
    found = np.float32(np.concatenate([near, far]))
    regions = Regions(jnp.asarray(np.stack([found] * 2)), jnp.arange(60)[None].repeat(2, 0) != 59)
    draw = jax.jit(
        lambda key, samples: sample_regions(
            key, regions, objects, 9, threshold=0.5, low_quality=True, samples=samples, positives=8
        ),
        static_argnums=1,
    )
    given = []
    for seed in range(8):
        sampled = draw(jax.random.key(seed), 24)
        assert sampled.valid.all()
        assert sampled.positive.sum(1).tolist() == [8, 0]
        assert sampled.positive[0, :8].all()
        assert set(sampled.labels[0, :8].tolist()) <= {1, 3}
        np.testing.assert_array_equal(sampled.labels[0, 8:], 9)
        np.testing.assert_array_equal(sampled.labels[1], 9)
        np.testing.assert_array_equal(
            sampled.targets[0, :8], objects.boxes[0][sampled.objects[0, :8]]
        )
        assert len(np.unique(sampled.boxes[0], axis=0)) == 24
        given.append(sampled.given)
        own = (sampled.boxes[:, :, None] == objects.boxes[:, None]).all(-1) & objects.valid[:, None]
        np.testing.assert_array_equal(sampled.given, own.any(-1))
    # 8 of 22 positives, of which 2 are the objects' own: 0.7 of them on average.
    assert 0 < np.sum(given) < 16
    sampled = draw(jax.random.key(0), 100)
    np.testing.assert_array_equal(sampled.valid.sum(1), [39 + 8, 59])
    assert not np.asarray(sampled.boxes)[~np.asarray(sampled.valid)].any()


def test_nothing_is_detected():
    """No score exceeds the threshold, or no region is valid; and there are few pairs at all."""
    selection = Selection(detections=20, candidates=9, score_threshold=0.3, nms_threshold=0.5)
    boxes = jnp.array([[[0, 0, 10, 10], [20, 20, 30, 30]]], jnp.float32)
    logits = jnp.array([[[0, 0, 0, 0], [9, 0, 0, 0]]], jnp.float32)

    def found(valid):
        return select(
            logits,
            jnp.zeros((1, 2, 3, 4)),
            Regions(boxes, jnp.array([valid])),
            jnp.array([[25, 40]]),
            (1.0, 1.0, 1.0, 1.0),
            selection,
        )

    places, scores, labels = found([True, True])
    np.testing.assert_array_equal(labels[0], [0] + [-1] * 19)
    # Clipped to the image, 25 pixels high.
    np.testing.assert_array_equal(places[0, 0], [20, 20, 30, 25])
    assert scores[0, 0] > 0.99 and not scores[0, 1:].any() and not places[0, 1:].any()
    places, scores, labels = found([True, False])
    assert not places.any() and not scores.any() and (labels == -1).all()


def test_filters_lie_down():
    neck = FPN((4, 8), 6, jnp.float32, nnx.Rngs(0))
    turned, same = (params_of(frame.laid(neck, jnp.asarray(flag))) for flag in (True, False))
    jax.tree.map(np.testing.assert_array_equal, params_of(neck), same)
    for name, value in tree.flatten_with_names(params_of(neck)).items():
        wanted = value.swapaxes(0, 1) if "fpn_convs" in name and value.ndim == 4 else value
        np.testing.assert_array_equal(tree.flatten_with_names(turned)[name], wanted)
    conv = Conv(3, 5, 3, jnp.float32, nnx.Rngs(0), he_normal(9))
    x = jnp.asarray(RNG.normal(size=(1, 6, 9, 3)), jnp.float32)
    lying = frame.laid(conv, jnp.asarray(True))(x.swapaxes(1, 2))
    # The same products, summed in another order.
    np.testing.assert_allclose(lying.swapaxes(1, 2), conv(x), rtol=1e-5, atol=1e-5)
    box = jnp.array([[1.0, 2, 3, 4]])
    np.testing.assert_array_equal(frame.on_canvas(box, jnp.asarray(True)), [[2, 1, 4, 3]])
    sizes = frame.own_sizes(jnp.array([[800, 600], [33, 32]]), jnp.asarray(True))
    np.testing.assert_array_equal(sizes, [[608, 800], [32, 64]])
