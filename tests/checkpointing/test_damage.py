"""Checkpoints that something has damaged."""

import shutil
import subprocess

import jax.numpy as jnp
import pytest

from convnext_jax.checkpointing import damage, manager
from convnext_jax.errors import RunError


@pytest.fixture
def directory(tmp_path):
    """The checkpoints of steps 1 and 2."""
    checkpoints = manager.Checkpoints(tmp_path / "checkpoints", best_metric="top1")
    for step in (1, 2):
        arrays = {"params": {"kernel": jnp.arange(4096.0) * step}}
        checkpoints.save(step, arrays, {"step": step}, {"top1": 0.5})
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


def lose_the_checksums(folder):
    (folder / damage.CHECKSUMS).unlink()
    return "checksums.txt is missing"


def empty_the_checksums(folder):
    (folder / damage.CHECKSUMS).write_text("")
    return "checksums.txt is empty"


def cut_the_checksums(folder):
    path = folder / damage.CHECKSUMS
    path.write_text(path.read_text()[:100])
    return "is missing or cut off"


DAMAGES = [
    truncate,
    flip_a_bit,
    lose_a_file,
    lose_an_item,
    lose_the_checksums,
    empty_the_checksums,
    cut_the_checksums,
]


def test_whole_steps_are_left_alone(directory):
    assert damage.set_damaged_aside(directory, stop=True) == []
    assert manager.completed_steps(directory) == [1, 2]
    for step in (1, 2):
        subprocess.run(
            ["sha256sum", "--check", "--strict", damage.CHECKSUMS],
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
    assert (directory.parent / "damaged" / "2").is_dir()
    # The place is free for the run to save step 2 again.
    checkpoints = manager.Checkpoints(directory, best_metric="top1")
    checkpoints.save(2, {"params": {"kernel": jnp.zeros(4096)}}, {}, {"top1": 0.5})
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


def test_a_step_damaged_twice_replaces_what_was_set_aside(directory):
    shutil.copytree(directory / "2", directory.parent / "copy")
    truncate(directory / "2")
    damage.set_damaged_aside(directory, stop=False)
    shutil.copytree(directory.parent / "copy", directory / "2")
    lose_a_file(directory / "2")
    (sentence,) = damage.set_damaged_aside(directory, stop=False)
    assert "is missing" in sentence
