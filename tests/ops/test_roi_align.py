"""RoIAlign beside a plain statement of its rules, torchvision's results, and torchvision itself."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch, torchvision
from torchvision.extension import _has_ops
from torchvision.ops.roi_align import _roi_align as written_in_python

from convnext_jax.errors import InputError
from convnext_jax.ops.roi_align import box_levels, mask_targets, roi_align

GOLDEN = pathlib.Path(__file__).parent / "torchvision_roi_align.npz"
SHAPES, STRIDES = ((20, 36), (10, 18)), (4, 8)


def aligned(image: np.ndarray, box: np.ndarray, stride: float, out: int) -> np.ndarray:
    """mmcv's rules for one box, one sample after the other, in float64.

    Args:
      image: [H, W, C].
      box: x1, y1, x2, y2 in pixels.
      stride: pixels per cell.
      out: rows and columns of bins.
    """
    height, width, channels = image.shape
    x1, y1, x2, y2 = box.astype(np.float64) / stride - 0.5
    bins = (y2 - y1) / out, (x2 - x1) / out
    counts = [max(int(np.ceil(b)), 0) for b in bins]
    found = np.zeros((out, out, channels))
    for row in range(out):
        for column in range(out):
            for i in range(counts[0]):
                for j in range(counts[1]):
                    y = y1 + row * bins[0] + (i + 0.5) * bins[0] / counts[0]
                    x = x1 + column * bins[1] + (j + 0.5) * bins[1] / counts[1]
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    top, left = int(y), int(x)
                    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    y, x = y - top, x - left
                    found[row, column] += (
                        (1 - y) * (1 - x) * image[top, left]
                        + (1 - y) * x * image[top, right]
                        + y * (1 - x) * image[below, left]
                        + y * x * image[below, right]
                    )
    return found / max(counts[0] * counts[1], 1)


def boxes_of_all_kinds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes [count, 4] for a canvas of 80 x 144 pixels, the odd ones first."""
    odd = [
        [0, 0, 144, 80],  # the canvas
        [-40, -40, 200, 120],  # beyond it on all sides
        [-90, 10, -20, 60],  # outside
        [150, 90, 300, 300],
        [20, 30, 20, 30],  # no size
        [20, 30, 60, 30],  # no height
        [60, 40, 20, 70],  # ends before it begins
        [3, 41, 143, 42.5],  # long and thin
        [71, -2, 72, 81],
        [50, 20, 50.01, 20.01],  # far less than a cell
        [10, 10, 10 + 84, 10 + 56],  # whole cells in every bin: 21 / 7, 14 / 7
        [2, 2, 2 + 28, 2 + 28],
        [-4, -4, 24, 24],  # a sample's place just at -1
        [-2, -2, 0, 0],
        [143, 79, 144, 80],
        [-2000, 8, 2000, 16],  # 143 samples in a bin
    ]
    starts = rng.uniform((-30, -30), (150, 90), (count - len(odd), 2))
    sides = np.exp(rng.uniform(np.log(1), np.log(140), starts.shape))
    return np.concatenate([odd, np.concatenate([starts, starts + sides], 1)]).astype(np.float32)


@pytest.fixture(scope="module")
def case():
    """Two images of several sizes, boxes of all kinds, and gradients, of two levels."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, *shape, 3)).astype(np.float32) for shape in SHAPES]
    # Not one row more or less: a sample would lie at the border's edge, where rounding decides.
    sizes = [np.asarray([shape, (shape[0] - 4, shape[1] // 2)]) for shape in SHAPES]
    boxes = np.stack([boxes_of_all_kinds(rng, 60) for _ in range(2)])
    # The odd ones on the first level, and on the second level for the second image.
    levels = rng.integers(0, 2, boxes.shape[:2])
    levels[0, :16], levels[1, :16] = 0, 1
    dy = rng.normal(size=(2, 60, 7, 7, 3)).astype(np.float32)
    return maps, sizes, boxes, levels, dy


@pytest.fixture(scope="module")
def found(case):
    """Features, and gradients of the maps."""
    maps, sizes, boxes, levels, dy = case

    @jax.jit
    def both(maps, dy):
        features, pullback = jax.vjp(
            lambda maps: roi_align(maps, sizes, jnp.asarray(boxes), levels, STRIDES, 7), maps
        )
        return features, pullback(dy)[0]

    return jax.tree.map(np.asarray, both(maps, dy))


def test_features_are_what_the_rules_say(case, found):
    maps, sizes, boxes, levels, _ = case
    for n, level in np.ndindex(2, 2):
        height, width = sizes[level][n]
        image = maps[level][n, :height, :width]
        for r in np.flatnonzero(levels[n] == level):
            wanted = aligned(image, boxes[n, r], STRIDES[level], 7)
            # Places of up to 500 cells have 3e-5 of rounding, and values slopes of up to 5.
            np.testing.assert_allclose(found[0][n, r], wanted, atol=1.5e-4, err_msg=boxes[n, r])


def test_gradients_are_the_transposed_features(case, found):
    """<dy, R x> = <R^T dy, x>, for each example and level and a few x of one channel."""
    maps, sizes, boxes, levels, dy = case
    for n, level in np.ndindex(2, 2):
        height, width = sizes[level][n]
        gradient = found[1][level][n]
        assert not gradient[height:].any() and not gradient[:, width:].any()
        chosen = np.flatnonzero(levels[n] == level)
        for seed in range(3):
            x = np.random.default_rng(seed).normal(size=(height, width, 1))
            features = [aligned(x, boxes[n, r], STRIDES[level], 7) for r in chosen]
            wanted = np.sum(dy[n, chosen] * np.stack(features), (0, 1, 2))
            given = np.sum(gradient[:height, :width] * x, (0, 1))
            # Sums of 3000 products of order 1, each with a rounding of 1e-5 from its place.
            np.testing.assert_allclose(given, wanted, atol=1e-3)


def golden_case() -> tuple[np.ndarray, np.ndarray]:
    """A map [18, 33, 2] and boxes [199, 4] in pixels, stride 4, that GOLDEN has the features of."""
    rng = np.random.default_rng(1)
    x, boxes = rng.normal(size=(18, 33, 2)).astype(np.float32), boxes_of_all_kinds(rng, 200)
    return x, boxes[boxes[:, 2] >= boxes[:, 0]]  # torchvision does not allow others


def torchvisions(x: np.ndarray, boxes: np.ndarray, stride: float, out: int, function=None):
    """torchvision's features of boxes of one map [H, W, C], and the gradient of their squares."""
    image = torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))[None].requires_grad_()
    rois = torch.cat([torch.zeros(len(boxes), 1), torch.from_numpy(boxes)], 1)
    if function is None:
        features = torchvision.ops.roi_align(image, rois, out, 1 / stride, 0, aligned=True)
    else:
        features = function(image, rois, 1 / stride, out, out, 0, True)
    (features**2).sum().backward()
    assert image.grad is not None
    gradient = image.grad[0].permute(1, 2, 0)
    return features.detach().permute(0, 2, 3, 1).numpy(), gradient.numpy()


@pytest.fixture(scope="module")
def one_map():
    @jax.jit
    def features_and_gradient(x, boxes):
        def features(x):
            sizes = [jnp.asarray([x.shape[:2]])]
            levels = jnp.zeros((1, len(boxes)), jnp.int32)
            return roi_align([x[None]], sizes, boxes[None], levels, (4,), 7)[0]

        return features(x), jax.grad(lambda x: (features(x) ** 2).sum())(x)

    return features_and_gradient


def test_it_is_torchvisions(one_map):
    """What the compiled operation of torchvision 0.28 gave on a CPU is in a file."""
    x, boxes = golden_case()
    features, gradient = one_map(x, boxes)
    with np.load(GOLDEN) as golden:
        np.testing.assert_allclose(features, golden["features"], atol=1.5e-4)  # as above
        # Sums over 200 boxes of terms with that error.
        np.testing.assert_allclose(gradient, golden["gradient"], rtol=1e-4, atol=2e-3)
    if _has_ops():
        theirs = torchvisions(x, boxes, 4, 7)
        np.testing.assert_allclose(features, theirs[0], atol=1.5e-4)
        np.testing.assert_allclose(gradient, theirs[1], rtol=1e-4, atol=2e-3)


def test_it_is_torchvisions_python_version_where_that_knows_the_rules(one_map):
    """That version does not know that samples far outside count as 0."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(18, 33, 2)).astype(np.float32)
    starts = rng.uniform((-2, -2), (128, 70), (200, 2))
    boxes = np.concatenate([starts, starts + rng.uniform(0, 1, (200, 2)) ** 2 * (132, 72)], 1)
    boxes = np.minimum(boxes, (134, 74, 134, 74)).astype(np.float32)
    eager = written_in_python.__wrapped__  # compiled, it would take minutes
    features, gradient = torchvisions(x, boxes, 4, 7, eager)
    ours = one_map(x, boxes)
    # Places below 36 cells have 4e-6 of rounding.
    np.testing.assert_allclose(ours[0], features, atol=4e-5)
    np.testing.assert_allclose(ours[1], gradient, rtol=1e-4, atol=1e-3)


def test_maps_of_half_precision_are_summed_in_float32(case):
    maps, sizes, boxes, levels, _ = case
    halves = [jnp.asarray(x, jnp.bfloat16) for x in maps]
    function = jax.jit(lambda maps: roi_align(maps, sizes, boxes, levels, STRIDES, 7))
    given, wide = function(halves), function([x.astype(jnp.float32) for x in halves])
    assert given.dtype == jnp.bfloat16
    np.testing.assert_array_equal(given, wide.astype(jnp.bfloat16))


def test_what_is_beyond_the_border_is_not_read_and_no_level_is_zeros(case, found):
    maps, sizes, boxes, levels, _ = case
    noise = [
        np.where(
            (np.arange(x.shape[1])[:, None] < s[:, 0, None, None])
            & (np.arange(x.shape[2]) < s[:, 1, None, None]),
            0,
            7,
        )[..., None]
        for x, s in zip(maps, sizes, strict=True)
    ]
    others = [x + y for x, y in zip(maps, noise, strict=True)]
    none = np.where(np.arange(60) % 5 == 0, -1, levels)
    features = jax.jit(lambda maps: roi_align(maps, sizes, boxes, none, STRIDES, 7))(others)
    wanted = np.where((np.arange(60) % 5 == 0)[:, None, None, None], 0, found[0])
    # In another program places of up to 36 cells may be rounded another way, by 4e-6 cells, and
    # values have slopes of up to 5.
    np.testing.assert_allclose(features, wanted, atol=2e-5)


def test_images_of_many_devices_stay_where_they_are(case, found):
    """No device is sent another's maps; the number of steps is all they have to agree on."""
    maps, sizes, boxes, levels, dy = case
    automatic = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("data",), automatic, devices=jax.devices()[:2])
    place = jax.NamedSharding(mesh, jax.P("data"))

    def both(maps, sizes, boxes, levels, dy):
        features, pullback = jax.vjp(
            lambda maps: roi_align(maps, sizes, boxes, levels, STRIDES, 7), maps
        )
        return features, pullback(dy)[0]

    arguments = jax.device_put((maps, sizes, boxes, levels, dy), place)
    program = jax.jit(both).lower(*arguments).compile()
    for name in ("all-gather", "collective-permute", "all-to-all"):
        assert name not in program.as_text()
    ours = program(*arguments)
    for given, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(given, wanted, atol=1e-4)  # rounding, as above, of sums


def test_boxes_that_are_not_finite_end(one_map):
    x, boxes = golden_case()
    boxes[3], boxes[7], boxes[9, 2] = np.nan, np.inf, np.inf
    features, _ = one_map(x, boxes)
    assert not np.asarray(features)[[3, 7, 9]].any()


def test_shapes_that_do_not_fit_are_refused():
    x, size = jnp.zeros((1, 8, 8, 1)), jnp.asarray([[8, 8]])
    boxes, levels = jnp.zeros((1, 3, 4)), jnp.zeros((1, 3), jnp.int32)
    with pytest.raises(InputError, match=r"`sizes` \(=2\)"):
        roi_align([x], [size, size], boxes, levels, [4], 7)
    with pytest.raises(InputError, match=r"`levels` \(shape \(1, 2\)\)"):
        roi_align([x], [size], boxes, levels[:, :2], [4], 7)
    for other in (x.astype(jnp.float16), jnp.zeros((1, 4, 4, 3))):
        with pytest.raises(InputError, match=r"`maps` \(of .* must have one dtype and one number"):
            roi_align([x, other], [size, size], boxes, levels, [4, 8], 7)


@pytest.mark.parametrize(("images", "regions"), [(0, 3), (2, 0)])
def test_nothing_to_align(images, regions):
    x, size = jnp.zeros((images, 8, 8, 5)), jnp.full((images, 2), 8)
    boxes, levels = jnp.zeros((images, regions, 4)), jnp.zeros((images, regions), jnp.int32)
    assert roi_align([x], [size], boxes, levels, [4], 7).shape == (images, regions, 7, 7, 5)
    masks = jnp.zeros((images, 2, 16, 2), jnp.uint8)
    assert mask_targets(masks, boxes, levels, 28).shape == (images, regions, 28, 28)


def test_levels_change_at_112_224_and_448_pixels():
    sides = np.asarray([0, 1, 111.9, 112.1, 223.9, 224.1, 447.8, 448.2, 3000], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, 2 * sides, sides / 2], -1)
    assert box_levels(jnp.asarray(boxes)).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    # mmdet's formula, which has an epsilon, in float64; not where float32 decides.
    sides = np.random.default_rng(0).uniform(0, 1000, (1000, 2))
    scale = np.log2(np.sqrt(sides.prod(1)) / 56 + 1e-6)
    clear = np.abs(scale - np.round(scale)) > 1e-5
    boxes = np.concatenate([np.ones_like(sides), 1 + sides], 1).astype(np.float32)
    levels = np.asarray(box_levels(jnp.asarray(boxes)))
    np.testing.assert_array_equal(levels[clear], np.clip(np.floor(scale), 0, 3)[clear])
    assert box_levels(jnp.asarray([5.0, 5, 2, 2])) == 0  # ends before it begins


def test_mask_targets_are_the_bitmaps_seen_through_boxes():
    """Bitmaps larger than a tile, boxes of all kinds; bins whose mean is almost 0.5 left out."""
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 3, 144, 272), bool)
    y, x = np.mgrid[:144, :272]
    for n, g in np.ndindex(2, 3):
        centre, radii = rng.uniform(0, 1, 2) * (144, 272), rng.uniform(10, 120, 2)
        ellipse = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1
        masks[n, g] = ellipse ^ (rng.uniform(size=ellipse.shape) < 0.1)
    boxes = np.stack([boxes_of_all_kinds(rng, 40) for _ in range(2)]) * np.float32(1.8)
    objects = rng.integers(-1, 3, boxes.shape[:2])
    packed = np.packbits(masks, axis=-1)
    found = np.asarray(jax.jit(mask_targets, static_argnums=3)(packed, boxes, objects, 14))
    positive, close = 0, 0
    for n, r in np.ndindex(*objects.shape):
        if objects[n, r] < 0:
            assert not found[n, r].any()
            continue
        mean = aligned(masks[n, objects[n, r], ..., None], boxes[n, r], 1, 14)[..., 0]
        # Of means of order 1 from weights that were rounded. Exactly 0.5 is frequent, and mostly
        # decided by rounding in every implementation.
        clear = np.abs(mean - 0.5) > 1e-4
        np.testing.assert_array_equal(found[n, r][clear], mean[clear] >= 0.5, err_msg=boxes[n, r])
        positive, close = positive + found[n, r].sum(), close + (~clear).sum()
    assert positive > 1000 and close < 0.01 * found.size


def test_half_a_pixel_is_enough():
    mask = np.zeros((1, 1, 16, 16), bool)
    mask[..., 4:12, 4:12] = True
    # Bins of 2 x 2 pixels: 4 samples in pixels' centres, of which 2 or 1 are in the mask.
    box = jnp.asarray([[[3.0, 4, 11, 12], [3.0, 3, 11, 11]]])
    found = mask_targets(jnp.asarray(np.packbits(mask, axis=-1)), box, jnp.zeros((1, 2), int), 4)
    assert found[0, 0].all()
    assert np.asarray(~found[0, 1]).nonzero()[0].tolist() == [0]  # the corner has a quarter


@pytest.mark.parametrize(("dtype", "precision"), [(jnp.float32, "HIGHEST"), (jnp.bfloat16, "HIGH")])
def test_products_are_as_exact_as_the_maps(dtype, precision):
    """What accelerators are asked for; this platform has one precision of float32."""
    boxes, levels = jnp.ones((1, 3, 4)), jnp.zeros((1, 3), jnp.int32)

    def both_ways(x):
        y, pull_back = jax.vjp(
            lambda x: roi_align([x], [jnp.array([[9, 9]])], boxes, levels, [1], 2), x
        )
        return y, pull_back(y)

    text = jax.jit(both_ways).lower(jnp.zeros((1, 9, 9, 4), dtype)).as_text()
    precisions = re.findall(r"dot_general.*precision = \[(\w+), (\w+)\]", text)
    assert precisions == [(precision, precision)] * 4
