"""Both detectors beside a plain PyTorch statement of mmdetection's, with the same weights.

The oracle is in float64, and nothing is drawn at random: all candidates take part.
"""

import copy
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from detection import torch_detector
from oracles import torch

from convnext_jax import tree
from convnext_jax.models.spec import ModelSpec

# Of the canvas, and of the images on it in turn: landscape, portrait, as large as can be. Each time
# the second of two images is somewhat smaller and padded to the first one's size.
CANVAS = (160, 192)
SIZES = {"landscape": (128, 160), "portrait": (160, 128), "filling": CANVAS}
SMALLER = (18, 11)
OBJECTS = 5
KINDS = ("mask_rcnn", "cascade_mask_rcnn")
# float32 through some thirty layers, of which the heads' results are differences of larger numbers.
TOLERANCE = 1e-4


def overrides(s):
    """Of the model's class, for the oracle's settings, with all candidates sampled."""
    return {
        "depths": s.depths,
        "dims": s.dims,
        "kernel_size": s.kernel,
        "fpn_channels": s.channels,
        "head_features": s.features,
        # Half of them may be positive: more than there are anchors of each kind.
        "rpn_samples": 2 * sum(len(a) for a in torch_detector.anchors(CANVAS)),
        "rpn_before_train": s.before,
        "rpn_before_test": s.before,
        "rpn_after_train": s.after,
        "rpn_after_test": s.after,
        "roi_samples": s.after + OBJECTS,
        "roi_positive_fraction": 1.0,
        "detections": s.detections,
        "score_threshold": s.score_threshold,
        "nms_threshold": s.nms_threshold,
    }


class Pair:
    """The oracle, ours as functions of its weights, and a scene of two images."""

    def __init__(self, kind):
        self.settings = torch_detector.Settings(kind.startswith("cascade"))
        self.theirs = torch_detector.Detector(self.settings, seed=1)
        self.spec = ModelSpec(f"{kind}_convnext_atto", 5, overrides(self.settings))
        self.params, self.stats = self.values(self.theirs.state_dict())
        self.apply = self.spec.function_with_batch_stats()
        self.detect = jax.jit(lambda *a, **b: self.apply(*a, None, **b)[0])
        self.step = jax.jit(jax.value_and_grad(self._loss, has_aux=True))

    def values(self, state):
        """A state dict of theirs as our trees; every leaf is filled, every tensor used."""
        params, stats = torch_detector.renamed(state, self.settings.channels)
        shapes = self.spec.abstract_params(), self.spec.abstract_batch_stats()
        for ours, theirs in zip(shapes, (params, stats), strict=True):
            ours = tree.flatten_with_names(ours)
            assert {n: x.shape for n, x in ours.items()} == {n: x.shape for n, x in theirs.items()}
        return tuple(
            tree.map_with_names(lambda name, _, values=values: jnp.asarray(values[name]), ours)
            for ours, values in zip(shapes, (params, stats), strict=True)
        )

    def _loss(self, params, stats, images, key, **batch):
        losses, stats = self.apply(params, stats, images, key, **batch)
        return sum(losses.values()), (losses, stats)

    def scene(self, size, seed=0):
        """Two images, and objects near what the oracle proposes, so that some match."""
        rng = np.random.default_rng(seed)
        images = rng.standard_normal((2, *size, 3), dtype=np.float32)
        sizes = [size, (size[0] - SMALLER[0], size[1] - SMALLER[1])]
        images[1, sizes[1][0] :] = images[1, :, sizes[1][1] :] = 0
        boxes, labels, masks = [], [], []
        with torch.no_grad():
            outputs = self.theirs.rpn_head(self.theirs.pyramid(to_torch(images)))
        for i, count in enumerate((OBJECTS - 1, 2)):
            found = self.theirs.proposals(outputs, i, size, sizes[i]).numpy()
            found = np.tile(found, (10, 1))
            moved = found + rng.uniform(-3, 3, found.shape)
            moved = np.clip(moved, 0, [*sizes[i][::-1]] * 2).astype(np.float32)
            large = (moved[:, 2:] - moved[:, :2]).min(1) > 16
            moved = moved[large & self.is_clear(moved, size, sizes[i])]
            boxes.append(moved[rng.choice(len(moved), count, replace=False)])
            labels.append(rng.integers(0, 5, count))
            masks.append(np.stack([ellipse(box, size) for box in boxes[-1]]))
        return Scene(images, sizes, boxes, labels, masks)

    @functools.cache  # noqa: B019  (there are two objects, which live as long as the tests)
    def calm_scene(self, size):
        """One in whose losses rounding decides about no sign of a ReLU's input, and no mask.

        A single ReLU, of a million, moves the gradients of others by up to 3e-2.
        """
        theirs = copy.deepcopy(self.theirs).train()
        for seed in range(100):
            scene = self.scene(size, seed)
            torch_detector.margins.clear()
            with torch.no_grad():
                theirs.losses(to_torch(scene.images), *scene.targets())
            if min(torch_detector.margins) > 2e-6 and min(theirs.positives) > 2:
                return scene
        raise AssertionError("no scene is calm")

    def is_clear(self, boxes, padded, size):
        """Whether one anchor overlaps a box most; of those that hold all of it rounding decides."""
        places = torch.cat(torch_detector.anchors(padded))
        if self.settings.cascade:
            places = places[torch_detector.within(places, size)]
        best = torch_detector.ious(torch.tensor(boxes).double(), places).topk(2).values
        return (best[:, 0] - best[:, 1] > 1e-4).numpy()


class Scene(NamedTuple):
    """Images [2, H, W, 3], the sizes they had before they were padded, and lists of objects."""

    images: np.ndarray
    sizes: list
    boxes: list
    labels: list
    masks: list

    def targets(self):
        """All but the images, as the oracle takes it."""
        # Bitmaps have zeros up to the borders of the canvas.
        height, width = self.images.shape[1:3]
        canvas = CANVAS[::-1] if height > width else CANVAS
        around = ((0, 0), (0, canvas[0] - height), (0, canvas[1] - width))
        return (
            self.sizes,
            [torch.tensor(b).double() for b in self.boxes],
            [torch.tensor(x) for x in self.labels],
            [torch.tensor(np.pad(m, around)) for m in self.masks],
        )

    def only(self, counts):
        """The same images with fewer objects."""
        few = [[x[:n] for x, n in zip(xs, counts, strict=True)] for xs in self[2:]]
        return self._replace(boxes=few[0], labels=few[1], masks=few[2])


def ellipse(box, size):
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    (x1, y1, x2, y2) = box
    away = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2
    return (away <= 1).astype(np.uint8)


def to_torch(images):
    return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).double()


def lay(scene):
    """A scene as a batch: on its side if that is portrait, in the upper left of the canvas."""
    n, height, width, _ = scene.images.shape
    portrait = height > width
    images = np.zeros((n, *CANVAS, 3), np.float32)
    lying = scene.images.swapaxes(1, 2) if portrait else scene.images
    images[:, : lying.shape[1], : lying.shape[2]] = lying
    batch = {
        "sizes": np.array(scene.sizes, np.int32),
        "portrait": np.full(n, portrait, np.int32),
        "boxes": np.zeros((n, OBJECTS, 4), np.float32),
        "labels": np.full((n, OBJECTS), -1, np.int32),
    }
    bitmaps = np.zeros((n, OBJECTS, *CANVAS), np.uint8)
    for i in range(n):
        # An empty place in front: objects are not always the first of their array.
        mine = slice(OBJECTS - len(scene.boxes[i]), OBJECTS)
        batch["boxes"][i, mine], batch["labels"][i, mine] = scene.boxes[i], scene.labels[i]
        found = scene.masks[i].swapaxes(1, 2) if portrait else scene.masks[i]
        bitmaps[i, mine, : found.shape[1], : found.shape[2]] = found
    batch["masks"] = np.packbits(bitmaps, axis=-1)
    return jnp.asarray(images), {name: jnp.asarray(x) for name, x in batch.items()}


def of_images(batch):
    return {name: batch[name] for name in ("sizes", "portrait")}


@functools.cache
def pair(kind):
    return Pair(kind)


# Of each kind; Cascade, of three stages, takes a minute or more to compile.
both_kinds = pytest.mark.parametrize(
    "kind", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)]
)


def agree(found, wanted):
    """Largest difference, relative to the largest number of what is wanted."""
    wanted = np.asarray(wanted)
    return float(np.abs(np.asarray(found) - wanted).max(initial=0)) / np.abs(wanted).max(initial=1)


def check_detections(found, wanted):
    for i, (boxes, scores, labels, masks) in enumerate(wanted):
        count = len(boxes)
        assert count > 5
        assert (np.asarray(found.labels[i, count:]) == -1).all()
        assert not np.asarray(found.scores[i, count:]).any()
        np.testing.assert_array_equal(found.labels[i, :count], labels)
        np.testing.assert_allclose(found.scores[i, :count], scores, rtol=TOLERANCE)
        # Of the image's side.
        assert agree(found.boxes[i, :count], boxes) < TOLERANCE
        np.testing.assert_allclose(found.masks[i, :count], masks, rtol=0, atol=TOLERANCE)


@both_kinds
@pytest.mark.parametrize("lie", SIZES)
def test_detections_are_mmdetections(kind, lie):
    both = pair(kind)
    scene = both.scene(SIZES[lie])
    images, batch = lay(scene)
    found = both.detect(both.params, both.stats, images, **of_images(batch))
    both.theirs.eval()
    check_detections(found, both.theirs.detect(to_torch(scene.images), scene.sizes))


def check_step(both, scene, key=0):
    """Losses, gradients and statistics of one step; the oracle keeps its statistics."""
    images, batch = lay(scene)
    (_, (losses, stats)), gradients = both.step(
        both.params, both.stats, images, jax.random.key(key), **batch
    )
    before = {name: x.clone() for name, x in both.theirs.state_dict().items()}
    both.theirs.train()
    both.theirs.zero_grad()
    expected = both.theirs.losses(to_torch(scene.images), *scene.targets())
    sum(expected.values()).backward()
    _, seen = torch_detector.renamed(both.theirs.state_dict(), both.settings.channels)
    # Without objects PyTorch gives the mask head none.
    parameters = list(both.theirs.named_parameters())
    named = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters}
    both.theirs.load_state_dict(before)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(expected[name].item(), rel=TOLERANCE), name
    wanted, _ = torch_detector.renamed(named, both.settings.channels)
    largest = max(np.abs(g).max() for g in wanted.values())
    errors = {}
    for name, gradient in tree.flatten_with_names(gradients).items():
        # Of the tensor's largest; of those that cancel, a part of any's.
        scale = max(np.abs(wanted[name]).max(), 1e-3 * largest)
        errors[name] = np.abs(gradient - wanted[name]).max() / scale
    worst = max(errors, key=lambda name: errors[name])
    print(f"gradients: {worst} {errors[worst]:.1e}")
    assert errors[worst] < TOLERANCE, worst
    for name, value in tree.flatten_with_names(stats).items():
        np.testing.assert_allclose(value, seen[name], rtol=TOLERANCE, atol=1e-5, err_msg=name)
    return both.theirs.positives


@both_kinds
@pytest.mark.parametrize("lie", SIZES)
def test_losses_gradients_and_statistics_are_mmdetections(kind, lie):
    both = pair(kind)
    # Not only the objects' own boxes are positive.
    assert min(check_step(both, both.calm_scene(SIZES[lie]))) > 2


@both_kinds
@pytest.mark.parametrize("counts", [(2, 0), (0, 0)])
def test_images_without_objects(kind, counts):
    both = pair(kind)
    check_step(both, both.calm_scene(SIZES["landscape"]).only(counts))


@both_kinds
def test_degenerate_objects_are_none(kind):
    """And with all candidates sampled the key decides about nothing."""
    both = pair(kind)
    images, batch = lay(both.calm_scene(SIZES["landscape"]))
    (_, (wanted, _)), _ = both.step(both.params, both.stats, images, jax.random.key(0), **batch)
    degenerate = batch["boxes"].at[:, 0].set(jnp.array([[30.0, 20, 30, 90], [50, 80, 40, 60]]))
    changed = batch | {"boxes": degenerate, "labels": batch["labels"].at[:, 0].set(2)}
    (_, (losses, _)), gradients = both.step(
        both.params, both.stats, images, jax.random.key(1), **changed
    )
    for name, loss in losses.items():
        # Sums in another order.
        assert float(loss) == pytest.approx(float(wanted[name]), rel=1e-5), name
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


@pytest.mark.slow  # minutes of the oracle's loops
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps(kind):
    """AdamW beside PyTorch's, over two scenes in turn, upright and on their side."""
    both = pair(kind)
    theirs = copy.deepcopy(both.theirs)
    rate, decay, steps = 1e-4, 0.05, 20
    scenes = [both.calm_scene(SIZES[lie]) for lie in list(SIZES)[:2]]
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=rate, weight_decay=decay)
    ours = optax.adamw(rate, weight_decay=decay)
    params, stats = both.params, both.stats
    state = ours.init(params)
    theirs.train()
    found, wanted = [], []
    for number in range(steps):
        scene = scenes[number % 2]
        images, batch = lay(scene)
        key = jax.random.key(number)
        (loss, (_, stats)), gradients = both.step(params, stats, images, key, **batch)
        updates, state = ours.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        optimizer.zero_grad()
        expected = sum(theirs.losses(to_torch(scene.images), *scene.targets()).values())
        expected.backward()
        optimizer.step()
        found.append(float(loss))
        wanted.append(expected.item())
    apart = np.abs(np.array(found) / wanted - 1)
    print(f"losses {wanted[0]:.3f} to {wanted[-1]:.3f}, apart by {apart.max():.1e}")
    assert wanted[-1] < 0.9 * wanted[1]  # it learns something
    # AdamW's first steps are of one size whatever the gradient's: those that rounding decides go
    # another way, and regions at a threshold change sides.
    assert apart[:5].max() < 1e-4 and apart.max() < 1e-2


@pytest.mark.slow  # two more programs
def test_stochastic_depth_and_recomputing():
    """The key decides which blocks are dropped; blocks computed twice have the same gradients."""
    both = pair("mask_rcnn")
    images, batch = lay(both.scene(SIZES["landscape"]))
    results = []
    for remat in (False, True):
        changed = dict(both.spec.overrides) | {"drop_path": 0.6, "remat": remat}
        apply = ModelSpec(both.spec.name, 5, changed).function_with_batch_stats()

        def loss(params, key, apply=apply):
            return sum(apply(params, {}, images, key, **batch)[0].values())

        step = jax.jit(jax.value_and_grad(loss))
        results.append([step(both.params, jax.random.key(seed)) for seed in (0, 1, 2)])
    values = {float(value) for value, _ in results[0]}
    assert len(values) > 1
    for one, other in zip(*results, strict=True):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            # The same sums, compiled another way.
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(a).max())


@pytest.mark.slow  # a program for eight devices
def test_eight_devices_as_one():
    """One image on each, four times the same two: means over all are those of the two."""
    both = pair("mask_rcnn")
    images, batch = lay(both.scene(SIZES["landscape"]))
    key = jax.random.key(0)
    (_, (wanted, _)), wanted_gradients = both.step(both.params, both.stats, images, key, **batch)
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    images, batch = jax.device_put(
        jax.tree.map(lambda x: np.concatenate([x] * 4), (images, batch)), rows
    )
    params = jax.device_put(both.params, jax.NamedSharding(mesh, jax.P()))
    (_, (losses, _)), gradients = both.step(params, both.stats, images, key, **batch)
    for name, loss in losses.items():
        # float32 sums in another order.
        assert float(loss) == pytest.approx(float(wanted[name]), rel=1e-5), name
    for found, expected in zip(*map(jax.tree.leaves, (gradients, wanted_gradients)), strict=True):
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * largest)
