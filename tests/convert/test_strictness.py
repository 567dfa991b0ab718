"""Every tensor is used, every parameter filled, or one error lists all that is wrong."""

import argparse

import numpy as np
import pytest
from oracles import timm, torch
from small_files import CLASSES, gamma, load_small, saved, state

from convnext_jax.convert import surgery
from convnext_jax.convert.loading import load
from convnext_jax.errors import InputError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def refusal(path, content, **arguments):
    with pytest.raises(InputError) as raised:
        load_small(saved(path, content), **arguments)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_all_offenders_are_in_one_error(path):
    weights = state()
    weights["stages.0.0.extra"] = torch.zeros(3)
    weights["queue"] = torch.zeros(2, 2)
    del weights["norm.bias"], weights["stages.2.0.dwconv.bias"]
    weights["head.bias"] = torch.zeros(CLASSES + 1)
    weights["stages.1.0.pwconv1.weight"] = weights["stages.1.0.pwconv1.weight"].T
    weights["stages.3.0.gamma"] = torch.ones(16, dtype=torch.int64)
    weights["stages.0.0.gamma"][1] = float("nan")
    message = refusal(path, {"model": weights})
    for offence in (
        "unknown: `stages.0.0.extra` (3,)",
        "unknown: `queue` (2, 2)",
        "missing: `norm.bias` (16,)",
        "missing: `stages.2.0.dwconv.bias` (12,)",
        "wrong shape: `head.bias` is (6,), not (5,)",
        "wrong shape: `stages.1.0.pwconv1.weight` is (8, 32), not (32, 8)",
        "wrong type: `stages.3.0.gamma` is int64",
        "not finite: `stages.0.0.gamma`",
    ):
        assert offence in message
    assert message.count("\n") == 8


def test_the_wrong_variant(path):
    message = refusal(path, state(), model="convnext_atto", overrides={})
    assert "missing: `stages.2.0.dwconv.weight`" not in message  # It is there, and too narrow.
    assert "wrong shape: `stages.2.0.dwconv.weight` is (12, 1, 7, 7), not (160, 1, 7, 7)" in message
    assert "missing: `stages.2.5.gamma` (160,)" in message


def test_an_unknown_model_names_the_closest(path):
    weights = timm.create_model("convnext_atto", depths=(2, 2, 7, 2)).state_dict()
    with pytest.raises(InputError, match=r"no model has depths \(2, 2, 7, 2\).*convnext_atto"):
        load(saved(path, weights))
    with pytest.raises(InputError, match="did you mean convnext_tiny"):
        load(saved(path, weights), model="convnext_tini")


def test_the_variant_is_recognised_with_its_kernel_size_and_layer_scale(path):
    model = timm.models.ConvNeXt(
        depths=(2, 2, 6, 2),
        dims=(40, 80, 160, 320),
        kernel_sizes=5,
        ls_init_value=None,
        num_classes=7,
    )
    converted = load(saved(path, model.state_dict()))
    assert (converted.model_name, converted.num_classes) == ("convnext_atto", 7)
    assert converted.overrides == {"kernel_size": 5, "layer_scale_init": None}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_wrapper_s_prefix_is_taken_off(path, prefix):
    weights = state()
    wrapped = {prefix + name: tensor for name, tensor in weights.items()}
    converted = load_small(saved(path, {"state_dict": wrapped}))
    np.testing.assert_array_equal(gamma(converted), weights["stages.0.0.gamma"])


def test_a_prefix_that_only_some_names_have_is_not_taken_off(path):
    weights = state()
    weights["module.norm.bias"] = weights.pop("norm.bias")
    message = refusal(path, weights)
    assert "missing: `norm.bias`" in message and "unknown: `module.norm.bias`" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(path, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in state().items()}
    converted = load_small(saved(path, weights))
    assert gamma(converted).dtype == np.float32
    np.testing.assert_array_equal(gamma(converted), weights["stages.0.0.gamma"].float())


def test_weights_or_their_average(path):
    content = {
        "model": state(0),
        "model_ema": state(1),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []},
        "epoch": 7,
        "args": argparse.Namespace(lr=4e-3, data_path="imagenet"),
    }
    location = saved(path, content)
    chosen = {False: content["model"], True: content["model_ema"]}
    for ema, weights in chosen.items():
        converted = load_small(location, ema=ema)
        np.testing.assert_array_equal(gamma(converted), weights["stages.0.0.gamma"])
    del content["model"]
    converted = load_small(saved(path, content))
    np.testing.assert_array_equal(gamma(converted), chosen[True]["stages.0.0.gamma"])
    message = refusal(path, {"model": chosen[False], "model_ema": None}, ema=True)
    assert "no moving average" in message


def test_tensors_beside_the_weights_are_not_the_weights(path):
    weights = state()
    converted = load_small(saved(path, {"model": weights, "mean": torch.zeros(3)}))
    np.testing.assert_array_equal(gamma(converted), weights["stages.0.0.gamma"])


@pytest.mark.parametrize("name", ["stages.1.0.dwconv.weight", "head.weight", "norm.weight"])
@pytest.mark.parametrize("axes", [0, 1, 2, 3, 4, 5])
def test_a_tensor_with_other_axes(path, name, axes):
    weights = state()
    if weights[name].ndim != axes:
        weights[name] = torch.zeros((2,) * axes)
        assert refusal(path, weights)


def test_files_without_weights(path):
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    assert "holds no weights, only optimizer, epoch" in refusal(
        path, {"optimizer": optimizer, "epoch": 3}
    )
    assert "holds no weights, only state, param_groups" in refusal(path, optimizer)
    assert "holds one tensor of shape (3,)" in refusal(path, torch.zeros(3))
    assert "holds a list" in refusal(path, [torch.zeros(3)])
    assert "only an empty dict" in refusal(path, {})
    assert "`epoch` (int)" in refusal(path, {**state(), "epoch": 3})


def test_tensors_of_another_network(path):
    message = refusal(path, {"conv1.weight": torch.zeros(64, 3, 7, 7)})
    assert "not those of a ConvNeXt" in message and "`conv1.weight`" in message
    assert "in the format timm" in refusal(path, state(), format="timm")
    assert "`--format` (=tim) must be one of" in refusal(path, state(), format="tim")
    parts = {name: tensor for name, tensor in state().items() if not name.startswith("stages.0")}
    assert "only parts of a ConvNeXt" in refusal(path, parts)


def test_duplicates_must_be_equal(path):
    weights = state()
    for name in ("head.weight", "head.bias"):
        del weights[name]
    weights["norms.3.weight"] = weights["norm.weight"]
    weights["norms.3.bias"] = weights["norm.bias"] + 1
    message = refusal(path, weights)
    assert "not the same: `norms.3.bias` must equal `norm.bias`" in message
    assert "norms.3.weight" not in message


def test_another_number_of_classes_only_when_asked(path):
    location = saved(path, state())
    kept, changed = load_small(location, num_classes=CLASSES), load_small(location, num_classes=3)
    assert kept.notes == () and "untrained" in changed.notes[0]
    head = changed.params["head"]
    assert head["kernel"].shape == (16, 3) and not np.any(head["bias"])
    assert 0.01 < np.std(head["kernel"]) < 0.03
    np.testing.assert_array_equal(gamma(kept), gamma(changed))
    assert "head" not in load_small(location, num_classes=0).params
    for wrong in ({"num_classes": -1}, {"in_channels": 0}):
        with pytest.raises(InputError, match="must be at least"):
            load_small(location, **wrong)


def test_other_input_channels_keep_the_answer_to_grey():
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 8), dtype=np.float32)
    for channels in (1, 2, 4, 6):
        other = surgery.other_channels(kernel, channels)
        assert other.shape == (4, 4, channels, 8)
        if channels % 3 == 0 or channels == 1:
            # Float32 sums in another order.
            np.testing.assert_allclose(other.sum(2), kernel.sum(2), rtol=0, atol=1e-5)
        if channels > 1:
            np.testing.assert_array_equal(
                other[:, :, 0], kernel[:, :, 0] * np.float32(3 / channels)
            )
