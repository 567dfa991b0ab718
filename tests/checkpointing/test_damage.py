"""Checkpoints that something has damaged."""

import errno
import json
import shutil
import subprocess
import threading
import time

import jax.numpy as jnp
import pytest

from convnext_jax.checkpointing import damage, manager
from convnext_jax.errors import Lost, RunError

CHECKSUMS = "checksums.txt"


@pytest.fixture
def directory(tmp_path):
    """The checkpoints of steps 1 and 2."""
    checkpoints = manager.Checkpoints(tmp_path / "checkpoints", best_metric="top1")
    for step in (1, 2):
        arrays = {"params": {"kernel": jnp.arange(4096.0) * step}}
        checkpoints.save(step, arrays, {"step": step})
        checkpoints.add_evaluation(step, {"top1": 0.5})
    checkpoints.close()
    return tmp_path / "checkpoints"


def largest(folder):
    """The file with the array's values."""
    files = [path for path in folder.glob("params/**/*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[:-10])
    return f"{path.relative_to(folder)} has other contents"


def flip_a_bit(folder):
    path = largest(folder)
    values = bytearray(path.read_bytes())
    values[len(values) // 2] ^= 4
    path.write_bytes(values)
    return f"{path.relative_to(folder)} has other contents"


def lose_a_file(folder):
    path = largest(folder)
    path.unlink()
    return f"{path.relative_to(folder)} is missing"


def lose_an_item(folder):
    shutil.rmtree(folder / "params")
    return "params/"


def empty_the_checksums(folder):
    (folder / CHECKSUMS).write_text("")
    return "checksums.txt is empty"


def cut_the_checksums(folder):
    path = folder / CHECKSUMS
    path.write_text(path.read_text()[:100])
    return "is missing or cut off"


DAMAGES = [
    truncate,
    flip_a_bit,
    lose_a_file,
    lose_an_item,
    empty_the_checksums,
    cut_the_checksums,
]


def test_whole_steps_are_left_alone(directory):
    assert damage.set_damaged_aside(directory, stop=True) == []
    assert manager.completed_steps(directory) == [1, 2]
    for step in (1, 2):
        subprocess.run(
            ["sha256sum", "--check", "--strict", CHECKSUMS],
            cwd=directory / str(step),
            check=True,
            capture_output=True,
        )


@pytest.mark.parametrize("plant", DAMAGES)
def test_a_damaged_newest_step_is_named_and_moved_aside(directory, plant):
    expected = plant(directory / "2")
    (sentence,) = damage.set_damaged_aside(directory, stop=False)
    assert sentence.startswith(f"the checkpoint of step 2 in {directory} is damaged: ")
    assert expected in sentence
    assert manager.completed_steps(directory) == [1]
    assert (directory / "damaged" / "2").is_dir()
    # The place is free for the run to save step 2 again.
    checkpoints = manager.Checkpoints(directory, best_metric="top1")
    checkpoints.save(2, {"params": {"kernel": jnp.zeros(4096)}}, {})
    checkpoints.close()
    assert damage.set_damaged_aside(directory, stop=True) == []


def test_damage_may_end_the_run_instead(directory):
    flip_a_bit(directory / "2")
    with pytest.raises(RunError, match=r"step 2 .* `checkpoint.on_damage` \(=stop\)"):
        damage.set_damaged_aside(directory, stop=True)
    assert manager.completed_steps(directory) == [1, 2]


def test_nothing_whole_is_an_error_rather_than_a_new_start(directory):
    for step in ("1", "2"):
        truncate(directory / step)
    with pytest.raises(RunError, match="step 1 .* there is no earlier one"):
        damage.set_damaged_aside(directory, stop=False)


def test_what_is_damaged_again_is_set_aside_beside_what_was(directory):
    shutil.copytree(directory / "2", directory.parent / "copy")
    truncate(directory / "2")
    damage.set_damaged_aside(directory, stop=False)
    first = sorted((directory / "damaged" / "2").rglob("*"))
    shutil.copytree(directory.parent / "copy", directory / "2")
    lose_a_file(directory / "2")
    (sentence,) = damage.set_damaged_aside(directory, stop=False)
    assert "is missing" in sentence and sentence.endswith(str(directory / "damaged" / "2.2"))
    assert sorted((directory / "damaged" / "2").rglob("*")) == first


def test_runs_side_by_side_set_aside_separately(directory):
    other = directory.with_name("other")
    shutil.copytree(directory, other)
    for place in (directory, other):
        truncate(place / "2")
        damage.set_damaged_aside(place, stop=False)
        assert (place / "damaged" / "2").is_dir()
    assert {path.name for path in directory.parent.iterdir()} == {"checkpoints", "other"}


def test_a_step_without_checksums_is_used_and_said_to_be_unverified(directory):
    """A run that is killed right after a save has not computed them yet."""
    (directory / "2" / CHECKSUMS).unlink()
    (sentence,) = damage.set_damaged_aside(directory, stop=True)
    assert "step 2" in sentence and "is used, but not verified" in sentence
    assert manager.completed_steps(directory) == [1, 2]


@pytest.mark.parametrize("name", ["run#1", "lr=1e-3?x", "100%", "a%20b"])
def test_a_whole_step_without_checksums_is_used_wherever_it_lies(name, directory):
    place = directory.rename(directory.with_name(name))
    (place / "2" / CHECKSUMS).unlink()
    assert "not verified" in damage.set_damaged_aside(place, stop=True)[0]


def test_a_step_of_earlier_versions_is_used(directory):
    """They had no checksums, and an item for the results."""
    folder = directory / "2"
    (folder / CHECKSUMS).unlink()
    (folder / "metrics").mkdir()
    (folder / "metrics" / "metrics").write_text("{}")
    path = folder / "_CHECKPOINT_METADATA"
    values = json.loads(path.read_text())
    values["item_handlers"]["metrics"] = "JsonCheckpointHandler"
    path.write_text(json.dumps(values))
    assert "not verified" in damage.set_damaged_aside(directory, stop=True)[0]


@pytest.mark.parametrize(
    "error, kind",
    [
        (ValueError('UNKNOWN: Error reading "w": Input/output error'), Lost),
        (ValueError("FAILED_PRECONDITION: Device or resource busy"), Lost),
        (OSError(errno.ESTALE, "Stale file handle"), Lost),
        (PermissionError(errno.EACCES, "Permission denied"), RunError),
        (ValueError("PERMISSION_DENIED: Permission denied"), RunError),
    ],
)
def test_what_cannot_be_read_now_is_not_damaged(error, kind, directory, monkeypatch):
    (directory / "2" / CHECKSUMS).unlink()
    monkeypatch.setattr("convnext_jax.retry.WAITS_SECONDS", (0.0, 0.0))

    def fail(*_):
        raise error

    monkeypatch.setattr(damage, "_read", fail)
    with pytest.raises(kind, match="cannot be read"):
        damage.set_damaged_aside(directory, stop=False)
    assert manager.completed_steps(directory) == [1, 2]


def fill_with_zeros(folder):
    path = largest(folder)
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("plant", [fill_with_zeros, lose_a_file, lose_an_item])
def test_a_step_without_checksums_that_cannot_be_read_is_set_aside(directory, plant):
    """A machine that went down may leave names of files without their contents."""
    (directory / "2" / CHECKSUMS).unlink()
    plant(directory / "2")
    (sentence,) = damage.set_damaged_aside(directory, stop=False)
    assert sentence.startswith(f"the checkpoint of step 2 in {directory} is damaged: ")
    assert len(sentence.splitlines()) == 1
    assert manager.completed_steps(directory) == [1]


def test_a_step_is_complete_before_anything_of_it_is_read_back(tmp_path, monkeypatch):
    gate = threading.Event()
    fingerprint = damage._fingerprint

    def slow(*arguments):
        gate.wait(60)
        return fingerprint(*arguments)

    monkeypatch.setattr(damage, "_fingerprint", slow)
    checkpoints = manager.Checkpoints(tmp_path, best_metric="top1")
    for step in (1, 2):
        checkpoints.save(step, {"params": {"kernel": jnp.arange(9.0)}}, {})
        checkpoints.wait()
        assert checkpoints.latest_step() == step
        assert not (tmp_path / str(step) / CHECKSUMS).exists()
    gate.set()
    checkpoints.close()
    assert (tmp_path / "2" / CHECKSUMS).exists()


def test_who_is_in_a_hurry_leaves_without_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(manager, "_HURRY_SECONDS", 0.1)
    monkeypatch.setattr(manager, "write_checksums", lambda _, stop: stop.wait(60))
    checkpoints = manager.Checkpoints(tmp_path, best_metric="top1")
    checkpoints.save(1, {"params": {"kernel": jnp.arange(9.0)}}, {})
    began = time.monotonic()
    checkpoints.close(hurry=True)
    assert time.monotonic() - began < 30
    assert manager.completed_steps(tmp_path) == [1]
