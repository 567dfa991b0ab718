"""The data or the place of the checkpoints is lost in the middle of a run, and comes back."""

import shutil
import subprocess
import time

import pytest
from e2e import commands
from e2e.test_bad_input import refused

from convnext_jax.checkpointing.steps import completed_steps

STEPS = 60
OVERRIDES = (
    *commands.TINY,
    "--config.log_every_steps=1",
    "--config.eval_every_epochs=100",
    "--config.checkpoint.every_steps=5",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "digits"
    commands.write_digit_folders(folder, count=80)
    return folder


def on_images(images, workers):
    return (
        *OVERRIDES,
        *commands.on_folders(images),
        f"--config.num_steps={STEPS}",
        f"--config.data.workers={workers}",
        # Few batches are read ahead of the steps.
        "--config.data.threads=1",
    )


@pytest.fixture(scope="module")
def whole(folders, images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    commands.train(workdir, commands.environment(*folders), *on_images(images, workers=0))
    return workdir


@pytest.mark.slow  # data/test_read_errors.py has it without a whole run
@pytest.mark.parametrize("workers", [0, 1])
def test_the_data_directory_is_lost(workers, images, whole, env, tmp_path):
    overrides, broken = on_images(images, workers), tmp_path / "broken"
    process = subprocess.Popen(
        commands.train_command(broken, *overrides),
        env=env,
        cwd=commands.ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    commands.wait_for([process], lambda: commands.last_step(broken) >= 6)
    images.rename(tmp_path / "elsewhere")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    (line,) = errors.splitlines()
    assert line.startswith("error: ") and str(images) in line and ".png" in line
    saved = completed_steps(broken / "checkpoints")
    assert 5 <= max(saved) < STEPS
    assert not [p for p in (broken / "checkpoints").iterdir() if "tmp" in p.name]

    refused(commands.run(commands.train_command(broken, *overrides), env), 2, str(images))
    (tmp_path / "elsewhere").rename(images)
    assert "resuming after step" in commands.train(broken, env, *overrides).stdout
    commands.assert_identical(broken, whole, STEPS)


def test_the_checkpoints_become_read_only(env, tmp_path):
    # In a mount namespace of its own, so that no rights are needed and nothing is left mounted.
    disk = tmp_path / "disk"
    disk.mkdir()
    command = commands.train_command(
        tmp_path / "run",
        *OVERRIDES,
        f"--config.checkpoint.dir={disk}/checkpoints",
        "--config.num_steps=400",
    )
    train = subprocess.list2cmdline(f"'{argument}'" for argument in command)
    evaluate = [*command[:2], "convnext_jax.evaluate", "--checkpoint", f"{disk}/checkpoints"]
    script = f"""
        mount -t tmpfs -o size=50m tmpfs {disk}
        {train} 2> {tmp_path}/first &
        until [ -d {disk}/checkpoints/10 ]; do sleep 0.01; done
        # Not while a file is open for writing.
        until mount -o remount,ro {disk} 2> /dev/null; do sleep 0.001; done
        wait $!; echo first status $?
        {train} 2> {tmp_path}/second; echo second status $?
        ls {disk}/checkpoints
        {subprocess.list2cmdline(evaluate)}
    """
    result = commands.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script], env)
    said = result.stdout + result.stderr
    assert "first status 1" in said, said + (tmp_path / "first").read_text()
    (line,) = (tmp_path / "first").read_text().splitlines()
    assert line.startswith("error: saving step ") and "Read-only file system" in line
    assert "is complete and usable" in line
    assert "second status 2" in said, said + (tmp_path / "second").read_text()
    (line,) = (tmp_path / "second").read_text().splitlines()
    assert line.startswith("error: ") and f"{disk}/checkpoints" in line
    assert "Read-only file system" in line
    assert "on 360 images" in said  # the newest checkpoint can still be read
    assert result.returncode == 0


@pytest.mark.slow  # training/test_loop.py has it without a whole run
def test_the_machine_is_lost_and_the_checkpoints_are_not(env, tmp_path):
    # Another directory stands in for a bucket; those are in test_buckets.py.
    bucket = tmp_path / "bucket"
    overrides = (
        *commands.TINY,
        "--config.num_steps=12",
        "--config.log_every_steps=1",
        "--config.eval_every_epochs=0.2",  # 4 steps
        f"--config.checkpoint.dir={bucket}",
    )
    commands.train(tmp_path / "first", env, *overrides)
    again = commands.train(tmp_path / "second", env, *overrides).stdout
    assert "this run was finished before, at step 12; nothing to do" in again
    for name in ("metrics.jsonl", "summary.json", "curves.png", "config.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()

    # As checkpoints of earlier versions are, and of runs whose records could not be copied.
    shutil.rmtree(bucket / "records")
    again = commands.train(tmp_path / "third", env, *overrides).stdout
    assert "the records of its training are lost" in again and "after 0.545455 epochs" in again
    (record,) = commands.records(tmp_path / "third")
    assert record == commands.records(tmp_path / "first")[-1]
    assert not (tmp_path / "third" / "curves.png").exists()


def test_checkpoints_that_processes_do_not_share(env, tmp_path):
    # Each process has a disk of its own at the same path, in a mount namespace of its own.
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = commands.train_command(
        tmp_path / "run", *OVERRIDES, f"--config.checkpoint.dir={disk}/checkpoints"
    )
    train = subprocess.list2cmdline(f"'{argument}'" for argument in arguments)
    script = f"mount -t tmpfs -o size=50m tmpfs {disk}; {train}"
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    began = time.monotonic()
    ends = commands.end_of(commands.start_together(command, env, 2), timeout=120)
    assert [status for status, *_ in ends] == [2, 2], ends
    # Two seconds of it are the patience with a disk; the rest is what every start takes.
    assert time.monotonic() - began < 100
    for _, _, errors in ends:
        (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
        assert f"`checkpoint.dir` (={disk}/checkpoints) must be one place for all" in line
