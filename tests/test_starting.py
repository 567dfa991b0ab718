"""What a run goes on from, starts from or is evaluated by fits its data by names, not by places."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from classification.small import save as save_run
from etils import epath
from PIL import Image
from random_models import random_params

from convnext_jax import builders, evaluate
from convnext_jax.checkpointing.manager import Checkpoints
from convnext_jax.classification.predictor import Predictor
from convnext_jax.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription, ModelSpec
from convnext_jax.models.variants import CLIP_MEAN, CLIP_STD, Preprocessing
from convnext_jax.training.stopwatch import Stopwatch
from convnext_jax.weights.find import find
from convnext_jax.weights.load import load

pytestmark = pytest.mark.usefixtures("programs_are_kept")

SPEC = ModelSpec(
    "convnext_atto", 3, {"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16), "kernel_size": 3}
)
FEEDING = Preprocessing(input_size=32, mean=CLIP_MEAN, std=CLIP_STD)
# Of each class as many images as of no other, all of one grey.
COUNTS = {"flower": 8, "temple": 16, "three": 24}
GREYS = {"flower": 20, "temple": 120, "three": 220, "zebra": 60}


def write_images(root, counts=COUNTS):
    for split in ("train", "val"):
        for name, count in counts.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (32, 32), GREYS[name]).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    counts = {"temple": 8, "three": 16, "zebra": 24}
    return write_images(tmp_path_factory.mktemp("others"), counts)


def config(root, **fields):
    data = DataConfig(
        name="folder", dir=str(root), eval_split="val", global_batch=16, image_size=32, flip=0.0
    )
    sizes = {key: SPEC.overrides[key] for key in ("depths", "dims", "kernel_size")}
    return Config(
        model=ModelConfig(name=SPEC.name, **sizes),
        data=dataclasses.replace(data, **fields.pop("data", {})),
        optim=OptimConfig(warmup_epochs=0.0, **fields.pop("optim", {})),
        checkpoint=CheckpointConfig(),
        **{"num_epochs": 4.0, **fields},
    )


def save(workdir, names, config=None, feeding=FEEDING, count=3):
    spec = dataclasses.replace(SPEC, num_classes=count)
    described = ModelDescription(spec, feeding, names).to_json()
    if config is not None:
        described["config"] = dataclasses.asdict(config)
    checkpoints = Checkpoints(workdir / "checkpoints", best_metric="none")
    params = random_params(spec.abstract_params(), 3)
    checkpoints.save(6, {"params": params, "ema": params}, described)
    checkpoints.close()
    return workdir


def build(config, workdir):
    return builders.build_run(config, Stopwatch(), epath.Path(workdir / "checkpoints"))


def labels_by_grey(run):
    """Which label the images of a grey come with, in the first batches of training."""
    found = {}
    with run.batches(0) as batches:
        for _ in range(3):
            batch = next(batches)
            for image, label in zip(batch["image"], batch["label"], strict=True):
                found.setdefault(int(np.median(image)), set()).add(int(label))
    assert all(len(labels) == 1 for labels in found.values())
    return {grey: labels.pop() for grey, labels in found.items()}


def evaluated(capsys, *arguments):
    evaluate.main([*map(str, arguments), "--dataset", "folder", "--split", "val", "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "names", [("flower", "temple", "three"), ("three", "flower", "temple")], ids=str
)
def test_an_evaluation_matches_classes_by_name(names, images, tmp_path, capsys):
    save(tmp_path, names)
    loaded = load(tmp_path)
    files = {name: sorted((images / "val" / name).iterdir())[0] for name in COUNTS}
    predictor = Predictor(loaded.model, loaded.preprocessing, names)
    right = {name: predictor.predict([file], 1)[0].names[0] == name for name, file in files.items()}
    result = evaluated(capsys, "--checkpoint", tmp_path, "--data_dir", images)
    expected = sum(COUNTS[name] for name in COUNTS if right[name]) / sum(COUNTS.values())
    assert result["top1"] == expected and result["num_examples"] == 48
    assert ("another order" in "".join(result["notes"])) == (names != tuple(COUNTS))


def test_an_evaluation_on_other_classes_is_refused(others, tmp_path, capsys):
    save(tmp_path, tuple(COUNTS))
    with pytest.raises(SystemExit) as stopped:
        evaluated(capsys, "--checkpoint", tmp_path, "--data_dir", others)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "(`temple`, `three`, `zebra`)" in said and "(`flower`, `temple`, `three`)" in said


def test_classes_without_names_are_taken_in_order_and_the_result_says_so(images, tmp_path, capsys):
    save(tmp_path, None)
    result = evaluated(capsys, "--checkpoint", tmp_path, "--data_dir", images)
    assert "has no names for them" in result["notes"][0]


@pytest.mark.parametrize("own", [True, False], ids=["resumed", "init_from"])
def test_a_run_keeps_the_labels_of_its_weights(own, images, tmp_path):
    names = ("three", "flower", "temple")
    save(tmp_path / "old", names, config(images))
    if own:
        run = build(config(images), tmp_path / "old")
    else:
        run = build(config(images, init_from=str(tmp_path / "old")), tmp_path / "new")
    assert run.description["class_names"] == list(names)
    assert labels_by_grey(run) == {GREYS[name]: label for label, name in enumerate(names)}
    assert "matched by their names" in run.plan


def test_a_run_on_other_classes_is_refused(others, images, tmp_path):
    save(tmp_path / "old", tuple(COUNTS), config(images))
    with pytest.raises(InputError, match="the run in .* only dataset `folder` has `zebra`"):
        build(config(others), tmp_path / "old")
    start = config(others, init_from=str(tmp_path / "old"))
    with pytest.raises(InputError, match="`init_from` .* `zebra`.*init_head=False"):
        build(start, tmp_path / "new")
    run = build(dataclasses.replace(start, init_head=False), tmp_path / "new")
    assert run.description["class_names"] == ["temple", "three", "zebra"]
    assert "the head is new, for 3 classes" in run.plan


def test_weights_for_another_number_of_classes_get_a_new_head_that_is_named(images, tmp_path):
    save(tmp_path / "old", tuple("abcde"), count=5)
    run = build(config(images, init_from=str(tmp_path / "old")), tmp_path / "new")
    assert run.description["class_names"] == list(COUNTS)
    assert "the head is new, for 3 classes instead of that for 5" in run.plan


@pytest.mark.parametrize("own", [True, False], ids=["resumed", "init_from"])
def test_images_are_normalised_as_for_the_weights(own, images, tmp_path):
    save(tmp_path / "old", tuple(COUNTS), config(images))
    place = tmp_path / ("old" if own else "new")
    run = build(config(images, init_from=str(tmp_path / "old")), place)
    assert tuple(run.description["preprocessing"]["mean"]) == CLIP_MEAN
    assert tuple(run.description["preprocessing"]["std"]) == CLIP_STD
    assert own or f"normalised as for these weights: mean {CLIP_MEAN}" in run.plan


def test_another_batch_does_not_go_on(images, tmp_path):
    save(tmp_path, tuple(COUNTS), config(images))
    with pytest.raises(InputError, match=r"`data.global_batch` \(=8\) must stay 16.*init_from"):
        build(config(images, data={"global_batch": 8}), tmp_path)


def test_a_frozen_backbone_stays_so_and_is_named(images, tmp_path):
    frozen = config(images, optim={"freeze": "backbone"})
    plan = build(frozen, tmp_path / "new").plan
    assert "frozen (backbone): " in plan and "which are random: there is no `init_from`" in plan
    save(tmp_path / "old", tuple(COUNTS), config(images))
    with pytest.raises(
        InputError, match=r"`optim.freeze` \(=backbone\) must stay empty.*init_from"
    ):
        build(frozen, tmp_path / "old")
    start = config(images, optim={"freeze": "backbone"}, init_from=str(tmp_path / "old"))
    assert "are random" not in build(start, tmp_path / "probe").plan


def test_a_longer_run_says_what_becomes_of_the_schedule(images, tmp_path):
    save(tmp_path, tuple(COUNTS), config(images, num_epochs=2.0))
    assert "schedule" not in build(config(images, num_epochs=2.0), tmp_path).plan
    plan = build(config(images, num_epochs=4.0), tmp_path).plan
    # The old one ended there, so the new one is in the middle of its cosine from 4e-3 to 1e-6.
    assert (
        "the schedule now ends after step 12, and ended after step 6: it is drawn anew over the"
        " whole run, and after step 6 the learning rate is 0.002 instead of 1e-06"
    ) in plan


def test_every_command_takes_the_average_and_says_so(images, tmp_path, capsys):
    raw, average = (random_params(SPEC.abstract_params(), seed) for seed in (1, 2))
    metrics = {"eval_ema_top1": 0.5, "eval_params_top1": 0.1}
    save_run(
        tmp_path,
        {
            1: ({"params": raw, "ema": average}, metrics),
            2: ({"params": raw, "ema": raw}, {"eval_ema_top1": 0.4, "eval_params_top1": 0.9}),
        },
        SPEC,
        FEEDING,
        tuple(COUNTS),
    )
    for options, parameters, seed in [
        ({"step": "1"}, "ema", average),
        ({"step": "best"}, "ema", average),
        ({"step": "1", "ema": False}, "params", raw),
    ]:
        found = find(tmp_path, **options)
        assert found.parameters == parameters
        jax.tree.map(np.testing.assert_array_equal, found.on_host(), seed)
    place = ("--checkpoint", tmp_path, "--data_dir", images)
    default = evaluated(capsys, *place, "--step", "best")
    assert default["step"] == 1 and default["parameters"] == "ema"
    assert evaluated(capsys, *place, "--step", "best", "--no-ema")["step"] == 2
    evaluate.main([*map(str, place), "--dataset", "folder", "--split", "val"])
    assert f"step 2 of {tmp_path} (moving average), on 48 images" in capsys.readouterr().out
