"""Whole runs whose checkpoints are in a bucket, with the client libraries that users have."""

import shutil
import signal
import sys

import pytest
from e2e import commands
from object_store import ObjectStore

pytestmark = pytest.mark.slow  # each command imports TensorFlow, which reads and writes `gs://`

STEPS = 24
OVERRIDES = (
    *commands.TINY,
    f"--config.num_steps={STEPS}",
    "--config.log_every_steps=1",
    "--config.checkpoint.every_steps=5",
    "--config.eval_every_epochs=0.6",  # 13 steps
)
RUN = "gs://runs/in1k"


@pytest.fixture
def store(tmp_path):
    store = ObjectStore("runs", tmp_path)
    yield store
    store.close()


@pytest.fixture
def online(env, store):
    return env | store.environment()


def downloaded(store, workdir):
    """A workdir with the checkpoints of the bucket."""
    for name in store.names("in1k/"):
        path = workdir / "checkpoints" / name.removeprefix("in1k/")
        if not name.endswith("/"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.objects[name].data)
    return workdir


def complete(store, step):
    return f"in1k/{step}/commit_success.txt" in store.objects


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_in_a_bucket_survives_all_that_one_on_a_disk_does(count, store, online, tmp_path):
    bucket = f"--config.checkpoint.dir={RUN}"
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    ends = commands.end_of(commands.start_processes(whole, online, count, *OVERRIDES))
    assert [status for status, *_ in ends] == [0] * count, ends

    # Killed while it saves, after a while in which the store fails now and then.
    processes = commands.start_processes(lost, online, count, *OVERRIDES, bucket)
    commands.wait_for(processes, lambda: complete(store, 5))
    store.failures = 3
    commands.wait_for(processes, lambda: store.names("in1k/15/"))
    for process in processes:
        process.send_signal(signal.SIGKILL)
    commands.end_of(processes)
    # Its machine is lost with it.
    shutil.rmtree(lost)
    found = tmp_path / "found"
    ends = commands.end_of(commands.start_processes(found, online, count, *OVERRIDES, bucket))
    assert [status for status, *_ in ends] == [0] * count, ends
    assert "resuming after step 1" in ends[0][1]
    assert store.failed == 3

    commands.assert_identical(downloaded(store, tmp_path / "copy"), whole, STEPS)
    assert commands.losses(found) == commands.losses(whole)
    # What the killed save left is gone, and so are the steps that were not worth keeping.
    steps = {name.split("/")[1] for name in store.names("in1k/")}
    assert {step for step in steps if step.isdigit()} <= {"13", "20", "24"}
    assert all(complete(store, step) for step in steps if step.isdigit())


@pytest.fixture
def trained(store, online, tmp_path):
    bucket = f"--config.checkpoint.dir={RUN}"
    commands.train(tmp_path / "run", online, *OVERRIDES, bucket)
    return tmp_path / "run"


def test_every_command_takes_a_bucket(trained, store, online, tmp_path):
    folder = tmp_path / "images"
    commands.write_digit_folders(folder, 10)
    image = str(next(folder.rglob("*.png")))
    for arguments in (
        ["convnext_jax.evaluate", "--checkpoint", RUN],
        ["convnext_jax.evaluate", "--checkpoint", RUN, "--step", "best"],
        ["convnext_jax.predict", "--checkpoint", RUN, image],
        ["convnext_jax.convert", RUN, str(tmp_path / "out.safetensors"), "--to", "timm"],
    ):
        store.failures = 2
        result = commands.run([sys.executable, "-m", *arguments], online)
        assert result.returncode == 0, (arguments, result.stdout, result.stderr)
    start = (f"--config.init_from={RUN}", *commands.TINY, "--config.num_steps=2")
    assert "step 2/2" in commands.train(tmp_path / "tuned", online, *start).stdout
