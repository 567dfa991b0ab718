"""What a whole run takes, and how it is fed: arithmetic that can be done by hand."""

import dataclasses

import pytest

from convnext_jax.config import from_dict
from convnext_jax.planning.machines import parse_machine
from convnext_jax.planning.whole_run import EVALUATION_PAUSE, START_SECONDS, feeding, whole_run

V6E = parse_machine("v6e:16x16")  # 64 hosts of 180 hardware threads
PLAN = {
    "compute_seconds": 0.012,
    "step_seconds": 0.0125,
    "checkpoint_bytes": 400 * 10**6,
    "fsdp": 1,
}


def run(plan=PLAN, held_out=50_000, **values):
    config = from_dict({"num_epochs": 300.0} | values)
    return whole_run(config, config.steps(1_281_167), V6E, plan, held_out)


def test_parts_of_a_run():
    found = run()
    assert found["start"] == START_SECONDS
    assert found["steps"] == pytest.approx(93_600 * 0.0125)
    # Two sets of parameters, a third of the training's computing for an image.
    computing = 0.012 / 4096 / 3 * 50_000 * 2
    assert found["evaluation"] == pytest.approx(computing + EVALUATION_PAUSE)
    assert found["num_evaluations"] == found["num_saves"] == 300
    # 0.4 GB leave the chip at 8 GB/s; writing them goes on beside evaluation and training.
    assert found["save"] == pytest.approx(0.05)
    assert found["saves"] == pytest.approx(300 * 0.05)
    parts = sum(found[name] for name in ("start", "steps", "evaluations", "saves"))
    assert found["hours"] == pytest.approx(parts / 3600)
    # What the issue is about: the parts beside the steps are not small on a large slice.
    assert parts > 1.2 * found["steps"]


def test_evaluations_that_follow_the_config():
    assert run(eval_every_epochs=10.0)["num_evaluations"] == 30
    assert run(eval_every_epochs=0.7)["num_evaluations"] == 430  # 218 steps; 429.4 of them
    once = run(optim={"ema_decay": 0.0})["evaluation"] - EVALUATION_PAUSE
    assert once == pytest.approx((run()["evaluation"] - EVALUATION_PAUSE) / 2)
    more = run(checkpoint={"every_steps": 1000})
    assert (more["num_evaluations"], more["num_saves"]) == (300, 393)


def test_slow_decoding_takes_longer_than_computing():
    few = dataclasses.replace(V6E, size=4)  # one host
    config = from_dict({"num_epochs": 1.0, "optim": {"warmup_epochs": 0.0}})
    found = whole_run(config, config.steps(1_281_167), few, PLAN, 50_000)
    assert found["evaluation"] == pytest.approx(50_000 / (180 * 270) + EVALUATION_PAUSE)


@pytest.mark.parametrize(
    ("model", "training", "evaluating"),
    [
        ("convnext_tiny", 250, 270),
        ("upernet_convnext_tiny", 32, 37),
        ("cascade_mask_rcnn_convnext_tiny", 23, 19),
    ],
)
def test_rows_of_each_task_have_their_price(model, training, evaluating):
    one_host = dataclasses.replace(V6E, size=4)
    values = {"num_epochs": 1.0, "model": {"name": model}}
    config = from_dict(values | {"optim": {"warmup_epochs": 0.0, "ema_decay": 0.0}})
    steps = config.steps(1_281_167)
    found = whole_run(config, steps, one_host, PLAN | {"compute_seconds": 0.0}, 5_000)
    assert found["input"] == 180 * training
    assert found["evaluation"] == pytest.approx(5_000 / (180 * evaluating) + EVALUATION_PAUSE)


def test_a_save_that_is_not_written_before_the_next_is_waited_for():
    large = run(PLAN | {"checkpoint_bytes": 5 * 10**9})
    between = 312 * 0.0125  # seconds of an epoch's steps
    assert large["write"] == 10
    assert large["save"] == pytest.approx(5 / 8 + 10 - between - large["evaluation"])
    # Sixteen chips share a state: four hosts write it.
    split = run(PLAN | {"checkpoint_bytes": 5 * 10**9, "fsdp": 16})
    assert split["write"] == 2.5 and split["save"] == pytest.approx(5 / 8 / 4)


IMAGENET = (144 * 10**9, 1024)
IMAGENET22K = (1310 * 10**9, 2048)


def test_where_data_is_best():
    found = feeding(V6E, "classification", 325_000, *IMAGENET, 1_281_167)
    assert found["needed"] == pytest.approx(325_000 / 64)
    assert found["decoded"] == 180 * 250
    # 64 hosts share 25 GB/s, of images of 112 kB: 36 GB/s would be needed.
    assert found["bucket"] == pytest.approx(25e9 / 64 / 144e9 * 1_281_167)
    assert found["bucket"] < found["needed"]
    assert found["copy_seconds"] == pytest.approx(64 * 144 / 25)
    # 180 processes open 1,024 shards with 1.16 MB each, through the same 25 GB/s.
    assert found["opening_seconds"] == pytest.approx(64 * 180 * 1024 * 1.16e-3 / 25)
    assert found["best"] == "memory"


def test_a_few_hosts_have_what_a_host_can_copy():
    # Four of them.
    found = feeding(
        parse_machine("v5e:4x4"), "classification", 17_000, *IMAGENET, 1_281_167
    )  # 4 hosts
    assert found["copy_seconds"] == pytest.approx(144)
    # One round trip of 40 ms for each of 224 reads under way; bandwidth would give 8,900.
    assert found["bucket"] == pytest.approx(5600)
    # Four round trips for each of 1,024 shards, one after another.
    assert found["opening_seconds"] == pytest.approx(1024 * 0.16)


def test_what_no_memory_holds():
    bucket = feeding(V6E, "classification", 77_000, *IMAGENET22K, 14_147_122)
    assert bucket["bucket"] > bucket["needed"] and bucket["best"] == "bucket"
    assert feeding(V6E, "classification", 325_000, *IMAGENET22K, 14_147_122)["best"] == "disk"
