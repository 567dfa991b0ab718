"""UPerNet on digit_scenes, small: kills, devices, processes, and what users do with the result."""

import json

import jax
import numpy as np
import pytest
from e2e import commands
from e2e.test_resume import kill_when

STEPS = 12
CONFIG = "configs/digit_scenes_segmentation.py"
OVERRIDES = (
    *commands.TINY,
    "--config.segmentation.decoder_channels=8",
    "--config.segmentation.auxiliary_channels=8",
    "--config.data.image_size=64",
    "--config.data.train_split=train[:64]",
    "--config.data.eval_split=test[:10]",
    f"--config.num_steps={STEPS}",
    "--config.log_every_steps=1",
    "--config.log_batch_hashes=True",
    "--config.eval_every_steps=6",
    "--config.checkpoint.every_steps=2",
)


def train(workdir, env, *overrides):
    return commands.train(workdir, env, *OVERRIDES, *overrides, config=CONFIG)


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """A run that nothing befell."""
    workdir = tmp_path_factory.mktemp("scenes")
    train(workdir, commands.environment(*folders))
    return workdir


@pytest.mark.slow  # test_resume.py has the loop's part
def test_a_killed_run_ends_bit_identical(whole, env, tmp_path):
    command = commands.train_command(tmp_path, *OVERRIDES, config=CONFIG)
    assert kill_when(command, env, lambda: commands.last_step(tmp_path) >= 5)
    assert "resuming after step" in train(tmp_path, env).stdout
    commands.assert_identical(tmp_path, whole, STEPS)
    assert any("batch_stats" in name for name in commands.arrays(whole, STEPS))
    assert commands.records(tmp_path)[-1] == commands.records(whole)[-1]
    assert {p.name for p in whole.iterdir()} == {
        *("checkpoints", "config.json", "curves.png", "examples.png"),
        *("metrics.jsonl", "summary.json"),
    }


def same_run(workdir, expected):
    """Only the order of sums differs; see test_devices.py."""
    assert commands.hashes(workdir) == commands.hashes(expected)
    found, wanted = commands.losses(workdir), commands.losses(expected)
    assert found.keys() == wanted.keys() == set(range(1, STEPS + 1))
    np.testing.assert_allclose(list(found.values())[:3], list(wanted.values())[:3], rtol=1e-5)
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-3)
    theirs = commands.arrays(expected, STEPS)
    for name, value in commands.arrays(workdir, STEPS).items():
        if name.startswith("batch_stats"):
            np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow  # three programs to compile
@pytest.mark.parametrize("fsdp", [1, 4])
def test_eight_devices_are_one(fsdp, whole, folders, tmp_path):
    train(tmp_path, commands.environment(*folders, devices=8), f"--config.mesh.fsdp={fsdp}")
    same_run(tmp_path, whole)


@pytest.mark.slow
def test_two_processes_are_one(whole, env, tmp_path):
    processes = commands.start_processes(tmp_path, env, 2, *OVERRIDES, devices=2, config=CONFIG)
    ends = commands.end_of(processes)
    assert [status for status, *_ in ends] == [0, 0], ends
    same_run(tmp_path, whole)


def test_a_finished_run_is_evaluated_and_draws(whole, folders, env, tmp_path):
    evaluate = commands.command_of("evaluate", "--checkpoint", whole)
    done = commands.run([*evaluate, "--json", "--per_class", tmp_path / "classes.csv"], env)
    assert done.returncode == 0, done.stderr
    found, recorded = json.loads(done.stdout), commands.records(whole)[-1]
    for name in ("miou", "macc", "aacc", "num_examples"):
        assert found[name] == recorded[f"eval_params_{name}"]
    rows = (tmp_path / "classes.csv").read_text().splitlines()
    assert rows[0] == "class,pixels,iou,accuracy" and rows[1].startswith("background,")
    assert len(rows) == 12

    for option, value in (("--confusion", tmp_path / "x.csv"), ("--ignored", 3)):
        refused = commands.run([*evaluate, option, str(value)], env)
        assert refused.returncode == 2 and "must not be given" in refused.stderr

    photos = tmp_path / "photos"
    commands.write_digit_folders(photos, 3)
    output = tmp_path / "masks"
    predict = commands.command_of("predict", "--checkpoint", whole, photos)
    assert commands.run(predict, env).returncode == 2
    drawn = commands.run([*predict, "--output", output, "--json"], env)
    assert drawn.returncode == 0, drawn.stderr
    rows = [json.loads(line) for line in drawn.stdout.splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert sum(c["pixels"] for c in row["classes"]) == row["height"] * row["width"] == 64
    endings = sorted(p.name.partition("_")[2] or p.suffix for p in output.rglob("*.*"))
    assert endings == sorted(3 * ["labels.png", "overlay.png", ".json"])


@pytest.mark.parametrize(
    "overrides, fragments",
    [
        (["--config.augment.mixup=0.8"], ["`augment.mixup` (=0.8) must be 0.0", "classification"]),
        (["--config.data.global_batch=1"], ["2 images or more"]),
        (["--config.data.name=digits"], ["digits", "mask"]),
    ],
)
def test_what_cannot_be_trained(overrides, fragments, env, tmp_path):
    command = commands.train_command(tmp_path, *OVERRIDES, *overrides, config=CONFIG)
    done = commands.run(command, env)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    for fragment in fragments:
        assert fragment in done.stderr


@pytest.mark.slow  # two programs of its own
def test_a_backbone_from_a_classifier(folders, env, tmp_path):
    """Of a run of ours; the stages are its, the rest is new, and the start says so."""
    digits, scenes = tmp_path / "digits", tmp_path / "scenes"
    commands.train(digits, env, *commands.TINY, "--config.num_steps=1")
    done = train(scenes, env, f"--config.init_from={digits}", "--config.num_steps=1")
    assert "all but the backbone is new, for 11 classes" in done.stdout
    before, after = commands.arrays(digits, 1), commands.arrays(scenes, 1)
    name = "['stages']['2']['0']['pwconv1']['kernel']"
    kept = np.abs(after["params['backbone']" + name] - before["ema" + name]).max()
    drawn = np.std(before["ema" + name])
    assert kept < 0.05 * drawn  # one step of warm-up moves next to nothing
    assert jax.tree.leaves(after)
