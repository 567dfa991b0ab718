"""Initial weights of a run."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from convnext_jax import builders, processes, sharding, tree
from convnext_jax.checkpointing.manager import Checkpoints
from convnext_jax.config import Config, ModelConfig, from_dict
from convnext_jax.convert.write import export
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription, ModelSpec, params_of
from convnext_jax.models.variants import Preprocessing
from convnext_jax.starting import find_start
from convnext_jax.training.stopwatch import Stopwatch

SIZES = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of seven classes, and its raw and averaged parameters."""
    folder = tmp_path_factory.mktemp("saved")
    spec = ModelSpec("convnext_atto", 7, SIZES)
    params, ema = (params_of(spec.create(nnx.Rngs(seed))) for seed in (1, 2))
    save(folder, spec, {"params": params, "ema": ema})
    return folder, params, ema


def save(folder, spec, arrays):
    checkpoints = Checkpoints(folder / "checkpoints", best_metric="top1")
    described = ModelDescription(spec, Preprocessing(input_size=32)).to_json()
    checkpoints.save(5, arrays, described)
    checkpoints.close()


def initial(folder, num_classes):
    model = ModelConfig(name="convnext_atto", head_init_scale=1e-3, **SIZES)
    config = dataclasses.replace(Config(), init_from=folder and str(folder), model=model)
    spec = ModelSpec(config.model.name, num_classes, config.model.overrides())
    mesh = sharding.create_mesh()
    weights = find_start(config, None).weights
    return tree.flatten_with_names(builders.initial_variables(config, spec, mesh, weights)[0])


def test_the_same_classes_keep_the_head_and_the_average_comes_first(saved):
    folder, _, ema = saved
    found = initial(folder, 7)
    expected = tree.flatten_with_names(ema)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].sharding.is_fully_replicated


@pytest.mark.parametrize("kind", ["checkpoint", "file", None])
def test_the_parameters_are_split_as_the_run_splits_them(kind, tmp_path):
    # Of sizes that are recognised in a file.
    spec = ModelSpec("test_convnext2", 7)
    params = params_of(spec.create(nnx.Rngs(1)))
    source = {"checkpoint": tmp_path, "file": tmp_path / "x.safetensors", None: None}[kind]
    if kind == "checkpoint":
        save(tmp_path, spec, {"params": params})
    if kind == "file":
        export(params, spec.name, "timm", source)
    config = dataclasses.replace(Config(), init_from=source and str(source))
    weights = find_start(config, None).weights
    found, _ = builders.initial_variables(config, spec, sharding.create_mesh(fsdp=4), weights)
    large = found["stages"][3][0]["pwconv1"]["kernel"]
    assert large.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp")
    if kind is not None:
        jax.tree.map(np.testing.assert_array_equal, found, params)


def test_other_classes_get_a_new_head_and_only_that(saved):
    folder, _, ema = saved
    found = initial(folder, 3)
    for name, value in tree.flatten_with_names(ema).items():
        if not name.startswith("head"):
            np.testing.assert_array_equal(found[name], value)
    assert found["head/kernel"].shape == (32, 3)
    # 0.02 times head_init_scale; 96 draws estimate it within a third.
    assert np.std(found["head/kernel"]) == pytest.approx(2e-5, rel=1 / 3)
    assert not np.any(found["head/bias"])


def test_a_workdir_of_converted_weights_is_no_run(saved):
    # A run there would begin with random weights and delete the converted ones in its time.
    folder, _, _ = saved
    config = dataclasses.replace(Config(), init_from=str(folder))
    with pytest.raises(InputError, match="were converted, which are no run to go on with"):
        find_start(config, folder / "checkpoints")


def test_a_store_that_marks_no_checkpoint_as_complete_is_refused(tmp_path):
    config = from_dict({"checkpoint": {"dir": "s3://runs/in1k"}})
    with pytest.raises(InputError, match=r"`checkpoint.dir` \(=s3://runs/in1k\) must be"):
        builders.checkpoint_dir(config, tmp_path)


def test_processes_with_other_data_or_keys_do_not_train_together(monkeypatch):
    def other(found):
        return found | changed

    def texts(text):
        return [text, json.dumps(other(json.loads(text)))]

    monkeypatch.setattr(processes, "texts_from_all", texts)
    changed = {"data.workers": "9"}  # follows the machine
    builders.require_same_everywhere(Config(), [["an image"] * 3])
    changed = {"optim.lr": "0.5"}
    with pytest.raises(InputError, match="optim.lr must be the same .* and 0.5 on process 1"):
        builders.require_same_everywhere(Config(), [])
    changed = {"the number of examples of [1, 2]": "1"}
    with pytest.raises(InputError, match="is 2 on process 0 and 1 on process 1"):
        builders.require_same_everywhere(Config(), [[1, 2]])


def test_without_init_from_the_weights_follow_from_the_seed():
    spec = ModelSpec("convnext_isotropic_small", 3, {"depths": (1,), "dims": (8,)})
    one, two, other = (
        builders.initial_variables(Config(seed=seed), spec, sharding.create_mesh(), None)[0]
        for seed in (1, 1, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, one, two)
    kernels = [params["blocks"][0]["pwconv1"]["kernel"] for params in (one, other)]
    assert np.std(kernels[0]) == pytest.approx(0.02, rel=0.2)
    assert np.any(kernels[0] != kernels[1])


def test_a_runs_crops_are_as_large_as_its_config_says(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(builders, "train_batches", lambda source, to, **kw: given.append(to))
    data = {"name": "digits", "dir": str(tmp_path), "eval_split": "test", "image_size": 32}
    data |= {"global_batch": 64, "crop_scale": 0.35}
    model = {"name": "convnext_atto"} | SIZES
    config = from_dict({"data": data, "model": model, "optim": {"warmup_steps": 5}})
    run = builders.build_run(config, Stopwatch())
    run.batches(0)
    assert given[0].transform.scale == (0.35, 1.0)
