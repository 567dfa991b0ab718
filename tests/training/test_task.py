"""The loop trains a task it knows nothing of: resumed, on processes, split, in micro-batches."""

import json
import os
import sys

import jax
import numpy as np
import pytest
from e2e import commands
from training import regression
from training.test_loop import At, Never

from convnext_jax.errors import Preempted
from convnext_jax.training import summary
from convnext_jax.training.reporting import read_records


def flat(state):
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(state)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state and the workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole")
    return flat(regression.train(regression.build(), workdir, Never())), workdir


def losses(workdir):
    records = read_records(workdir / "metrics.jsonl")
    return {r["step"]: (r["loss"], r["worst"]) for r in records if "loss" in r}


def test_it_learns_and_says_so(whole, capsys):
    state, workdir = whole
    records = read_records(workdir / "metrics.jsonl")
    found = {r["step"]: r for r in records if "eval_ema_explained" in r}
    assert list(found) == [10, 20, 30]
    explained = [record["eval_params_explained"] for record in found.values()]
    assert explained == sorted(explained) and explained[-1] > 0.25
    # Statistics are the step's number, and averaged like the parameters.
    assert [record["eval_params_seen"] for record in found.values()] == [10, 20, 30]
    average = 0.0
    for step in range(1, 31):
        average = 0.8 * average + 0.2 * step
    assert found[30]["eval_ema_seen"] == pytest.approx(average, rel=1e-6)  # float32
    result = summary.write_summary(workdir, {"model": "m", "dataset": "d"}, regression.METRIC)
    result["eval_split"] = "held out"
    line = summary.final_line(result, workdir, regression.METRIC)
    assert line.startswith(f"m on d: explained variance {result['final']['ema']['explained']:.2%}")
    summary.write_curves(workdir, "m", regression.METRIC)


@pytest.mark.parametrize("place", [5, 18])
def test_a_run_that_goes_on_ends_with_the_same_bits(place, whole, tmp_path):
    with pytest.raises(Preempted):
        regression.train(regression.build(), tmp_path, At(place))
    step = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    items = {path.name for path in (tmp_path / "checkpoints" / str(step)).iterdir()}
    assert {"params", "batch_stats", "ema", "ema_batch_stats", "optimizer"} <= items
    state = flat(regression.train(regression.build(), tmp_path, Never()))
    assert state.keys() == whole[0].keys()
    for name, value in whole[0].items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)
    assert losses(tmp_path) == losses(whole[1])


def assert_close(state, expected):
    for name, value in expected.items():
        # Sums in another order; Adam divides small gradients by small ones.
        np.testing.assert_allclose(state[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_fsdp_gives_the_same(whole, tmp_path):
    run = regression.build(**{"mesh.fsdp": 8})
    assert len(run.state_shardings.params["kernel"].spec) == 2
    assert_close(flat(regression.train(run, tmp_path, Never())), whole[0])


def test_micro_batches_hand_their_statistics_on(whole, tmp_path):
    run = regression.build(**{"data.per_device_batch": 4})
    state = flat(regression.train(run, tmp_path, Never()))
    assert state[".batch_stats['n']"] == 60  # two of each step
    kernel = ".params['kernel']"
    np.testing.assert_allclose(state[kernel], whole[0][kernel], rtol=1e-4, atol=1e-5)


def test_two_processes_give_the_same(whole, tmp_path):
    # The paths here and there: the package's, and that of `training.regression`.
    path = os.pathsep.join([str(commands.ROOT), str(commands.ROOT / "tests")])
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, "-m", "training.regression", str(tmp_path)]
    running = commands.start_together(command, env, 2, devices=4)
    assert [status for status, *_ in commands.end_of(running)] == [0, 0]
    found, expected = losses(tmp_path), losses(whole[1])
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)
    (record,) = [
        json.loads(path.read_text())
        for path in (tmp_path / "checkpoints" / "30").glob("evaluation.json")
    ]
    assert record["eval_params_seen"] == 30
