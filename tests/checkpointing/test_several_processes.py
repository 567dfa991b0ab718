"""Checkpoints of two processes that see the same directory, and of two that do not."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    for place in ("shared", "own/0", "own/1"):
        (folder / place).mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What each of two processes saw; see `several.py`."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    script = str(Path(__file__).with_name("several.py"))
    both = [
        subprocess.Popen(
            [sys.executable, script, str(index), "2", address, str(folder)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    ends = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    return [json.loads(printed.splitlines()[-1]) for printed, _ in ends]


def test_each_process_hashes_its_own_part_alone(found, folder):
    first, second = (set(one["hashed"]) for one in found)
    assert second and all("ocdbt.process_1/" in name for name in second)
    assert first and not any("ocdbt.process_1/" in name for name in first)
    checked = subprocess.run(
        "cat checksums*.txt | sha256sum --check --strict",
        shell=True,
        cwd=folder / "shared" / "1",
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(checked.stdout.splitlines()) == len(first | second)


def test_verifying_is_shared_out(found):
    first, second = (set(one["verified"]) for one in found)
    assert first and second and not first & second
    assert first | second == set(found[0]["hashed"]) | set(found[1]["hashed"])


def test_a_directory_that_is_not_shared_is_one_sentence_within_seconds(found, folder):
    for one in found:
        assert one["shared"][0] == ""
        said, seconds = one["not shared"]
        assert f"`checkpoint.dir` (={folder}/own/" in said
        assert f"process 1 on {socket.gethostname()} does not see what process 0 on" in said
        # Two are the patience with a disk of this machine.
        assert seconds < 10
    assert not list(folder.rglob(".shared-*"))


def test_all_processes_go_on_from_the_step_that_process_0_sees(found):
    said, _ = found[1]["not seen"]
    assert "goes on from step 16, which process 1 on" in said and "does not see" in said
    assert [one["agreed"] for one in found] == [16, 16]


def test_a_passing_error_of_one_process_does_not_repeat_the_save_of_all(found):
    assert "saving step 2 to" in found[1]["failed"][0] and "passing" in found[1]["failed"][0]
    assert found[1]["calls"] == 1
