"""launch/local.sh with the program itself: two processes train on digits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from e2e import commands


@pytest.fixture
def environment(env):
    # As where nothing else starts processes, and `python` is this one.
    inherited = {k: v for k, v in env.items() if not k.startswith("SLURM_")}
    return inherited | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}


def command(workdir, *overrides, processes=2):
    return [
        *(str(commands.ROOT / "launch" / "local.sh"), str(processes)),
        *("--config", "configs/digits.py", "--workdir", str(workdir)),
        *("--config.tensorboard=False", "--config.report_examples=0"),
        "--config.log_every_steps=1",
        *(*commands.TINY, *overrides),
    ]


def losses(workdir):
    """Training loss by step; fails if a step was written twice, as by two processes."""
    if not (workdir / "metrics.jsonl").exists():
        return {}
    found = [(r["step"], r["loss"]) for r in commands.records(workdir) if "loss" in r]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.slow  # test_processes.py has it without the script, and the next one with it
def test_two_processes_train_as_one(environment, tmp_path):
    for processes in (2, 1):
        arguments = command(tmp_path / str(processes), "--config.num_steps=6", processes=processes)
        result = commands.run(arguments, environment)
        assert result.returncode == 0, result.stdout + result.stderr
    two, one = losses(tmp_path / "2"), losses(tmp_path / "1")
    assert list(two) == [1, 2, 3, 4, 5, 6]
    # The same batches; sums over other pieces, in float32, grow apart by rounding.
    assert two == pytest.approx(one, rel=1e-4)


def test_a_preempted_run_ends_with_75_and_goes_on_where_it_was(environment, tmp_path):
    ends = []
    for _ in range(2):
        before = len(losses(tmp_path))
        with subprocess.Popen(
            command(tmp_path, "--config.num_steps=100000"), env=environment, cwd=commands.ROOT
        ) as process:
            deadline = time.monotonic() + 240
            while len(losses(tmp_path)) < before + 5 and time.monotonic() < deadline:
                time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 75
        ends.append(max(losses(tmp_path)))
    assert sorted(losses(tmp_path)) == list(range(1, ends[1] + 1))
    assert ends[0] < ends[1]
