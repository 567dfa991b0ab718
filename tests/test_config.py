"""Configs: what is checked, and how epochs become steps."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from convnext_jax.config import Config, DataConfig, all_keys, default_config, from_dict, resolve
from convnext_jax.errors import InputError
from convnext_jax.step_builder import accumulation

CONFIGS = Path(__file__).parents[1] / "configs"


def load(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


def with_value(key, value):
    config = default_config()
    *path, name = key.split(".")
    section = config
    for part in path:
        section = section[part]
    with section.ignore_type():
        section[name] = value
    return config


def test_defaults_survive_the_round_trip_through_config_dict_and_json():
    assert resolve(default_config()) == Config()
    config = resolve(load("digits"))
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    sized = dataclasses.replace(config.model, depths=(1, 2), dims=(3, 4))
    config = dataclasses.replace(config, model=sized)
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("optim.lr", "fast", r"`optim.lr` \(='fast'\) must be of type float"),
        ("seed", True, r"`seed` \(=True\) must be of type int"),
        ("data.image_size", 1.5, r"`data.image_size` \(=1.5\) must be of type int or None"),
        ("model.depths", (1, 2.5), r"`model.depths` .* must be of type tuple of int or None"),
        ("seed", -1, r"`seed` \(=-1\) must lie in"),
        ("num_epochs", 0.0, r"`num_epochs` \(=0.0\) must be positive"),
        ("num_epochs", float("inf"), r"`num_epochs` \(=inf\) must be finite"),
        ("num_steps", 0, r"`num_steps` \(=0\) must be positive"),
        ("model.dtype", "float16", r"`model.dtype` \(='float16'\) must be float32 or bfloat16"),
        ("model.drop_path", 1.0, r"`model.drop_path` \(=1.0\) must lie in \[0, 1\)"),
        ("data.crop", "centre", r"`data.crop` \(='centre'\) must be random_resized or padded"),
        ("data.crop_scale", 0.0, r"`data.crop_scale` \(=0.0\) must lie in \(0, 1\]"),
        ("optim.warmup_steps", -1, r"`optim.warmup_steps` \(=-1\) must not be negative, or None"),
        ("data.eval_crop", 0.0, r"`data.eval_crop` \(=0.0\) must lie in \(0, 1\]"),
        ("optim.lr", float("nan"), r"`optim.lr` \(=nan\) must be finite"),
        ("optim.min_lr", 1.0, r"`optim.min_lr` \(=1.0\) must lie in \[0, optim.lr\]"),
        ("optim.ema_decay", 1.0, r"`optim.ema_decay` \(=1.0\) must lie in \[0, 1\)"),
        ("checkpoint.keep_last", 0, r"`checkpoint.keep_last` \(=0\) must be positive"),
    ],
)
def test_values_out_of_range_are_errors(key, value, message):
    with pytest.raises(InputError, match=f"^{message}"):
        resolve(with_value(key, value))


def test_unknown_keys_are_errors_with_the_closest_ones():
    with pytest.raises(
        InputError,
        match=r"unknown config key `optim.warmup_epoch`; did you mean optim.warmup_epochs",
    ):
        from_dict({"optim": {"warmup_epoch": 1.0}})
    with pytest.raises(AttributeError, match="lrr"):
        default_config().optim.lrr = 1.0  # a misspelling in a config file


def test_every_key_is_listed_once():
    keys = all_keys()
    assert len(keys) == len(set(keys))
    assert {"seed", "model.name", "data.global_batch", "optim.lr", "mesh.fsdp"} <= set(keys)


def test_epochs_become_steps_as_in_the_reference():
    steps = resolve(load("imagenet1k", "tiny")).steps(1_281_167)
    assert (steps.per_epoch, steps.total, steps.warmup) == (312, 93_600, 6_240)
    assert steps.evaluate_every == 312


def test_warmup_may_be_given_in_steps():
    config = from_dict({"num_epochs": 2.0, "optim": {"warmup_steps": 100}})
    assert config.steps(1_281_167).warmup == 100
    assert from_dict({"optim": {"warmup_steps": 0}}).steps(1_281_167).warmup == 0
    config = from_dict({"num_epochs": 2.0, "optim": {"warmup_steps": 700}})
    with pytest.raises(InputError, match=r"`optim.warmup_steps` \(=700\) must be .* \(=624\)"):
        config.steps(1_281_167)


def test_a_run_cut_short_keeps_its_warmup_within_it():
    config = dataclasses.replace(resolve(load("imagenet1k")), num_steps=2)
    assert config.steps(1_281_167).total == config.steps(1_281_167).warmup == 2


def test_steps_that_cannot_be():
    config = resolve(load("digits"))
    with pytest.raises(InputError, match=r"`data.global_batch` \(=64\) must be at most .*\(=63\)"):
        config.steps(63)
    config = dataclasses.replace(config, num_epochs=2.0)
    with pytest.raises(InputError, match=r"`optim.warmup_epochs` \(=3.0\) must be at most"):
        config.steps(1437)


@pytest.mark.parametrize(
    "batch, per_device, devices, parts",
    [(4096, None, 8, 1), (4096, 128, 8, 4), (4096, 128, 1, 32), (96, 40, 1, 3), (64, 100, 2, 1)],
)
def test_micro_batches_are_the_fewest_that_fit(batch, per_device, devices, parts):
    config = DataConfig(global_batch=batch, per_device_batch=per_device)
    assert accumulation(config, devices) == parts


def test_sizes_of_imagenet1k():
    for size, drop_path in (("tiny", 0.1), ("small", 0.4), ("base", 0.5), ("large", 0.5)):
        config = resolve(load("imagenet1k", size))
        assert (config.model.name, config.model.drop_path) == (f"convnext_{size}", drop_path)
    with pytest.raises(InputError, match=r"`size` \(=smal\) must be one of .*; did you mean small"):
        load("imagenet1k", "smal")
