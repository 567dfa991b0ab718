"""The loop with a model of one number: what is saved, evaluated, recorded and said, and when."""

import contextlib
import dataclasses
import json
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from convnext_jax import sharding
from convnext_jax.checkpointing.steps import EVALUATION, completed_steps
from convnext_jax.classification.task import METRIC
from convnext_jax.errors import InputError, Preempted, RunError
from convnext_jax.training import summary
from convnext_jax.training.loop import Run, train
from convnext_jax.training.mirror import Mirror
from convnext_jax.training.reporting import read_records
from convnext_jax.training.state import TrainState
from convnext_jax.training.step import METRICS
from convnext_jax.training.stopwatch import Stopwatch

SCORES = {4: 0.5, 8: 0.9, 12: 0.7}


class Batches:
    """Batches of one number, the first of which takes its time."""

    skipped = {}

    def __init__(self, start, delay):
        self.step, self.delay = start, delay

    def __next__(self):
        time.sleep(self.delay)
        self.delay = 0.0
        self.step += 1
        return {"x": np.full((jax.local_device_count(), 1), self.step, np.float32)}

    def close(self):
        pass


class Evaluator:
    """As the loop uses it."""

    skipped = {}

    def __init__(self, function):
        self.function = function

    def __call__(self, candidates, before_batch):
        return self.function(candidates, before_batch)

    def close(self):
        pass


def build(evaluator, delay=0.0, **options):
    """A run of 12 steps, evaluated every 4, whose parameter counts the steps."""
    mesh = sharding.create_mesh()
    everywhere = sharding.replicated(mesh)

    def initialize():
        params = {"kernel": jnp.zeros(3)}
        state = TrainState(jnp.int32(0), params, None, {"moment": jnp.zeros(3)})
        return jax.device_put(state, everywhere)

    def step(state, batch):
        params = {"kernel": state.params["kernel"] + 1}
        metrics = jnp.stack([batch["x"].mean()] + [jnp.float32(1)] * (len(METRICS) - 1))
        return TrainState(state.step + 1, params, None, state.opt_state), metrics

    abstract = jax.eval_shape(initialize)
    run = Run(
        mesh=mesh,
        abstract_state=abstract,
        state_shardings=jax.tree.map(lambda _: everywhere, abstract),
        initialize=initialize,
        train_step=jax.jit(step, donate_argnums=0),
        evaluator=Evaluator(evaluator),
        batches=lambda start: Batches(start, delay),
        description={"config": {}},
        plan="a plan",
        global_batch=mesh.size,
        steps_per_epoch=4,
        total_steps=12,
        evaluate_every=4,
        save_every=None,
        keep_last=2,
        log_every=1,
        profile_steps=0,
        tensorboard=False,
        log_parameters=False,
        stop_at_damage=False,
        hang_seconds=0,
        metrics=METRICS,
        metric=METRIC,
        stopwatch=Stopwatch(),
    )
    return dataclasses.replace(run, **options)


def scores(candidates, before_batch):
    before_batch()
    top1 = SCORES.get(int(candidates["params"][0]["kernel"][0]), 0.1)
    counts = {"num_examples": 9, "num_skipped": 0}
    return {"params": {"top1": top1, "top5": 1.0, "loss": 0.1} | counts}


class Never:
    """A preemption that does not come."""

    interrupted = False
    with_work_to_save = contextlib.nullcontext

    def noticed(self):
        return False


class At(Never):
    """Notices at the n-th place where it is asked."""

    def __init__(self, place):
        self.place = place

    def noticed(self):
        self.place -= 1
        return self.place <= 0


def go(run, workdir, preemption=None, directory=None):
    workdir.mkdir(exist_ok=True)
    directory = epath.Path(directory or workdir / "checkpoints")
    mirror = Mirror(workdir, directory)
    mirror.fetch()
    try:
        return train(run, workdir, directory, preemption or Never(), mirror)
    finally:
        mirror.close()


def evaluated(workdir):
    records = read_records(workdir / "metrics.jsonl")
    return [(r["step"], r["eval_params_top1"]) for r in records if "eval_params_top1" in r]


def test_the_last_and_the_best_are_kept_with_their_results(tmp_path):
    state = go(build(scores), tmp_path)
    assert int(state.params["kernel"][0]) == 12
    assert completed_steps(tmp_path / "checkpoints") == [8, 12]
    found = json.loads((tmp_path / "checkpoints" / "8" / EVALUATION).read_text())
    assert (found["eval_params_top1"], found["epoch"]) == (0.9, 2.0)
    assert evaluated(tmp_path) == list(SCORES.items())


def test_what_is_trained_is_saved_when_its_evaluation_fails(tmp_path):
    def fails(candidates, before_batch):
        raise InputError("an image cannot be decoded")

    with pytest.raises(InputError):
        go(build(fails), tmp_path)
    assert completed_steps(tmp_path / "checkpoints") == [4]
    # The evaluation is made up for, and no step is done again.
    starts = []
    run = build(scores)
    counted = dataclasses.replace(run, batches=lambda s: starts.append(s) or run.batches(s))
    go(counted, tmp_path)
    assert starts == [4] and evaluated(tmp_path) == list(SCORES.items())


def test_preempted_in_an_evaluation_leaves_at_once_and_loses_nothing(tmp_path):
    # Asked once a step, from step 0 on, and then before the evaluation's batch.
    with pytest.raises(Preempted, match="after step 4 of 12, which is saved"):
        go(build(scores), tmp_path, At(6))
    folder = tmp_path / "checkpoints" / "4"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert EVALUATION not in {path.name for path in before}
    with pytest.raises(Preempted, match="after step 5"):
        go(build(scores), tmp_path, At(3))
    # The results were added; nothing was deleted to be replaced.
    assert json.loads((folder / EVALUATION).read_text())["eval_params_top1"] == 0.5
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_preempted_before_the_first_step_claims_nothing(tmp_path):
    with pytest.raises(Preempted, match="before the first step") as told:
        go(build(scores), tmp_path, At(1))
    assert "saved" not in str(told.value)
    # Another run that lives there goes on as it was.
    assert not (tmp_path / "checkpoints").exists()


def test_a_kill_between_record_and_checkpoint_leaves_one_record(tmp_path):
    go(build(scores), tmp_path)
    # Recorded, but the checkpoint has not got it.
    (tmp_path / "checkpoints" / "12" / EVALUATION).unlink()
    go(build(scores), tmp_path)
    assert evaluated(tmp_path) == list(SCORES.items())


def test_a_run_made_shorter_than_it_is_gets_its_evaluation(tmp_path):
    with pytest.raises(Preempted, match="after step 10 of 12"):
        go(build(scores), tmp_path, At(13))
    state = go(build(scores, total_steps=9), tmp_path)
    assert int(state.params["kernel"][0]) == 10
    assert evaluated(tmp_path) == [(4, 0.5), (8, 0.9), (10, 0.1)]
    assert summary.write_summary(tmp_path, {}, METRIC)["final"]["step"] == 10


def test_results_of_earlier_versions_count(tmp_path):
    go(build(scores), tmp_path)
    for step in ("8", "12"):
        folder = tmp_path / "checkpoints" / step
        record = json.loads((folder / EVALUATION).read_text())
        (folder / EVALUATION).unlink()
        del record["epoch"]
        (folder / "metrics").mkdir()
        (folder / "metrics" / "metrics").write_text(json.dumps(record))
    go(build(scores, total_steps=14, evaluate_every=100, save_every=1), tmp_path)
    # The best is 8, though its results are the earlier version's.
    assert completed_steps(tmp_path / "checkpoints") == [8, 13, 14]
    assert evaluated(tmp_path)[:3] == list(SCORES.items())


def test_waiting_counts_in_the_record_of_the_step_that_waited(tmp_path):
    class Slow(Batches):
        def __next__(self):
            self.delay = 0.4 if self.step == 6 else 0.0
            return super().__next__()

    go(build(scores, batches=lambda start: Slow(start, 0.0), evaluate_every=12), tmp_path)
    waited = {
        r["step"]: r["data_wait_fraction"] * r["step_seconds"]
        for r in read_records(tmp_path / "metrics.jsonl")
        if "loss" in r
    }
    # Of the time of a step; the records before it end before, though they are made later.
    assert waited[7] > 0.3 and max(waited[5], waited[6], waited[8]) < 0.2, waited


def test_what_comes_before_the_first_step_is_not_in_the_speed(tmp_path, capsys):
    began = time.perf_counter()
    go(build(scores, delay=2.0, total_steps=2), tmp_path)
    assert time.perf_counter() - began > 2.0
    first = read_records(tmp_path / "metrics.jsonl")[0]
    # A step of three numbers takes milliseconds; compiling it and the first batch do not count.
    assert first["step_seconds"] < 1.0 and first["data_wait_fraction"] < 1.0
    printed = capsys.readouterr().out
    assert printed.index("compiling the step") < printed.index("compiled the step in")
    assert re.search(r"parameters: 3 in 1 arrays", printed)
    # Where the time to the first step went.
    assert re.search(r"first step done \S+ s after the start: .*2\.\d s waiting for the f", printed)
    (eta,) = re.findall(r"step 1/2 .* ETA (\S+)", printed)
    assert eta == "00:00"


def test_records_survive_the_loss_of_their_machine(tmp_path):
    bucket = tmp_path / "bucket"
    with pytest.raises(Preempted):
        go(build(scores), tmp_path / "first", At(7), bucket)
    shutil.rmtree(tmp_path / "first")
    go(build(scores, description={"config": {"seed": 1}}), tmp_path / "second", None, bucket)
    records = read_records(tmp_path / "second" / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))
    assert evaluated(tmp_path / "second") == list(SCORES.items())
    assert (bucket / "records" / "config.json").exists()


def test_a_mirror_that_fails_says_so_once_and_harms_nothing(tmp_path, capsys):
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "records").write_text("in the way")
    go(build(scores), tmp_path / "run", None, tmp_path / "bucket")
    assert capsys.readouterr().out.count("the records are not copied to") == 1
    assert completed_steps(tmp_path / "bucket") == [8, 12]


def test_another_optimiser_is_not_called_another_model(tmp_path):
    go(build(scores), tmp_path)
    run = build(scores)
    state = dataclasses.replace(
        run.abstract_state,
        opt_state={
            "moment": jax.ShapeDtypeStruct((3,), jnp.float32),
            "count": jax.ShapeDtypeStruct((), jnp.int32),
        },
    )
    shardings = jax.tree.map(lambda _: sharding.replicated(run.mesh), state)
    other = dataclasses.replace(run, abstract_state=state, state_shardings=shardings)
    with pytest.raises(InputError, match="another configuration of the optimiser") as told:
        go(other, tmp_path)
    assert "another model" not in str(told.value)


def test_a_save_that_fails_ends_the_run(tmp_path, monkeypatch):
    from convnext_jax.checkpointing import manager

    monkeypatch.setattr(manager.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(RunError, match="saving step 4 to .* failed"):
        go(build(scores), tmp_path)
