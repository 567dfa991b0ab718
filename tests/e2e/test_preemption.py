"""A run that is told to go, or whose newest checkpoint is damaged, ends as if nothing had been."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from e2e import commands

STEPS = 44  # as in test_resume.py: the schedule is part of the program, which is compiled once
EVALUATED = 13
OVERRIDES = (
    *commands.TINY,
    f"--config.num_steps={STEPS}",
    "--config.log_every_steps=1",
    "--config.checkpoint.every_steps=5",
    "--config.eval_every_epochs=0.6",  # 13 steps
)


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    commands.train(workdir, commands.environment(*folders), *OVERRIDES)
    return workdir


def told_to_go(workdir, env, moment, *overrides, times=1, by=signal.SIGTERM):
    """Sends a signal to all processes of a run at a moment; returns its status and stderr.

    `moment` is given the number of the process, and says whether it is time.
    """
    process = subprocess.Popen(
        commands.train_command(workdir, *OVERRIDES, *overrides),
        env=env,
        cwd=commands.ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    commands.wait_for([process], lambda: moment(process.pid))
    for _ in range(times):
        os.killpg(process.pid, by)
        time.sleep(0.05)  # two at once are one to a process
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def finish(workdir, env, whole, *overrides):
    result = commands.train(workdir, env, *OVERRIDES, *overrides)
    commands.assert_identical(workdir, whole, STEPS)
    assert commands.losses(workdir) == commands.losses(whole)
    return result.stdout


@pytest.mark.slow  # test_local_training.py has it under its script, Ctrl-C below takes the same way
@pytest.mark.parametrize(
    "overrides", [(), ("--config.data.workers=1",)], ids=["threads", "worker process"]
)
def test_sigterm_between_steps(overrides, whole, env, tmp_path):
    status, errors = told_to_go(
        tmp_path, env, lambda _: commands.last_step(tmp_path) >= 3, *overrides
    )
    assert status == 75, errors
    (line,) = (line for line in errors.splitlines() if line.startswith("preempted after step"))
    step = int(line.split()[3])
    assert f"of {STEPS}, which is saved; the same command goes on from there" in line
    assert f"resuming after step {step} of {STEPS}" in finish(tmp_path, env, whole, *overrides)


@pytest.mark.slow  # training/test_loop.py has it without a process
def test_sigterm_at_an_evaluation(whole, env, tmp_path):
    # The step before it is recorded when the evaluation begins.
    status, errors = told_to_go(tmp_path, env, lambda _: commands.last_step(tmp_path) >= EVALUATED)
    assert status == 75, errors
    finish(tmp_path, env, whole)
    evaluated = [
        [(r["step"], r["eval_ema_top1"]) for r in commands.records(run) if "eval_ema_top1" in r]
        for run in (tmp_path, whole)
    ]
    assert evaluated[0] == evaluated[1]
    assert [step for step, _ in evaluated[0]] == [EVALUATED, STEPS]


def test_ctrl_c_saves_and_a_second_one_leaves_at_once(whole, env, tmp_path):
    def moment(_):
        return commands.last_step(tmp_path) >= 3

    status, errors = told_to_go(tmp_path, env, moment, by=signal.SIGINT)
    assert status == 130, errors
    first, last = errors.splitlines()
    assert first == "interrupted; saving first (Ctrl-C again leaves at once)"
    assert f"of {STEPS}, which is saved; the same command goes on from there" in last

    def step():
        return int(last.removeprefix("interrupted after step ").split()[0])

    def further(_):
        return commands.last_step(tmp_path) >= step() + 2

    for _ in range(3):
        status, errors = told_to_go(tmp_path, env, further, by=signal.SIGINT, times=2)
        assert status == 130, errors
        *others, last = errors.splitlines()
        if "which is saved" not in last:
            break  # otherwise all was saved before the second came
    assert (others, last) == ([first], "interrupted again; what was not saved is lost")
    finish(tmp_path, env, whole)


@pytest.mark.parametrize("seconds", [0, 3], ids=["while importing", "later"])
def test_ctrl_c_before_there_is_anything_to_save(seconds, env, tmp_path):
    # Of imports, of opening data and of compiling the main thread comes back to hear it seconds
    # later.
    begun = time.monotonic()

    def listening(number):
        # The thread that answers is the first beside the main one, and begins before any import.
        threads = os.listdir(f"/proc/{number}/task")
        return len(threads) > 1 and time.monotonic() > begun + seconds

    status, errors = told_to_go(tmp_path, env, listening, by=signal.SIGINT)
    assert (status, errors) == (130, "interrupted\n")


def damaged_copy(whole, workdir):
    """A copy of a run, whose last checkpoint has one other bit; as before its end."""
    shutil.copytree(whole, workdir)
    (workdir / "summary.json").unlink()
    files = [p for p in (workdir / "checkpoints" / str(STEPS) / "ema").rglob("*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    values = bytearray(path.read_bytes())
    values[len(values) // 2] ^= 1
    path.write_bytes(values)
    return path.name


@pytest.mark.slow  # training/test_loop.py and checkpointing/test_damage.py have its parts
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(whole, env, tmp_path):
    name = damaged_copy(whole, tmp_path / "run")
    printed = finish(tmp_path / "run", env, whole)
    (line,) = (line for line in printed.splitlines() if "is damaged" in line)
    assert f"step {STEPS}" in line and name in line
    assert "resuming after step 40" in printed
    assert (tmp_path / "run" / "checkpoints" / "damaged" / str(STEPS)).is_dir()


def test_a_damaged_checkpoint_may_end_the_run(whole, env, tmp_path):
    name = damaged_copy(whole, tmp_path / "run")
    command = commands.train_command(
        tmp_path / "run", *OVERRIDES, "--config.checkpoint.on_damage=stop"
    )
    result = commands.run(command, env)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert name in line and "`checkpoint.on_damage` (=stop)" in line
