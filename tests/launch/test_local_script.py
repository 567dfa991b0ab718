"""launch/local.sh: processes on one machine, and how they end."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from fake_commands import LAUNCH, SHELLCHECK, environment, joined, records, run

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
    result = run(
        [SHELLCHECK, "--external-sources", "--enable=quote-safe-variables", script], env=None
    )
    assert result.returncode == 0, result.stdout
    assert script.stat().st_mode & 0o111, "must be executable"


def local(folder, plan, *arguments, **variables):
    env = environment(folder, plan, **variables)
    return run([LAUNCH / "local.sh", str(len(plan[0])), *arguments], env)


def test_every_process_gets_its_place_and_the_arguments(tmp_path):
    arguments = ["--config", "configs/digits.py", "--config.model.depths=(1, 1)", "it's"]
    assert local(tmp_path, [[0, 0, 0]], *arguments).returncode == 0
    found = sorted(records(tmp_path), key=lambda r: r["process"])
    assert [r["arguments"] for r in found] == [arguments] * 3
    places = [r["environment"] for r in found]
    assert [p["JAX_PROCESS_ID"] for p in places] == ["0", "1", "2"]
    assert [p["JAX_LOCAL_DEVICE_IDS"] for p in places] == ["0", "1", "2"]
    assert {p["JAX_NUM_PROCESSES"] for p in places} == {"3"}
    (address,) = {p["JAX_COORDINATOR_ADDRESS"] for p in places}
    assert address.startswith("localhost:") and address.removeprefix("localhost:").isdecimal()


@pytest.mark.parametrize(
    "statuses, expected",
    [
        ([0, 0], 0),
        ([75, 75], 75),
        ([75, 0], 1),
        ([2, 2], 2),
        ([0, 1], 1),
        ([75, 3], 3),
        ([76, 76], 76),
        (["killed", 76], 76),
        ([134, 1], 1),
        ([76, 2, 1], 2),
    ],
)
def test_the_status_is_what_starting_again_would_not_mend(tmp_path, statuses, expected):
    assert local(tmp_path, [statuses]).returncode == expected


def alive(pid):
    """Whether a process runs; one that nobody has waited for yet does not."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_nothing_is_left_behind(tmp_path):
    """A process is killed while it has others, which do not notice, as decoding workers may not."""
    result = local(tmp_path, [["orphans", 76]], GRACE_SECONDS="1")
    assert result.returncode == 76, result.stderr
    orphans = [int(pid) for pid in (tmp_path / "orphans").read_text().split()]
    assert len(orphans) == 2
    assert [pid for pid in orphans if alive(pid)] == []


def test_a_failing_process_ends_the_others(tmp_path):
    began = time.monotonic()
    result = local(tmp_path, [["term", 1]])
    assert result.returncode == 1
    assert "process 1 ended with status 1" in result.stderr
    # The other one would wait a minute for a signal.
    assert time.monotonic() - began < 30


def test_a_process_that_does_not_end_is_killed(tmp_path):
    result = local(tmp_path, [["stuck", 4]], GRACE_SECONDS="1")
    assert result.returncode == 4


@pytest.mark.parametrize(
    "signal_number, expected", [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_signals_reach_every_process(tmp_path, signal_number, expected):
    env = environment(tmp_path, [["term", "term"]])
    with subprocess.Popen([LAUNCH / "local.sh", "2"], env=env) as process:
        deadline = time.monotonic() + 60
        while len(records(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal_number)
        assert process.wait(60) == expected


def test_a_second_interrupt_ends_at_once(tmp_path):
    env = environment(tmp_path, [["stuck", "stuck"]])
    with subprocess.Popen([LAUNCH / "local.sh", "2"], env=env) as process:
        deadline = time.monotonic() + 60
        while len(records(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


@pytest.mark.parametrize("count", ["", "0", "two"])
def test_the_number_of_processes_is_checked(tmp_path, count):
    result = run([LAUNCH / "local.sh", count], environment(tmp_path, [[0]]))
    assert result.returncode == 2
    assert result.stderr == (
        f"error: the first argument (={count}) must be the number of processes\n"
    )


def test_the_processes_meet(tmp_path):
    result = local(tmp_path, [["join", "join"]])
    assert result.returncode == 0, result.stderr
    assert joined(tmp_path, 2) == [{"index": i, "seen": [0, 1]} for i in range(2)]
