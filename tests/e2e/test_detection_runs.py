"""Detectors on digit_scenes, small: kills, devices, processes, what users do with results."""

import json

import jax
import numpy as np
import pytest
from e2e import commands
from e2e.test_resume import kill_when
from pycocotools import mask as coco_mask

STEPS = 8
CONFIG = "configs/digit_scenes_detection.py"
OVERRIDES = (
    *commands.TINY,
    "--config.detection.fpn_channels=16",
    "--config.detection.head_features=16",
    "--config.detection.short_sides=(64,)",
    "--config.detection.longest_side=64",
    "--config.detection.rpn_before=40",
    "--config.detection.rpn_after=20",
    "--config.detection.rpn_before_eval=40",
    "--config.detection.rpn_after_eval=20",
    "--config.detection.roi_samples=16",
    "--config.detection.detections=6",
    "--config.detection.score_threshold=0.0",
    "--config.data.train_split=train[:64]",
    "--config.data.eval_split=test[:10]",
    f"--config.num_steps={STEPS}",
    "--config.log_every_steps=1",
    "--config.log_batch_hashes=True",
    "--config.eval_every_steps=4",
    "--config.checkpoint.every_steps=2",
    "--config.optim.milestones=()",
)
# Its heads have BatchNorm.
CASCADE = ("--config.model.name=cascade_mask_rcnn_convnext_atto",)


def train(workdir, env, *overrides):
    return commands.train(workdir, env, *OVERRIDES, *overrides, config=CONFIG)


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """A run that nothing befell."""
    workdir = tmp_path_factory.mktemp("detected")
    train(workdir, commands.environment(*folders))
    return workdir


@pytest.fixture(scope="module")
def cascade(folders, tmp_path_factory):
    """The same of a cascade."""
    workdir = tmp_path_factory.mktemp("cascade")
    train(workdir, commands.environment(*folders), *CASCADE)
    return workdir


@pytest.mark.slow  # test_resume.py has the loop's part
def test_a_killed_run_ends_bit_identical(cascade, env, tmp_path):
    command = commands.train_command(tmp_path, *OVERRIDES, *CASCADE, config=CONFIG)
    assert kill_when(command, env, lambda: any(map(str.isdigit, commands.saved(tmp_path))))
    assert "resuming after step" in train(tmp_path, env, *CASCADE).stdout
    commands.assert_identical(tmp_path, cascade, STEPS)
    assert any("batch_stats" in name for name in commands.arrays(cascade, STEPS))
    assert commands.records(tmp_path)[-1] == commands.records(cascade)[-1]


def same_run(workdir, expected):
    """The batches, and losses to rounding; later steps draw other boxes where it decides."""
    assert commands.hashes(workdir) == commands.hashes(expected)
    found, wanted = commands.losses(workdir), commands.losses(expected)
    assert found.keys() == wanted.keys() == set(range(1, STEPS + 1))
    np.testing.assert_allclose(list(found.values())[:3], list(wanted.values())[:3], rtol=1e-4)
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=0.05)


@pytest.mark.slow  # three programs to compile
@pytest.mark.parametrize("fsdp", [1, 4])
def test_eight_devices_are_one(fsdp, cascade, folders, tmp_path):
    env = commands.environment(*folders, devices=8)
    train(tmp_path, env, *CASCADE, f"--config.mesh.fsdp={fsdp}")
    same_run(tmp_path, cascade)


@pytest.mark.slow
def test_two_processes_are_one(cascade, env, tmp_path):
    overrides = (*OVERRIDES, *CASCADE)
    processes = commands.start_processes(tmp_path, env, 2, *overrides, devices=2, config=CONFIG)
    ends = commands.end_of(processes)
    assert [status for status, *_ in ends] == [0, 0], ends
    same_run(tmp_path, cascade)


def test_a_finished_run_is_evaluated_and_draws(whole, folders, env, tmp_path):
    assert {p.name for p in whole.iterdir()} == {
        *("checkpoints", "config.json", "curves.png", "examples.png"),
        *("metrics.jsonl", "summary.json"),
    }
    evaluate = commands.command_of("evaluate", "--checkpoint", whole)
    files = ("--per_class", tmp_path / "classes.csv", "--output", tmp_path / "found.json")
    done = commands.run([*evaluate, "--json", *files], env)
    assert done.returncode == 0, done.stderr
    found, recorded = json.loads(done.stdout), commands.records(whole)[-1]
    for name in ("box_ap", "mask_ap", "box_ap50", "num_examples"):
        assert found[name] == recorded[f"eval_params_{name}"]
    rows = (tmp_path / "classes.csv").read_text().splitlines()
    assert rows[0] == "class,box_ap,mask_ap" and len(rows) == 11
    boxes = json.loads((tmp_path / "found.bbox.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} == boxes[0].keys()
    assert len(boxes) == len(json.loads((tmp_path / "found.segm.json").read_text())) <= 60

    refused = commands.run([*evaluate, "--confusion", str(tmp_path / "x.csv")], env)
    assert refused.returncode == 2 and "must not be given" in refused.stderr
    refused = commands.run([*evaluate, "--output", str(tmp_path)], env)
    assert refused.returncode == 2 and "must be the name of a file" in refused.stderr

    photos = tmp_path / "photos"
    commands.write_digit_folders(photos, 3)
    predict = commands.command_of("predict", "--checkpoint", whole, photos)
    assert commands.run(predict, env).returncode == 2
    output = ("--output", tmp_path / "found", "--json", "--least_score", "0")
    drawn = commands.run([*predict, *output], env)
    assert drawn.returncode == 0, drawn.stderr
    rows = [json.loads(line) for line in drawn.stdout.splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert (row["height"], row["width"]) == (8, 8)
        assert 0 < len(row["detections"]) <= 6
        assert coco_mask.decode(row["detections"][0]["mask"]).shape == (8, 8)
    endings = sorted(
        p.name.partition("_")[2] or p.suffix for p in (tmp_path / "found").rglob("*.*")
    )
    assert endings == sorted(3 * ["detections.png", ".json"])


@pytest.mark.parametrize(
    "overrides, fragments",
    [
        (["--config.augment.mixup=0.8"], ["`augment.mixup` (=0.8) must be 0.0", "classification"]),
        (["--config.data.image_size=96"], ["`data.image_size` (=96) must be None"]),
        (["--config.data.name=digits"], ["digits", "boxes and masks"]),
        (["--config.data.annotations=x.json"], ["`annotations` (=x.json)", "`folder`"]),
    ],
)
def test_what_cannot_be_trained(overrides, fragments, env, tmp_path):
    command = commands.train_command(tmp_path, *OVERRIDES, *overrides, config=CONFIG)
    done = commands.run(command, env)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    for fragment in fragments:
        assert fragment in done.stderr


@pytest.mark.slow  # four hundred steps
def test_eight_scenes_are_learnt_by_heart(env, tmp_path):
    few = [f"--config.data.{split}_split=train[:8]" for split in ("train", "eval")]
    rates = ["--config.num_steps=400", "--config.optim.milestones=(150,)"]
    plain = ("--config.report_examples=0", "--config.tensorboard=False")
    # What compiles quickly for tests takes twice as long to run.
    commands.train(tmp_path, env, *plain, *few, *rates, config=CONFIG, timeout=1200)
    found = commands.records(tmp_path)[-1]
    # 100 % was seen; 95 % is the least that says it can.
    assert found["eval_params_box_ap"] > 0.95 and found["eval_params_mask_ap"] > 0.95


@pytest.mark.slow  # two programs of its own
def test_a_backbone_from_a_classifier(folders, env, tmp_path):
    """Of a run of ours; the stages are its, the rest is new, and the start says so."""
    digits, scenes = tmp_path / "digits", tmp_path / "scenes"
    commands.train(digits, env, *commands.TINY, "--config.num_steps=1")
    done = train(scenes, env, f"--config.init_from={digits}", "--config.num_steps=1")
    assert "all but the backbone is new, for 10 classes" in done.stdout
    before, after = commands.arrays(digits, 1), commands.arrays(scenes, 1)
    name = "['stages']['2']['0']['pwconv1']['kernel']"
    kept = np.abs(after["params['backbone']" + name] - before["ema" + name]).max()
    drawn = np.std(before["ema" + name])
    assert kept < 0.05 * drawn  # one step of warm-up moves next to nothing
    assert jax.tree.leaves(after)
