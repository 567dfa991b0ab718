"""launch/local.sh with the program itself: two processes train on digits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_commands import LAUNCH, ROOT, run

# A model that compiles and trains in seconds.
TINY = ("--config.model.depths=(1,1,1,1)", "--config.model.dims=(8,16,32,64)")


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "JAX_"))}
    return inherited | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
    }


def command(workdir, *overrides):
    return [
        *(str(LAUNCH / "local.sh"), "2", "--config", "configs/digits.py", "--workdir"),
        *(str(workdir), "--config.tensorboard=False", "--config.log_every_steps=1"),
        *(*TINY, *overrides),
    ]


def losses(workdir):
    """Training loss by step; fails if a step was written twice, as by two processes."""
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_two_processes_train_as_one(tmp_path, env):
    result = run(command(tmp_path / "two", "--config.num_steps=6"), env, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    alone = command(tmp_path / "one", "--config.num_steps=6")
    alone[1] = "1"
    assert run(alone, env, timeout=300).returncode == 0
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert list(two) == [1, 2, 3, 4, 5, 6]
    # The same batches; sums over other pieces, in float32, grow apart by rounding.
    assert two == pytest.approx(one, rel=1e-4)


def test_a_preempted_run_ends_with_75_and_goes_on_where_it_was(tmp_path, env):
    ends = []
    for _ in range(2):
        before = len(losses(tmp_path))
        with subprocess.Popen(
            command(tmp_path, "--config.num_steps=100000"), env=env, cwd=ROOT
        ) as process:
            deadline = time.monotonic() + 240
            while len(losses(tmp_path)) < before + 5 and time.monotonic() < deadline:
                time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 75
        ends.append(max(losses(tmp_path)))
    assert sorted(losses(tmp_path)) == list(range(1, ends[1] + 1))
    assert ends[0] < ends[1]
