"""Models from checkpoints of this project and from files of others."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from classification.small import FEEDING, NAMES, SPEC, arrays_equal, compiled, save, small_params
from flax import nnx
from oracles import timm, torch
from random_models import random_images
from torch_weights import randomise

from convnext_jax.convert import loading
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_pretrained
from convnext_jax.tree import flatten_with_names
from convnext_jax.weights.load import load, load_pretrained

# Seeds of the parameters that `trained` saves.
RAW, AVERAGE, LATER_RAW, LATER_AVERAGE = range(4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with two steps, of which the first is the better one."""
    workdir = tmp_path_factory.mktemp("trained")
    save(
        workdir,
        {
            5: (
                {"params": small_params(RAW), "ema": small_params(AVERAGE)},
                {"eval_ema_top1": 0.9, "eval_params_top1": 0.1},
            ),
            10: (
                {"params": small_params(LATER_RAW), "ema": small_params(LATER_AVERAGE)},
                {"eval_ema_top1": 0.8, "eval_params_top1": 0.2},
            ),
        },
    )
    return workdir


@pytest.fixture(scope="module")
def without_average(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("without")
    metrics = {"eval_params_top1": 0.5, "eval_ema_top1": 0.5}  # the latter for small.save
    save(workdir, {5: ({"params": small_params(RAW)}, metrics)}, names=None)
    return workdir


def test_all_that_a_checkpoint_says(trained):
    found = load(trained)
    assert arrays_equal(found.model, small_params(LATER_AVERAGE))
    assert found.spec.name == SPEC.name and found.model.num_classes == 7
    assert found.preprocessing == FEEDING
    assert found.class_names == NAMES and found.licence is None
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(found.model)))


def test_the_model_computes_as_any_other_with_the_overrides_at_work(trained):
    model = load_pretrained(trained, drop_path=0.9)
    images = random_images(2, 32, 32, 3)
    graph, state = nnx.split(model)
    key = jax.random.key(0)
    training = jax.jit(lambda state: nnx.merge(graph, state)(images, key=key))(state)
    inference = compiled(load_pretrained(trained))(images)
    np.testing.assert_array_equal(compiled(model)(images), inference)
    assert np.isfinite(training).all() and np.any(training != inference)


@pytest.mark.parametrize(
    "place, options, seed",
    [
        ("", {}, LATER_AVERAGE),
        ("", {"ema": True}, LATER_AVERAGE),
        ("", {"ema": False}, LATER_RAW),
        ("", {"step": "5"}, AVERAGE),
        ("", {"step": "best"}, AVERAGE),
        ("", {"step": "best", "ema": False}, LATER_RAW),
        ("checkpoints", {"ema": False}, LATER_RAW),
        ("checkpoints/5", {}, AVERAGE),
        ("checkpoints/5", {"ema": False}, RAW),
    ],
)
def test_which_parameters(place, options, seed, trained):
    assert arrays_equal(load_pretrained(trained / place, **options), small_params(seed))
    assert arrays_equal(load_pretrained(str(trained / place), **options), small_params(seed))


def test_a_checkpoint_without_average(without_average):
    for options in ({}, {"ema": False}, {"step": "best"}):
        assert arrays_equal(load_pretrained(without_average, **options), small_params(RAW))
    assert load(without_average).class_names is None
    with pytest.raises(InputError, match="has no `ema`"):
        load(without_average, ema=True)


def parameters(model):
    return flatten_with_names(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("classes", [0, 3, 1000])
def test_another_number_of_classes_replaces_the_head_and_nothing_else(classes, trained):
    found = load(trained, classes)
    ours, saved = parameters(found.model), flatten_with_names(small_params(LATER_AVERAGE))
    heads = {"head/kernel", "head/bias"}
    assert (set(ours) - heads) == (set(saved) - heads)
    assert all(np.array_equal(ours[name], saved[name]) for name in set(saved) - heads)
    assert (heads <= set(ours)) == (classes > 0)
    assert found.class_names is None and found.spec.num_classes == classes
    if classes:
        assert ours["head/kernel"].shape == (16, classes) and not ours["head/bias"].any()
        # The initial distribution: mean 0 and deviation 0.02, here within four standard errors.
        deviations = np.std(ours["head/kernel"]) / 0.02 - 1
        assert abs(deviations) < 4 / np.sqrt(2 * 16 * classes)


def test_the_same_number_of_classes_keeps_head_and_names(trained):
    found = load(trained, 7)
    assert arrays_equal(found.model, small_params(LATER_AVERAGE))
    assert found.class_names == NAMES


def test_the_random_head_follows_rngs_and_head_init_scale(trained):
    one, same, other = (
        parameters(load_pretrained(trained, 3, rngs=nnx.Rngs(seed)))["head/kernel"]
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    small = load_pretrained(trained, 3, rngs=nnx.Rngs(1), head_init_scale=1e-3)
    np.testing.assert_allclose(parameters(small)["head/kernel"], one * 1e-3, rtol=1e-6)


def test_overrides_that_leave_the_parameters_as_they_are(trained):
    model = load_pretrained(trained, dtype="bfloat16", remat=True)
    assert model.dtype == jnp.bfloat16 and model.remat
    assert arrays_equal(model, small_params(LATER_AVERAGE))


def test_other_channels(trained):
    model = load_pretrained(trained, in_channels=1)
    grey = random_images(1, 32, 32, 1)
    expected = compiled(load_pretrained(trained))(jnp.repeat(grey, 3, axis=3))
    # Three products are added before instead of after: float32, logits of order 1.
    np.testing.assert_allclose(compiled(model)(grey), expected, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"depths": (1, 2, 1, 1)}, "do not fit convnext_atto: `stages/1/1/.* is missing"),
        ({"dims": (4, 8, 12, 17)}, "do not fit convnext_atto: .* not .*17"),
        ({"dephts": (1, 1, 1, 1)}, "`dephts`.*did you mean depths"),
        ({"step": "7"}, r"the step \(=7\).*5, 10"),
        ({"num_classes": -1}, r"`num_classes` \(=-1\)"),
    ],
)
def test_what_does_not_fit(options, message, trained):
    with pytest.raises(InputError, match=message):
        load(trained, **options)


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="no complete checkpoint"):
        load(tmp_path)
    with pytest.raises(InputError, match="there is no file or folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"convnext_tiny.fb_in21k.*did you mean.*fb_in22k"):
        load("convnext_tiny.fb_in21k")


def test_a_checkpoint_whose_description_lacks_something(tmp_path):
    save(tmp_path, {1: ({"params": small_params()}, None)}, without=("model", "preprocessing"))
    with pytest.raises(InputError, match=r"checkpoints/1 must have `(model|preprocessing)`$"):
        load(tmp_path)


@pytest.fixture(scope="module")
def pytorch_file(tmp_path_factory):
    """A timm model with random weights, and the file of them."""
    oracle = timm.create_model("test_convnext2.r160_in1k", pretrained=False).eval()
    randomise(oracle, seed=3)
    path = tmp_path_factory.mktemp("torch") / "test_convnext2.r160_in1k.pth"
    torch.save(oracle.state_dict(), path)
    return oracle, path


def test_a_pytorch_file(pytorch_file):
    oracle, path = pytorch_file
    found = load(path)
    images = random_images(2, 64, 64, 3)
    with torch.no_grad():
        expected = oracle(torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)).numpy()
    # float32 sums in another order; logits are of order 1.
    np.testing.assert_allclose(compiled(found.model)(images), expected, atol=1e-4)
    assert found.licence == "Apache-2.0"
    row = get_pretrained("test_convnext2.r160_in1k")
    for field in dataclasses.fields(found.preprocessing):
        assert getattr(found.preprocessing, field.name) == getattr(row, field.name)
    assert load_pretrained(path, 3, drop_path=0.1).head.kernel.shape == (128, 3)
    with pytest.raises(InputError, match=r"`step` \(=best\) is for checkpoints of training runs"):
        load(path, step="best")


def test_a_name_of_published_weights_is_looked_for_on_the_hub(pytorch_file, monkeypatch):
    _, path = pytorch_file
    asked = []

    def from_file(location, **options):
        asked.append((location, options))
        return original(str(path), **options)

    original = loading.load
    monkeypatch.setattr(loading, "load", from_file)
    load("test_convnext2.r160_in1k")
    load("hf-hub:timm/test_convnext2.r160_in1k")
    assert asked == [("hf-hub:timm/test_convnext2.r160_in1k", {"ema": None})] * 2


def test_loading_says_nothing(trained, caplog, capfd):
    load_pretrained(trained)
    assert caplog.records == [] and capfd.readouterr() == ("", "")


def test_a_moved_checkpoint_needs_no_more_than_its_own_files(trained, tmp_path):
    shutil.copytree(trained / "checkpoints" / "10", tmp_path / "elsewhere" / "10")
    model = load_pretrained(tmp_path / "elsewhere" / "10")
    assert arrays_equal(model, small_params(LATER_AVERAGE))
