"""Metrics against scikit-learn, and the counting of examples."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from random_models import stateless

from convnext_jax import sharding
from convnext_jax.classification import task
from convnext_jax.classification.metrics import confusion_counts, masked_sums
from convnext_jax.classification.transforms import EvalTransform, Labelled
from convnext_jax.data.pipeline import Passes
from convnext_jax.data.sources import open_source
from convnext_jax.errors import InputError, RunError
from convnext_jax.models.variants import Preprocessing
from convnext_jax.training.evaluator import Evaluator
from convnext_jax.training.task import Evaluation


def test_sums_equal_scikit_learns():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 12)).astype(np.float32)
    labels = rng.integers(0, 12, 40)
    mask = np.arange(40) < 33
    sums = masked_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask))
    kept, scores = labels[:33], logits[:33].astype(np.float64)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert sums["count"] == 33
    for k in (1, 5):
        expected = sklearn.metrics.top_k_accuracy_score(
            kept, scores, k=k, normalize=False, labels=np.arange(12)
        )
        assert sums[f"top{k}"] == expected
    expected = sklearn.metrics.log_loss(kept, probabilities, normalize=False, labels=np.arange(12))
    assert float(sums["loss"]) == pytest.approx(expected, rel=1e-6)  # a float32 sum of 33 terms


def test_confusion_equals_scikit_learns():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(60, 7)).astype(np.float32), rng.integers(0, 7, 60)
    mask = np.arange(60) < 50
    found = confusion_counts(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask))
    expected = sklearn.metrics.confusion_matrix(
        labels[:50], logits[:50].argmax(axis=1), labels=np.arange(7)
    )
    np.testing.assert_array_equal(found, expected)


def test_filling_rows_count_nothing_whatever_they_hold():
    logits = jnp.array([[1.0, 0.0], [jnp.nan, jnp.inf]])
    sums = masked_sums(logits, jnp.array([0, 1]), jnp.array([1.0, 0.0]))
    assert sums["count"] == sums["top1"] == sums["top5"] == 1
    assert jnp.isfinite(sums["loss"])


def test_equal_logits_are_no_hit_for_every_class():
    sums = masked_sums(jnp.zeros((3, 10)), jnp.array([0, 4, 9]), jnp.ones(3))
    assert (sums["top1"], sums["top5"]) == (1, 2)


class Images:
    """Grey images whose brightness is their label."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        from PIL import Image

        return Image.new("RGB", (2, 2), (index % 7,) * 3), index % 7


class Pixels:
    blank = {"image": np.zeros((2, 2, 3), np.uint8), "label": np.int32(0)}

    def __call__(self, example):
        return {"image": np.asarray(example[0]), "label": np.int32(example[1])}


def build(apply, passes, examples):
    """An evaluator of a model that is fed with pixels in [0, 1]."""
    feeding = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
    sums = functools.partial(task._sums, stateless(apply), feeding, False, {"": None}, False)
    results = functools.partial(task._results, ())
    evaluation = Evaluation(examples, sums, results, task.METRIC)
    return Evaluator(evaluation, passes, mesh=sharding.create_mesh())


def evaluator(length, batch, claimed=None):
    source = Images(length)

    def apply(params, images, key=None):
        # Class 7 is what no image has; the brightness tells the right one.
        brightness = jnp.round(images[:, 0, 0, :1] * 255)
        return -jnp.abs(brightness - jnp.arange(8.0).reshape(1, 8)) + params["offset"]

    passes = Passes(source, Pixels(), global_batch=batch)
    passes.num_examples = length if claimed is None else claimed
    return build(apply, passes, Pixels())


@pytest.mark.parametrize("length, batch", [(50, 8), (48, 16), (5, 64)])
def test_every_example_counts_once(length, batch):
    right = {"offset": jnp.zeros((1, 8))}
    wrong = {"offset": jnp.zeros((1, 8)).at[0, 7].set(100)}
    results = evaluator(length, batch)({"params": (right, {}), "ema": (wrong, {})})
    assert results["params"]["num_examples"] == results["ema"]["num_examples"] == length
    assert results["params"]["top1"] == 1
    assert results["ema"]["top1"] == 0
    expected = -jax.nn.log_softmax(
        -jnp.abs(jnp.arange(8.0).reshape(1, 8) - jnp.arange(7.0).reshape(7, 1))
    )
    labels = np.arange(length) % 7
    expected = np.asarray(expected)[labels, labels].mean()
    assert results["params"]["loss"] == pytest.approx(expected, rel=1e-6)  # float32 sums


def test_a_wrong_count_is_an_error():
    with pytest.raises(InputError, match="saw 50 examples, but the split has 51"):
        evaluator(50, 8, claimed=51)({"params": ({"offset": jnp.zeros(())}, {})})


def test_an_evaluation_waits_for_no_workers(tmp_path):
    """The pause of training is what the evaluation computes: its images are there, its workers run.

    Before, 360 digits took two workers 3.6 s, and an evaluation of nothing at all 2.1 s.
    """
    source = open_source("digits", "test", tmp_path)
    examples = Labelled(EvalTransform(32, 1.0))
    passes = Passes(source, examples, global_batch=64, workers=2, threads=2)

    def apply(params, images, key=None):
        return params["offset"] + images.mean(axis=(1, 2))[:, :1]

    tested = build(apply, passes, examples)
    tested.start()
    params = {"params": ({"offset": jnp.zeros((1, 10))}, {})}
    first = tested(params)  # compiles
    for _ in range(2):
        time.sleep(1.0)  # training goes on
        began = time.monotonic()
        assert tested(params) == first
        assert time.monotonic() - began < 1.0
    tested.close()


class Holed(Images):
    """One in ten cannot be read."""

    def __getitem__(self, index):
        if index % 10 == 7:
            raise InputError(f"image {index} is broken")
        return super().__getitem__(index)


def test_what_cannot_be_read_is_left_out_and_counted():
    def apply(params, images, key=None):
        brightness = jnp.round(images[:, 0, 0, :1] * 255)
        return -jnp.abs(brightness - jnp.arange(8.0).reshape(1, 8)) + params

    def holed(**options):
        passes = Passes(Holed(50), Pixels(), global_batch=16, **options)
        return build(apply, passes, Pixels())

    tested = holed(skip_bad=True)
    for _ in range(2):
        result = tested({"params": (jnp.zeros((1, 8)), {})})["params"]
        # The mean is over those that were read: all of them right.
        assert (result["num_examples"], result["num_skipped"], result["top1"]) == (45, 5, 1)
    assert tested.skipped == {i: f"image {i} is broken" for i in (7, 17, 27, 37, 47)}
    tested.close()
    with pytest.raises(InputError, match="image 7 is broken; `data.on_error=skip` goes on"):
        holed()({"params": (jnp.zeros((1, 8)), {})})
    with pytest.raises(RunError, match=r"3 examples .* `data.max_skipped` \(=2\)"):
        holed(skip_bad=True, max_skipped=2)({"params": (jnp.zeros((1, 8)), {})})


def test_what_is_found_in_each_example_is_recorded_once_in_any_order():
    """Records of padded batches in an order of one's own: every example's, and nothing else's."""
    source = Images(21)
    order = [*range(0, 21, 2), -1, -1, *range(1, 21, 2), -1]
    passes = Passes(source, Pixels(), global_batch=8, order=order)
    scale = jnp.float32(2)

    def record(rows, found):
        assert rows["image"].shape == (8, 2, 2, 3)
        pairs = zip(rows["label"], found["twice"], rows["mask"], strict=True)
        return [f"{label}:{float(value):g}" for label, value, mask in pairs if mask]

    evaluation = Evaluation(
        Pixels(),
        lambda params, batch_stats, batch: {"count": batch["mask"].sum()},
        lambda totals: {"records": totals["records"]},
        task.METRIC,
        found=lambda params, _, batch: {"twice": params * batch["image"][:, 0, 0, 0]},
        record=record,
    )
    tested = Evaluator(evaluation, passes, mesh=sharding.create_mesh())
    for _ in range(2):
        results = tested({"a": (scale, {}), "b": (2 * scale, {})})
        expected = [index % 7 for index in order if index >= 0]
        assert results["a"]["records"] == [f"{n}:{2 * n}" for n in expected]
        assert results["b"]["records"] == [f"{n}:{4 * n}" for n in expected]
        assert results["a"]["num_examples"] == 21
    tested.close()
