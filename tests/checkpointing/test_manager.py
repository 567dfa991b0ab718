"""Saving and restoring; what happens with real runs is in tests/e2e."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.errors import JaxRuntimeError

from convnext_jax import sharding
from convnext_jax.checkpointing import manager, reading
from convnext_jax.errors import InputError, Lost, RunError


def params(scale=1.0, width=8):
    # Eleven blocks: numbers of two digits must not change the order.
    return {
        "stages": {i: {"kernel": jnp.full((4, width), i * scale)} for i in range(11)},
        "norm": {"scale": jnp.arange(4.0) * scale},
    }


def save(directory, steps, **options):
    checkpoints = manager.Checkpoints(directory, best_metric="top1", **options)
    for step, score in steps.items():
        checkpoints.save(step, {"params": params(step)}, {"step": step, "tuple": (1, 2)})
        if score is not None:
            checkpoints.add_evaluation(step, {"top1": score})
    checkpoints.wait()
    checkpoints.close()


def abstract(tree, mesh):
    return reading.abstract_like(tree, sharding.parameter_shardings(tree, mesh))


def test_the_best_and_the_last_are_kept_also_by_a_later_session(tmp_path):
    save(tmp_path, {1: 0.5, 2: 0.9, 3: 0.7, 4: None, 5: 0.8})
    assert manager.completed_steps(tmp_path) == [2, 4, 5]
    save(tmp_path, {6: 0.1, 7: 0.2})
    assert manager.completed_steps(tmp_path) == [2, 6, 7]
    save(tmp_path, {8: 0.9}, keep_last=1)  # of two equally good, the later
    assert manager.completed_steps(tmp_path) == [8]


@pytest.mark.parametrize("fsdp", [1, 8])
def test_restored_arrays_are_bit_identical_wherever_they_are_placed(tmp_path, fsdp):
    rng = np.random.default_rng(0)
    values = {"kernel": jnp.asarray(rng.normal(size=(256, 128)), jnp.float32)}
    moments = optax.adam(1e-3).init(values)
    checkpoints = manager.Checkpoints(tmp_path, best_metric="top1")
    checkpoints.save(3, {"params": values, "optimizer": moments}, {})
    checkpoints.wait()
    checkpoints.close()
    mesh = sharding.create_mesh(fsdp=fsdp)
    wanted = {"params": abstract(values, mesh), "optimizer": abstract(moments, mesh)}
    found = reading.restore(tmp_path, 3, wanted)
    assert found["params"]["kernel"].sharding.is_fully_replicated == (fsdp == 1)
    assert jax.tree.structure(found) == jax.tree.structure({"params": values, "optimizer": moments})
    jax.tree.map(np.testing.assert_array_equal, found, {"params": values, "optimizer": moments})


def test_another_model_is_named_by_its_first_difference(tmp_path):
    save(tmp_path, {1: None})
    mesh = sharding.create_mesh()
    with pytest.raises(InputError, match=r"`stages/0/kernel` has shape \(4, 8\), not \(4, 16\)"):
        reading.restore(tmp_path, 1, {"params": abstract(params(width=16), mesh)})
    more = params() | {"head": {"bias": jnp.zeros(3)}}
    with pytest.raises(InputError, match=r"`head/bias` \(3,\) is missing"):
        reading.restore(tmp_path, 1, {"params": abstract(more, mesh)})
    fewer = {"stages": params()["stages"]}
    with pytest.raises(InputError, match=r"`norm/scale` \(4,\) is not in the model"):
        reading.restore(tmp_path, 1, {"params": abstract(fewer, mesh)})
    with pytest.raises(InputError, match=r"has no `ema`"):
        reading.restore(tmp_path, 1, {"ema": abstract(params(), mesh)})


def test_finding_a_step(tmp_path):
    save(tmp_path / "checkpoints", {1: 0.9, 2: 0.5, 3: 0.6})
    directory = tmp_path / "checkpoints"
    assert reading.find_step(tmp_path, "latest", "top1") == (directory, 3)
    assert reading.find_step(directory, "latest", "top1") == (directory, 3)
    assert reading.find_step(tmp_path, "best", "top1") == (directory, 1)
    assert reading.find_step(tmp_path, "2", "top1") == (directory, 2)
    assert reading.find_step(directory / "2", "latest", "top1") == (directory, 2)
    with pytest.raises(
        InputError, match=r"step \(=4\) must be latest, best, or one of .*: 1, 2, 3"
    ):
        reading.find_step(tmp_path, "4", "top1")
    with pytest.raises(InputError, match="has the metric `top9`"):
        reading.find_step(tmp_path, "best", "top9")
    with pytest.raises(InputError, match="no complete checkpoint"):
        reading.find_step(tmp_path / "nowhere", "latest", "top1")
    assert reading.read_description(directory, 2) == {"step": 2, "tuple": [1, 2]}


def test_what_a_killed_save_left_is_neither_found_nor_in_the_way(tmp_path):
    save(tmp_path, {1: 0.9})
    left = tmp_path / "2.orbax-checkpoint-tmp"
    (left / "params").mkdir(parents=True)
    assert manager.completed_steps(tmp_path) == [1]
    save(tmp_path, {2: 0.5})
    assert manager.completed_steps(tmp_path) == [1, 2]
    assert not left.exists()


def test_a_save_that_fails_says_what_is_left(tmp_path):
    directory = tmp_path / "checkpoints"
    checkpoints = manager.Checkpoints(directory, best_metric="top1")
    checkpoints.save(1, {"params": params()}, {})
    checkpoints.wait()
    with pytest.raises(RunError, match=r"saving step 2 to .* failed \(.*\); step 1 is complete"):
        checkpoints.save(2, {"params": params()}, {"not JSON": object()})
        checkpoints.wait()


def test_two_runs_in_one_directory_do_not_replace_each_others_steps(tmp_path):
    first, late = (manager.Checkpoints(tmp_path, best_metric="top1") for _ in range(2))
    first.begin()
    save(tmp_path, {1: 0.5})
    for step in (1, 2):
        with pytest.raises(
            RunError, match=f"another run has begun in .*, process {os.getpid()} on"
        ):
            first.save(step, {"params": params(2)}, {"step": 1})
    first.close()
    with pytest.raises(Lost, match="another run saved step 1 in .* began from step None"):
        late.save(1, {"params": params(2)}, {"step": 1})
    late.close()
    assert reading.read_description(tmp_path, 1)["tuple"] == [1, 2]
    assert (tmp_path / "1" / "evaluation.json").exists()


def test_a_run_that_begins_during_a_save_of_another_takes_over(tmp_path, monkeypatch):
    first = manager.Checkpoints(tmp_path, best_metric="top1")
    save = first._checkpointer.save

    def meanwhile(*arguments, **options):
        save(*arguments, **options)
        first._checkpointer.wait_until_finished()  # else threads of Orbax, too, say what they miss
        second = manager.Checkpoints(tmp_path, best_metric="top1")
        second.begin()
        second.close()

    monkeypatch.setattr(first._checkpointer, "save", meanwhile)
    with pytest.raises(RunError, match="another run has begun in "):
        first.save(1, {"params": params(2)}, {"step": 1})
        first.wait()
    first.close()


def test_a_passing_error_is_not_the_end_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("convnext_jax.retry.WAITS_SECONDS", (0.0, 0.0))

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    for where, said in (
        ("convnext_jax.checkpointing.owner.take", "cannot be written"),
        ("convnext_jax.checkpointing.owner.require", "saving step 1 to .*; there is no earlier"),
        ("orbax.checkpoint.AsyncCheckpointer.save", "saving step 1 to .*; there is no earlier"),
    ):
        checkpoints = manager.Checkpoints(tmp_path, best_metric="top1")
        with monkeypatch.context() as patches, pytest.raises(Lost, match=said):
            patches.setattr(where, fail)
            checkpoints.save(1, {"params": params(2)}, {})
        checkpoints.close()


@pytest.mark.parametrize("written", ["", "{}", "[]", "null", '{"run": 1}'])
def test_an_owner_that_is_nobody_is_none(written, tmp_path):
    checkpoints = manager.Checkpoints(tmp_path, best_metric="top1")
    checkpoints.begin()
    (tmp_path / "owner.json").write_text(written)
    checkpoints.save(1, {"params": params(2)}, {})
    checkpoints.close()
    assert manager.completed_steps(tmp_path) == [1]


def test_results_that_were_cut_off_are_computed_again(tmp_path):
    save(tmp_path, {3: 0.5})
    (tmp_path / "3" / "evaluation.json").write_text("")
    again = manager.Checkpoints(tmp_path, best_metric="top1")
    assert again.latest_step() == 3 and again.evaluation(3) is None
    again.close()


@pytest.mark.parametrize("raised_before", [False, True])
def test_closing_raises_only_what_was_not_raised_before(raised_before, tmp_path, monkeypatch):
    checkpoints = manager.Checkpoints(tmp_path, best_metric="top1")
    checkpoints.save(1, {"params": params()}, {})
    checkpoints.wait()

    def fail(*_):
        raise OSError("another thread's error")

    monkeypatch.setattr(checkpoints._checkpointer, "close", fail)
    if raised_before:
        checkpoints._writes.append(checkpoints._writer.submit(fail))
        checkpoints._writes[-1].exception()
        with pytest.raises(RunError):
            checkpoints.check()
        checkpoints.close()
    else:
        with pytest.raises(RunError, match="saving step 1 to .* failed"):
            checkpoints.close()


LOST = "UNKNOWN: Gloo AllGather failed: [...pair.cc:547] Connection closed by peer [127.0.0.1]"


@pytest.mark.parametrize(
    "error, processes, kind",
    [
        (JaxRuntimeError(LOST), 2, JaxRuntimeError),
        (ValueError(LOST), 2, ValueError),  # from waiting for what a program computes
        (ValueError(LOST), 1, RunError),
        (ValueError("UNAVAILABLE: Connection reset by peer while reading gs://b/x"), 2, Lost),
        (ValueError("PERMISSION_DENIED: writing gs://b/x"), 2, RunError),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, Lost),
        (JaxRuntimeError("INVALID_ARGUMENT: shapes"), 2, RunError),
    ],
)
def test_a_peer_that_is_lost_in_a_save_is_not_a_save_that_failed(
    error, processes, kind, tmp_path, monkeypatch
):
    """What the collectives of a save say is for `ending_together`, which knows who is gone."""
    checkpoints = manager.Checkpoints(tmp_path, best_metric="top1")
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    wrapped = OSError("something of Orbax's")
    wrapped.__cause__ = error
    for raised in (error, wrapped):
        with pytest.raises(kind) as found:
            checkpoints._fail(raised)
        assert (found.value is error) == (kind in (JaxRuntimeError, ValueError))
