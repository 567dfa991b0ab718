"""Two optimiser steps of every family of configs: the whole recipe, at reduced size.

Each runs from its own config file on a miniature of its dataset, in that dataset's own format; only
sizes are reduced: of the model, the images, the batch, the splits. Fine-tuning starts from what the
runs before it saved. The digits have tests of their own.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from data import ilsvrc, miniature22k
from e2e import commands
from PIL import Image
from test_config import load

from convnext_jax.checkpointing.steps import completed_steps
from convnext_jax.config import resolve
from convnext_jax.models.variants import ROADMAP, ROADMAP_STEPS
from convnext_jax.optim.param_groups import layer_group
from convnext_jax.training.reporting import flat

# One device takes 8 of the 16 images at once, in two groups that mix.
SMALL = {
    "num_steps": 2,
    "log_every_steps": 1,
    "data.global_batch": 16,
    "data.per_device_batch": 8,
    "data.eval_batch": 16,
    "data.image_size": 32,
    "data.workers": 0,
    "augment.mix_group": 4,
    "model.depths": (1, 1, 1, 1),
    "model.dims": (8, 16, 32, 64),
    "model.kernel_size": 3,
}
# What a run here may change of its recipe beside these.
PLACES = {"data.dir", "data.train_split", "data.eval_split", "init_from", "tensorboard"}
FOLDER_CLASSES = ("cat", "dog", "emu")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run: its workdir, its recipe by dotted key, what it logged at its two steps."""

    workdir: Path
    recipe: dict
    steps: list
    evaluation: dict

    def arrays(self, item):
        """Parameters or moving average by name, read without the project's code."""
        step = completed_steps(self.workdir / "checkpoints")[-1]
        tree = ocp.StandardCheckpointer().restore(self.workdir / "checkpoints" / str(step) / item)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }


@pytest.fixture(scope="module")
def train(folders, tmp_path_factory):
    """Runs a config with SMALL and `values`, and checks what holds for every one."""
    env = commands.environment(*folders)

    def run(family, name, values):
        workdir = tmp_path_factory.mktemp(family)
        values = SMALL | values
        overrides = [f"--config.{key}={value}" for key, value in values.items()]
        config = f"configs/{family}.py:{name}"
        printed = commands.train(workdir, env, *overrides, config=config).stdout
        assert "batch: 16 = 1 devices x 8 images x 2 micro-batch(es)" in printed

        recipe = flat(dataclasses.asdict(resolve(load(family, name))))
        used = flat(json.loads((workdir / "config.json").read_text()))
        changed = {key for key, value in recipe.items() if used[key] != value}
        assert changed <= values.keys() | {"tensorboard", "report_examples"}
        assert values.keys() <= SMALL.keys() | PLACES | {"data.name", "model.name"}

        records = commands.records(workdir)
        steps, evaluation = [r for r in records if "loss" in r], records[-1]
        assert [r["step"] for r in steps] == [1, 2]
        assert all(math.isfinite(r["loss"]) and r["gradient_norm"] > 0 for r in steps)
        assert steps[0]["update_norm"] + steps[1]["update_norm"] > 0
        # The moving average is kept, and evaluated, where the recipe has one.
        assert ("eval_ema_top1" in evaluation) == (recipe["optim.ema_decay"] > 0)
        return Trained(workdir, recipe, steps, evaluation)

    return run


@pytest.fixture(scope="module")
def imagenet1k(tmp_path_factory):
    data_dir, archives = ilsvrc.prepared_imagenet(tmp_path_factory.mktemp("1k"))
    # So that the last batch of an evaluation is not full.
    assert len(archives.validation) == 40
    return {"data.dir": data_dir}


@pytest.fixture(scope="module")
def imagenet22k(tmp_path_factory):
    base = tmp_path_factory.mktemp("22k")
    archive = miniature22k.whole(miniature22k.pictures(per_class=10))
    miniature22k.write(base / "downloads" / "fall11_whole.tar", archive)
    done = ilsvrc.prepare(
        "imagenet22k", f"--manual_dir={base / 'downloads'}", f"--data_dir={base / 'tfds'}"
    )
    assert done.returncode == 0, done.stderr
    return {
        "data.dir": base / "tfds",
        "data.train_split": "train[:-7]",
        "data.eval_split": "train[-7:]",
    }


@pytest.fixture(scope="module")
def large_1k(train, imagenet1k):
    return train("imagenet1k", "large", imagenet1k)


@pytest.fixture(scope="module")
def xlarge_22k(train, imagenet22k):
    return train("imagenet22k", "xlarge", imagenet22k)


def started_from(trained, source, item, new_head):
    """Checks that a run began with the weights of another, and moved them as its rates allow.

    In two steps AdamW moves a parameter by at most the sum of both rates, up to its rounding; here
    these are the rate and half of it, or zero and the rate. Other weights are off by more.
    """
    depths = SMALL["model.depths"]
    last = layer_group("head/bias", depths)
    start, found = source.arrays(item), trained.arrays("params")
    assert start.keys() == found.keys()
    moved = 0
    for name, value in found.items():
        layers = last - layer_group(name, depths)
        reach = 2 * trained.recipe["optim.lr"] * trained.recipe["optim.layer_decay"] ** layers
        if new_head and name.startswith("head/"):
            # Near zero: standard deviation 0.02, of which `head_init_scale` leaves a thousandth.
            assert value.shape != start[name].shape
            assert np.abs(value).max() < 1e-4 + reach
            continue
        assert np.abs(value - start[name]).max() < reach, name
        moved += np.any(value != start[name])
    assert moved > len(found) / 2


def test_imagenet1k_and_an_exact_evaluation(large_1k, folders):
    # A thousand classes, smoothed labels, weights near zero: the loss of guessing.
    assert large_1k.steps[0]["loss"] == pytest.approx(math.log(1000), abs=0.3)
    evaluation = large_1k.evaluation
    for which in ("params", "ema"):
        assert evaluation[f"eval_{which}_num_examples"] == 40
    summary = json.loads((large_1k.workdir / "summary.json").read_text())
    assert summary["dataset"] == "imagenet2012"

    # Again, from the checkpoint alone, and with another batch.
    command = [sys.executable, "-m", "convnext_jax.evaluate", "--checkpoint", large_1k.workdir]
    command += ["--ema", "--json", "--batch_size", "7"]
    result = commands.run(command, commands.environment(*folders))
    assert result.returncode == 0, result.stderr
    again = json.loads(result.stdout)
    assert again["num_examples"] == 40
    assert again["top1"] == evaluation["eval_ema_top1"]
    # float32 sums in another order, and another program.
    assert again["loss"] == pytest.approx(evaluation["eval_ema_loss"], rel=1e-5)


@pytest.mark.slow  # test_recipes.py reads its config, models/ has its gradients
def test_imagenet1k_isotropic(train, imagenet1k):
    sizes = {"model.depths": (2,), "model.dims": (16,)}
    trained = train("imagenet1k_isotropic", "small", imagenet1k | sizes)
    assert trained.steps[0]["loss"] == pytest.approx(math.log(1000), abs=0.3)
    assert any(name.startswith("blocks/1/") for name in trained.arrays("ema"))


@pytest.mark.slow  # data/test_imagenet22k.py has the part, test_recipes.py the config
def test_imagenet22k_with_a_part_held_out(xlarge_22k):
    # Three classes.
    assert xlarge_22k.steps[0]["loss"] == pytest.approx(math.log(3), abs=0.3)
    assert xlarge_22k.evaluation["eval_params_num_examples"] == 7
    assert xlarge_22k.arrays("params")["head/bias"].shape == (3,)


@pytest.mark.slow  # test_starting.py has it without a run
def test_from_imagenet22k_to_1k_the_head_is_new(train, imagenet1k, xlarge_22k):
    values = imagenet1k | {"init_from": xlarge_22k.workdir, "data.image_size": 64}
    trained = train("finetune_22k_1k", "xlarge_384", values)
    # Logits near zero guess exactly.
    assert trained.steps[0]["loss"] == pytest.approx(math.log(1000), abs=1e-2)
    started_from(trained, xlarge_22k, "params", new_head=True)


@pytest.mark.slow  # test_builders.py has it without a run
def test_from_1k_to_1k_the_head_is_kept_and_the_average_is_taken(train, imagenet1k, large_1k):
    values = imagenet1k | {"init_from": large_1k.workdir, "data.image_size": 64}
    trained = train("finetune_1k", "large_384", values)
    started_from(trained, large_1k, "ema", new_head=False)
    # The average of two steps is nearly where they began, and far from where they led.
    with pytest.raises(AssertionError):
        started_from(trained, large_1k, "params", new_head=False)


@pytest.mark.slow  # the next one has it with a folder
def test_fine_tuning_on_another_dataset(train, imagenet22k, large_1k):
    values = imagenet22k | {"init_from": large_1k.workdir, "data.name": "imagenet22k"}
    trained = train("finetune", "large", values)
    assert trained.steps[0]["loss"] == pytest.approx(math.log(3), abs=1e-2)
    started_from(trained, large_1k, "ema", new_head=True)


def test_fine_tuning_on_a_folder(train, large_1k, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 3)):
        for name in FOLDER_CLASSES:
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    # The recipe is for smaller models, but the weights at hand are of this one.
    values = {"data.dir": tmp_path, "model.name": "convnext_large"}
    trained = train("finetune_folder", "base", values | {"init_from": large_1k.workdir})
    assert trained.steps[0]["loss"] == pytest.approx(math.log(3), abs=1e-2)
    assert trained.evaluation["eval_params_num_examples"] == 9
    started_from(trained, large_1k, "ema", new_head=True)


STEPS = [step for step in ROADMAP_STEPS if step != "original"] + ["separate_downsampling"]


@pytest.mark.parametrize(
    "step",
    # models/test_roadmap.py has the networks of all of them
    STEPS,
)
@pytest.mark.slow
def test_every_step_of_the_road(train, imagenet1k, step, folders):
    variant = ROADMAP[f"roadmap_resnet50_{step}"]
    wide = variant.architecture == "roadmap" and variant.block == "bottleneck"
    sizes = {
        "model.kernel_size": variant.kernel_size,
        "model.dims": tuple((4 if wide else 1) * dim for dim in SMALL["model.dims"]),
    }
    trained = train("roadmap", f"resnet50_{step}", imagenet1k | sizes)
    assert trained.steps[0]["loss"] == pytest.approx(math.log(1000), abs=0.5)
    if variant.norm == "batch_norm":
        statistics = trained.arrays("batch_stats")
        # Two steps of two micro-batches, each of which moved them by a tenth.
        assert statistics and all(
            np.any(array != (1 if name.endswith("var") else 0))
            for name, array in statistics.items()
        )
    command = [sys.executable, "-m", "convnext_jax.evaluate", "--checkpoint", trained.workdir]
    result = commands.run([*command, "--json"], commands.environment(*folders))
    assert result.returncode == 0, result.stderr
    again = json.loads(result.stdout)
    # float32 sums in another order, and another program.
    assert again["loss"] == pytest.approx(trained.evaluation["eval_params_loss"], rel=1e-5)
