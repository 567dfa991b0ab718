"""A run that is killed and started again ends as if it had not been."""

import signal
import time

from e2e import commands

STEPS = 44
OVERRIDES = (
    *commands.TINY,
    f"--config.num_steps={STEPS}",
    "--config.log_every_steps=1",
    "--config.checkpoint.every_steps=10",
    "--config.eval_every_epochs=0.6",  # 13 steps
)


def kill_when(command, env, condition):
    """Starts a command and kills it once `condition()` holds; says whether it was alive."""
    process = commands.start(command, env)
    while process.poll() is None and not condition():
        time.sleep(0.002)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode == -signal.SIGKILL


def test_killed_runs_end_bit_identical(env, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    commands.train(whole, env, *OVERRIDES)

    def last_step():
        return commands.last_step(broken)

    moments = [
        lambda: last_step() >= 3,  # nothing saved yet
        lambda: last_step() >= 13 and not commands.evaluated(broken, 13),  # at an evaluation
        # while a checkpoint is written
        lambda: any("tmp" in name for name in commands.saved(broken)) and last_step() > 20,
    ]
    command = commands.train_command(broken, *OVERRIDES)
    killed = [kill_when(command, env, moment) for moment in moments]
    assert sum(killed) >= 2, killed  # a moment may be missed, but not most of them
    result = commands.train(broken, env, *OVERRIDES, "--config.checkpoint.every_steps=11")
    assert "resuming after step" in result.stdout
    assert "config changed: checkpoint.every_steps was 10, is 11" in result.stdout

    commands.assert_identical(broken, whole, STEPS)
    # Every step is recorded once, with the same loss.
    assert commands.losses(broken) == commands.losses(whole)
    steps = [(r["step"], "loss" in r) for r in commands.records(broken)]
    assert len(steps) == len(set(steps))

    finished = commands.run(command, env)
    assert finished.returncode == 0
    assert "finished before" in finished.stdout


def test_what_a_run_leaves(env, tmp_path):
    # As many steps as above: the schedule is part of the program, which is compiled once so.
    overrides = (*commands.TINY, f"--config.num_steps={STEPS}", "--config.profile_steps=2")
    overrides += ("--config.report_examples=50",)
    printed = commands.train(tmp_path, env, *overrides).stdout
    assert "batch: 64 = 1 devices x 64 images x 1 micro-batch(es)" in printed
    assert "steps: 44 (44 warm-up), 22 an epoch; 1437 training images, 2816 seen; 360" in printed
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))
    assert {p.name for p in tmp_path.iterdir()} == {
        "checkpoints",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "profile",
        "report.html",
        "summary.json",
    }
    report = (tmp_path / "report.html").read_text()
    assert "50 of 360 examples of `test`" in report and "Surest mistakes" in report
    training = next(r for r in commands.records(tmp_path) if "loss" in r)
    assert training.keys() == {
        *("step", "epoch", "loss", "learning_rate"),
        *("gradient_norm", "parameter_norm", "update_norm"),
        *("images_per_second", "step_seconds", "data_wait_fraction"),
    }
