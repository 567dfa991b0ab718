"""Checkpoints in a bucket: the real client libraries against a server of this machine."""

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from object_store import ObjectStore

from convnext_jax import sharding
from convnext_jax.checkpointing import damage, manager, reading
from convnext_jax.training.mirror import Mirror

pytestmark = pytest.mark.slow  # it imports TensorFlow, which makes a connection for each request

DIRECTORY = epath.Path("gs://runs/in1k")


@pytest.fixture
def store(tmp_path, monkeypatch):
    store = ObjectStore("runs", tmp_path)
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    # TensorFlow would remember for seconds what the test has changed behind its back.
    monkeypatch.setenv("GCS_STAT_CACHE_MAX_AGE", "0")
    yield store
    store.close()


def params(step):
    # Noise, which cannot be compressed: most of a step's bytes are these.
    values = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
    return {"kernel": jnp.asarray(values), "bias": jnp.ones(3)}


def save(steps, **options):
    checkpoints = manager.Checkpoints(DIRECTORY, best_metric="top1", **options)
    for step, score in steps.items():
        checkpoints.save(step, {"params": params(step)}, {"step": step})
        checkpoints.add_evaluation(step, {"top1": score})
    checkpoints.close()


def restored(step):
    mesh = sharding.create_mesh()
    shardings = sharding.parameter_shardings(params(0), mesh)
    abstract = reading.abstract_like(params(0), shardings)
    return reading.restore(DIRECTORY, step, {"params": abstract})["params"]


def test_checkpoints_in_a_bucket(store, tmp_path):
    said = []
    save({1: 0.9, 2: 0.5}, keep_last=1, notice=said.append)
    # The passing failures of a store are its clients' to mend.
    store.failures = 2
    save({3: 0.6}, keep_last=1, notice=said.append)
    assert store.failed == 2 and said == []
    # What was kept, what was deleted, and nothing of the latter is left.
    assert manager.completed_steps(DIRECTORY) == [1, 3]
    assert not store.names("in1k/2/")
    assert reading.find_step(str(DIRECTORY), "best", "top1") == (DIRECTORY, 1)
    assert reading.read_description(DIRECTORY, 3) == {"step": 3}
    np.testing.assert_array_equal(restored(3)["kernel"], params(3)["kernel"])

    # A step that has only a part of an object is not used.
    assert damage.set_damaged_aside(DIRECTORY, stop=True) == []
    (name, *_) = store.names("in1k/3/params/ocdbt.process_0/d/")
    store.put(name, store.objects[name].data[:-1])
    (sentence,) = damage.set_damaged_aside(DIRECTORY, stop=False)
    assert "step 3" in sentence and name.removeprefix("in1k/3/") in sentence
    assert manager.completed_steps(DIRECTORY) == [1]
    assert store.names("in1k/damaged/3/params/")

    # Of a save that was killed there are objects, but not the last one; of what is written now,
    # nothing is read back, but for the small files of Orbax's own.
    for name in store.names("in1k/1/"):
        if not name.endswith("commit_success.txt"):
            store.put(name.replace("/1/", "/3/"), store.objects[name].data)
    store.downloaded = 0
    save({3: 0.6})
    assert manager.completed_steps(DIRECTORY) == [1, 3]
    written = sum(len(store.objects[name].data) for name in store.names("in1k/3/params/"))
    assert store.downloaded < written / 2
    np.testing.assert_array_equal(restored(3)["kernel"], params(3)["kernel"])

    first, second = tmp_path / "first", tmp_path / "second"
    for workdir in (first, second):
        workdir.mkdir()
    (first / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    Mirror(first, DIRECTORY).close()
    Mirror(second, DIRECTORY).fetch()
    assert (second / "metrics.jsonl").read_text() == (first / "metrics.jsonl").read_text()
    assert manager.completed_steps(DIRECTORY) == [1, 3]
