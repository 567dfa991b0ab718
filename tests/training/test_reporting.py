"""Records across kills, and the summary made of them."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from convnext_jax.classification.task import METRIC
from convnext_jax.errors import RunError
from convnext_jax.training import summary
from convnext_jax.training.reporting import Reporter, read_records

TRAINING = {
    "epoch": 1.0,
    "loss": 2.0,
    "learning_rate": 0.1,
    "images_per_second": 10.0,
    "data_wait_fraction": 0.5,
}


def evaluation(top1):
    return {"params": {"top1": top1, "top5": 1.0, "loss": 0.1, "num_examples": 9, "num_skipped": 0}}


def record(workdir, start_step, steps):
    reporter = Reporter(
        workdir, start_step=start_step, total_steps=9, metric=METRIC, tensorboard=False
    )
    for step in steps:
        reporter.train(step, TRAINING | {"loss": float(step)})
    reporter.close()


def test_records_after_the_checkpoint_are_dropped(tmp_path, capsys):
    record(tmp_path, 0, [1, 2, 3, 4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut off by a kill
    record(tmp_path, 2, [3, 4, 5])
    assert [r["step"] for r in read_records(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert "step 5/9  epoch 1.0  loss 5.0000  lr 1.00e-01  10 images/s" in capsys.readouterr().out


def test_what_a_machine_that_went_down_left_ends_no_start(tmp_path, capsys):
    record(tmp_path, 0, [1, 2])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_bytes(
        b"\0\xff\0\n" + "\n".join([lines[0], lines[1][:20], lines[1], ""]).encode()
    )
    for name in ("config.json", "summary.json"):
        (tmp_path / name).write_text("")
    assert not summary.is_finished(tmp_path, 2)
    reporter = Reporter(tmp_path, start_step=2, total_steps=9, metric=METRIC, tensorboard=False)
    reporter.start({}, {"seed": 1})
    reporter.train(3, TRAINING)
    reporter.close()
    assert [r["step"] for r in read_records(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert "metrics.jsonl: 2 lines were no records and are dropped" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}


def test_tensorboard_events_hold_what_was_recorded(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.plugins.hparams import plugin_data_pb2
    from tensorboard.util import tensor_util

    reporter = Reporter(tmp_path, start_step=0, total_steps=2, metric=METRIC)
    config = {"seed": 3, "model": {"depths": [1, 2], "remat": False}, "init_from": None}
    reporter.start({"kernel": jnp.zeros((2, 3))}, config)
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)
    reporter.pictures(0, jnp.asarray(images))
    reporter.train(1, TRAINING)
    reporter.evaluation(2, 1.0, evaluation(0.5))
    reporter.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["tensors"]
    assert all(tag.split("/")[0] in ("train", "speed", "eval", "_hparams_") for tag in tags), tags
    (tensor,) = events.Tensors("eval/params_top1")
    assert (tensor.step, tensor_util.make_ndarray(tensor.tensor_proto)) == (2, 0.5)
    assert tensor_util.make_ndarray(events.Tensors("train/loss")[0].tensor_proto) == 2.0
    assert [event.step for event in events.Tensors("train/epoch")] == [1]
    # Width, height, and the images as PNG.
    _, _, *encoded = tensor_util.make_ndarray(events.Tensors("train/images")[0].tensor_proto)
    for found, image in zip(encoded, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found))), image)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert {name: value.WhichOneof("kind") for name, value in started.items()} == {
        "seed": "number_value",
        "model.depths": "string_value",
        "model.remat": "bool_value",
        "init_from": "string_value",
    }
    assert (started["seed"].number_value, started["model.depths"].string_value) == (3, "[1, 2]")


def test_a_full_disk_ends_the_run_in_one_sentence(tmp_path):
    reporter = Reporter(tmp_path, start_step=0, total_steps=2, metric=METRIC, tensorboard=False)
    reporter._records.close()
    reporter._records = open("/dev/full", "ab", buffering=0)
    with pytest.raises(RunError, match="recording step 1 in /dev/full failed: .*No space left"):
        reporter.train(1, TRAINING)


def test_summary_and_curves(tmp_path):
    reporter = Reporter(tmp_path, start_step=0, total_steps=6, metric=METRIC, tensorboard=False)
    for step, top1 in ((2, 0.5), (4, 0.8), (6, 0.7)):
        reporter.train(step, TRAINING | {"images_per_second": 10.0 * step})
        reporter.evaluation(step, step / 2, evaluation(top1))
    reporter.close()
    facts = {"model": "m", "dataset": "d", "eval_split": "test"}
    result = summary.write_summary(tmp_path, facts, METRIC)
    assert result == json.loads((tmp_path / "summary.json").read_text())
    assert (result["final"]["step"], result["best"]["step"]) == (6, 4)
    assert result["final"]["params"] == evaluation(0.7)["params"]
    assert result["images_per_second"] == 50  # the first record has the compilation
    line = summary.final_line(result, tmp_path, METRIC)
    assert "m on d: top-1 70.00% (raw parameters) on 9 images of `test` after 3 epochs" in line
    summary.write_curves(tmp_path, "title", METRIC)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
