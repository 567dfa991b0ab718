"""What cannot work ends in one sentence and a status, and leaves nothing half done."""

import json
import re
import subprocess
import sys

import pytest
from e2e import commands

from convnext_jax.checkpointing.steps import completed_steps


def refused(result, status, *fragments):
    """Checks that a command ended with `status` and one line on stderr that has the fragments."""
    assert result.returncode == status, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for fragment in fragments:
        assert fragment in line


@pytest.mark.parametrize(
    "arguments, fragments",
    [
        (["--config.optim.lrr=1"], ["`optim.lrr`", "did you mean optim.lr"]),
        (["--config.optim.lr=fast"], ["config.optim.lr", "fast"]),
        (["--config.optim.lr=-1"], ["`optim.lr` (=-1.0) must be positive"]),
        (["--config.model.name=convnext_tinny"], ["convnext_tinny", "did you mean convnext_tiny"]),
        (["--config.model.dtype=float64"], ["`model.dtype` (='float64')"]),
        (["--config.data.global_batch=60"], ["`data.global_batch` (=60)", "devices (=8)"]),
        (["--config.data.eval_batch=60"], ["`data.eval_batch` (=60)", "devices (=8)"]),
        (["--config.data.global_batch=2000"], ["(=2000) must be at most", "(=1437)"]),
        (["--config.mesh.fsdp=3"], ["`mesh.fsdp` (=3)", "devices (=8)"]),
        (["--config.data.name=cifar10"], ["python -m convnext_jax.data.prepare cifar10"]),
        (["--config.data.name=digitz"], ["digitz", "digits"]),
        (["--config.data.eval_split=val"], ["split `val`", "test (360)"]),
        (["--config.data.dir=/dev/null/tfds"], ["/dev/null/tfds", "Not a directory"]),
        (["--confg=x"], ["confg"]),
        (["surplus"], ["surplus"]),
    ],
)
def test_arguments_that_cannot_be_used(arguments, fragments, folders, tmp_path):
    env = commands.environment(*folders, devices=8)
    workdir = tmp_path / "run"
    refused(commands.run(commands.train_command(workdir, *arguments), env), 2, *fragments)
    assert not workdir.exists()


@pytest.mark.parametrize(
    "config, fragments",
    [
        ("configs/digit.py", ["`--config` (=configs/digit.py)"]),
        ("configs/imagenet1k.py:tinny", ["tinny", "did you mean tiny"]),
    ],
)
def test_configs_that_cannot_be_used(config, fragments, env, tmp_path):
    result = commands.run(commands.train_command(tmp_path / "run", config=config), env)
    refused(result, 2, *fragments)


def test_workdirs_that_cannot_be_used(env, tmp_path):
    (tmp_path / "file").write_text("")
    result = commands.run(commands.train_command(tmp_path / "file" / "run"), env)
    refused(result, 2, "`--workdir`", "Not a directory")
    result = commands.run(commands.train_command("/proc/run"), env)
    refused(result, 2, "`--workdir` (=/proc/run)")


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory):
    """A short run, for commands that need one."""
    workdir = tmp_path_factory.mktemp("finished")
    commands.train(workdir, commands.environment(*folders), *commands.TINY, "--config.num_steps=4")
    return workdir


def test_a_workdir_of_another_model(finished, env):
    before = sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*") if p.is_file())
    other = ("--config.model.depths=(1,1,1,1)", "--config.model.dims=(8,16,32,48)")
    result = commands.run(commands.train_command(finished, *other, "--config.num_steps=8"), env)
    refused(result, 2, "another model", "`downsample_layers/3/1/bias` has shape (64,), not (48,)")
    assert before == sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "arguments, fragments",
    [
        (["--config.model.name=convnext_femto"], ["of convnext_femto, and has", "convnext_atto"]),
        (["--config.model.kernel_size=5"], ["do not fit convnext_atto", "(3, 3, 1, 8)"]),
        (["--config.init_from=nowhere"], ["nowhere"]),
    ],
)
def test_initial_weights_of_another_model(arguments, fragments, finished, env, tmp_path):
    start = [*commands.TINY, f"--config.init_from={finished}", *arguments]
    result = commands.run(commands.train_command(tmp_path / "run", *start), env)
    refused(result, 2, "`init_from`", *fragments)


@pytest.mark.parametrize(
    "arguments, fragments",
    [
        (["--checkpoint", "nowhere"], ["there is no file or folder nowhere"]),
        (["--step", "3"], ["step (=3)", "4"]),
        (["--split", "val"], ["split `val`"]),
        (["--dataset", "mnist"], ["python -m convnext_jax.data.prepare mnist"]),
        (["--batch_size", "0"], ["`data.eval_batch` (=0) must be positive"]),
    ],
)
def test_evaluations_that_cannot_be_done(arguments, fragments, finished, env):
    command = [sys.executable, "-m", "convnext_jax.evaluate", "--checkpoint", str(finished)]
    refused(commands.run(command + arguments, env), 2, *fragments)


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_checkpoint(env, tmp_path):
    # The first step has rate 0, the second one not.
    overrides = (*commands.TINY, "--config.optim.lr=1e38", "--config.checkpoint.every_steps=1")
    result = commands.run(commands.train_command(tmp_path, *overrides), env)
    refused(result, 1, "of step 2 is ", "must be finite; step 1 is the last good checkpoint")
    assert completed_steps(tmp_path / "checkpoints") == [1]


def test_a_full_disk_while_saving_leaves_the_previous_checkpoint_usable(env, tmp_path):
    # In a mount namespace of its own, so that no rights are needed and nothing is left mounted. A
    # checkpoint takes 1.2 MB, and the third comes before the first is deleted.
    train = commands.train_command(
        tmp_path / "disk" / "run",
        *commands.TINY,
        "--config.num_steps=40",
        "--config.checkpoint.every_steps=10",
        "--config.optim.warmup_epochs=0",
    )
    evaluate = [sys.executable, "-m", "convnext_jax.evaluate", "--json"]
    evaluate += ["--checkpoint", str(tmp_path / "disk" / "run")]
    (tmp_path / "disk").mkdir()
    script = f"""
        mount -t tmpfs -o size=3700k tmpfs {tmp_path}/disk
        {subprocess.list2cmdline([f"'{a}'" for a in train])} 2> {tmp_path}/errors; echo status $?
        ls {tmp_path}/disk/run/checkpoints
        {subprocess.list2cmdline(evaluate)}
    """
    result = commands.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script], env)
    assert "status 1" in result.stdout, result.stdout + result.stderr
    (line,) = (tmp_path / "errors").read_text().splitlines()
    assert re.match(
        r"error: saving step 30 to .* failed \(.*2 MiB are needed, and 1 MiB are free.*\);"
        r" step 20 is complete and usable",
        line,
    )
    assert "checkpoint-tmp" not in result.stdout  # nothing half-written
    evaluated = json.loads(result.stdout.splitlines()[-1])
    assert (evaluated["step"], evaluated["num_examples"]) == (20, 360)
