"""What takes too long is reported, once, with the stacks."""

import time

from convnext_jax.training.watchdog import Watchdog


def wait_here(seconds):
    time.sleep(seconds)


def test_a_step_that_hangs_is_reported_once_with_all_stacks(capfd):
    with Watchdog(0.2) as watchdog:
        watchdog.beat("step 7")
        wait_here(1.0)
    errors = capfd.readouterr().err
    assert errors.count("step 7 has taken") == 1
    assert "longer than `hang_seconds` (=0.2)" in errors
    assert "wait_here" in errors and "_watch" in errors  # of every thread


def test_steps_in_time_are_not(capfd):
    with Watchdog(5.0) as watchdog:
        for step in range(10):
            watchdog.beat(f"step {step}")
            wait_here(0.01)
    assert capfd.readouterr().err == ""


def test_zero_switches_it_off(capfd):
    with Watchdog(0) as watchdog:
        watchdog.beat("step 1")
        wait_here(0.3)
    assert capfd.readouterr().err == ""
