"""The path of ImageNet, from the archives to evaluated weights, in miniature."""

import json
import re
import sys

import pytest
from data import ilsvrc
from data.synthetic import write_odd
from e2e import commands
from PIL import Image

from convnext_jax.checkpointing.manager import completed_steps


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return ilsvrc.prepared_imagenet(tmp_path_factory.mktemp("imagenet"), train_per_class=6)


def test_two_steps_and_an_exact_evaluation(prepared, folders, tmp_path):
    data_dir, archives = prepared
    env = commands.environment(*folders)
    workdir = tmp_path / "run"
    commands.train(
        workdir,
        env,
        f"--config.data.dir={data_dir}",
        "--config.model.name=convnext_atto",
        "--config.num_steps=2",
        "--config.log_every_steps=1",
        "--config.data.global_batch=16",
        "--config.data.per_device_batch=8",
        "--config.data.eval_batch=16",
        config="configs/imagenet1k.py",
    )
    assert len(archives.validation) % 16
    (*training, evaluation) = commands.records(workdir)
    assert [r["step"] for r in training] == [1, 2]
    for which in ("params", "ema"):
        assert evaluation[f"eval_{which}_num_examples"] == len(archives.validation)
    # A thousand classes, smoothed labels, weights near zero: the loss of guessing, ln 1000 = 6.91.
    assert training[0]["loss"] == pytest.approx(6.91, abs=0.3)

    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["dataset"] == "imagenet2012"
    assert completed_steps(workdir / "checkpoints") == [2]

    # Again, from the checkpoint alone, and with another batch.
    command = [sys.executable, "-m", "convnext_jax.evaluate", "--checkpoint", str(workdir)]
    result = commands.run([*command, "--ema", "--json", "--batch_size", "7"], env)
    assert result.returncode == 0, result.stderr
    again = json.loads(result.stdout)
    assert again["num_examples"] == len(archives.validation)
    assert again["top1"] == evaluation["eval_ema_top1"]
    # float32 sums in another order.
    assert again["loss"] == pytest.approx(evaluation["eval_ema_loss"], rel=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_ends_the_run_with_its_name(workers, folders, tmp_path):
    good = ilsvrc.encode(Image.new("RGB", (40, 40)), "rgb")
    images = [good] * 5 + [good[: len(good) // 2]] + [good] * 2
    write_odd(
        tmp_path,
        [{"image": x, "label": i % 3, "file_name": f"{i}.jpg"} for i, x in enumerate(images)],
    )
    overrides = (
        f"--config.data.dir={tmp_path}",
        "--config.data.name=odd",
        "--config.data.eval_split=train",
        "--config.data.global_batch=8",
        f"--config.data.workers={workers}",
        "--config.num_steps=1",
    )
    command = commands.train_command(tmp_path / "run", *commands.TINY, *overrides)
    result = commands.run(command, commands.environment(*folders))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    # TFDS shuffles when it writes, so the record's number is not the image's.
    assert re.match(
        r"error: the image in record \d of dataset `odd`, split `train` \(5.jpg\) cannot be",
        line,
    )
