"""Several processes are one run: the same numbers, one end, and one place to stop."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from e2e import commands
from flax import nnx

from convnext_jax.checkpointing.manager import Checkpoints
from convnext_jax.models.spec import ModelDescription, ModelSpec, params_of
from convnext_jax.models.variants import Preprocessing

STEPS = 30
OVERRIDES = (
    *commands.TINY,
    f"--config.num_steps={STEPS}",
    "--config.log_every_steps=1",
    "--config.log_batch_hashes=True",
    "--config.checkpoint.every_steps=8",
)


def assert_same_run(workdir, expected):
    assert commands.hashes(workdir) == commands.hashes(expected)
    found, wanted = commands.losses(workdir), commands.losses(expected)
    assert found.keys() == wanted.keys() == set(range(1, STEPS + 1))
    # The reasons are in test_devices.py: only the order of sums differs, and AdamW amplifies that.
    np.testing.assert_allclose(list(found.values())[:5], list(wanted.values())[:5], rtol=2e-6)
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-4)
    for name in ("top1", "top5", "num_examples"):
        key = f"eval_params_{name}"
        assert commands.records(workdir)[-1][key] == commands.records(expected)[-1][key]


def train(workdir, env, count, *overrides, devices=1):
    processes = commands.start_processes(
        workdir, env, count, *OVERRIDES, *overrides, devices=devices
    )
    ends = commands.end_of(processes)
    assert [status for status, *_ in ends] == [0] * count, ends
    return ends


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The override by which runs start from a checkpoint of ours, and the checkpoint."""
    workdir = tmp_path_factory.mktemp("start")
    spec = ModelSpec(
        "convnext_atto", 10, {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64), "kernel_size": 3}
    )
    checkpoints = Checkpoints(workdir / "checkpoints", best_metric="none")
    described = ModelDescription(spec, Preprocessing()).to_json()
    checkpoints.save(0, {"params": params_of(spec.create(nnx.Rngs(7)))}, described)
    checkpoints.close()
    return f"--config.init_from={workdir}"


@pytest.fixture(scope="module")
def one_process(start, folders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    commands.train(workdir, commands.environment(*folders, devices=4), *OVERRIDES, start)
    assert len(set(commands.hashes(workdir).values())) == STEPS  # they tell batches apart
    return workdir


@pytest.mark.parametrize(
    "count, devices, fsdp",
    [
        (2, 2, 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(2, 2, 1), (4, 1, 1), (4, 1, 2)]
        ),
    ],
)
def test_processes_give_the_run_of_one(count, devices, fsdp, start, one_process, env, tmp_path):
    ends = train(tmp_path, env, count, start, f"--config.mesh.fsdp={fsdp}", devices=devices)
    assert_same_run(tmp_path, one_process)
    assert f"{count} process(es)" in ends[0][1]
    assert ("over fsdp" in ends[0][1]) == (fsdp > 1)
    for _, printed, _ in ends[1:]:
        assert "step" not in printed  # only the first reports


@pytest.mark.slow  # `make chaos` has it
@pytest.mark.parametrize("later, devices", [(1, 4), (4, 1)])
def test_a_preempted_run_goes_on_with_another_number_of_processes(
    later, devices, start, one_process, env, tmp_path
):
    # Replicated, where the test above splits over fsdp.
    processes = commands.start_processes(tmp_path, env, 2, *OVERRIDES, start, devices=2)
    commands.wait_for(processes, lambda: commands.last_step(tmp_path) >= 10)
    processes[1].send_signal(signal.SIGTERM)  # one is told, both leave
    ends = commands.end_of(processes)
    assert [status for status, *_ in ends] == [75, 75], ends
    for _, _, errors in ends:
        assert "preempted after step" in errors and "goes on from there" in errors
    ends = train(tmp_path, env, later, devices=devices)
    assert "resuming after step" in ends[0][1]
    assert_same_run(tmp_path, one_process)


def test_an_error_in_one_process_ends_all_with_its_sentence(env, tmp_path):
    images = tmp_path / "images"
    commands.write_digit_folders(images, count=80)
    broken = sorted((images / "train").glob("*/*.png"))[5]
    broken.write_bytes(broken.read_bytes()[:60])
    processes = commands.start_processes(
        tmp_path / "run",
        env,
        2,
        *commands.TINY,
        *commands.on_folders(images),
        "--config.num_epochs=30",
        "--config.eval_every_epochs=10",
    )
    ends = commands.end_of(processes, timeout=120)
    assert [status for status, *_ in ends] == [2, 2], ends
    sentences = [
        [line for line in errors.splitlines() if line.startswith("error: ")]
        for _, _, errors in ends
    ]
    assert all(len(lines) == 1 and broken.name in lines[0] for lines in sentences), sentences
    # One read the image; the other says who did.
    assert sum("error: process " in lines[0] for lines in sentences) == 1, sentences


def test_who_loses_a_peer_asks_to_be_started_again(env, tmp_path):
    # As many steps as in test_local_training.py: the programs are the same.
    processes = commands.start_processes(tmp_path, env, 2, *OVERRIDES, "--config.num_steps=100000")
    commands.wait_for(processes, lambda: commands.last_step(tmp_path) >= 3)
    processes[1].kill()
    (status, _, errors), _ = commands.end_of(processes, timeout=60)
    # Whichever notices first: our own code, or JAX's coordination service, which aborts.
    assert status in (76, -6), errors
    if status == 76:
        assert "error: the processes lost each other, perhaps because one was killed" in errors


@pytest.mark.slow  # the runs of two processes above evaluate too
def test_an_evaluation_by_two_processes_is_that_of_one(one_process, env, tmp_path):
    command = [sys.executable, "-m", "convnext_jax.evaluate", "--checkpoint", str(one_process)]
    command += ["--json", "--confusion"]
    alone = commands.run([*command, str(tmp_path / "alone.csv")], env)
    ends = commands.end_of(commands.start_together([*command, str(tmp_path / "two.csv")], env, 2))
    assert [status for status, *_ in ends] == [0, 0], ends
    assert "{" not in ends[1][1]  # only the first reports; Gloo greets on stdout
    found, wanted = json.loads(ends[0][1].splitlines()[-1]), json.loads(alone.stdout)
    # The loss is a mean of float32, whose sum depends on the devices; the rest is counted.
    np.testing.assert_allclose(found.pop("loss"), wanted.pop("loss"), rtol=1e-5)
    assert found == wanted and found["num_examples"] == 360
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "alone.csv").read_text()


def test_variables_that_are_incomplete_are_one_sentence(env, tmp_path):
    result = commands.run(
        commands.train_command(tmp_path / "run"), env | {"JAX_NUM_PROCESSES": "2"}
    )
    assert result.returncode == 2
    assert "missing: JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID" in result.stderr


def test_a_process_whose_peers_do_not_come_says_so(env):
    program = "from convnext_jax import processes; processes._WAITING_SECONDS = 1; processes.join()"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=env
        | {
            "JAX_COORDINATOR_ADDRESS": "localhost:1",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": "1",
        },
        cwd=commands.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == (
            "process 1 of 2, localhost:1: still waiting for the other processes of this run\n"
        )
    finally:
        process.kill()
        process.communicate()
