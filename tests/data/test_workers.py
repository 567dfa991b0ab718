"""Decoding workers, against real signals; one program shows several things, as each start costs."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data.synthetic import Numbered, Pixel

from convnext_jax.classification.transforms import EvalTransform, Labelled
from convnext_jax.data.pipeline import Passes, train_batches
from convnext_jax.errors import InputError, Lost

ROOT = pathlib.Path(__file__).parent.parent.parent
RUN = {"global_batch": 64, "seed": 0, "start_step": 0, "num_steps": 10**6, "workers": 2}


class Slow(Pixel):
    """Keeps whoever wants batches waiting: 32 images of a piece take 0.3 s. Shows its process."""

    def pixel(self, rng):
        time.sleep(0.01)
        return np.frombuffer(np.uint32(os.getpid()).tobytes()[:3], np.uint8).reshape(1, 1, 3)


@dataclasses.dataclass(frozen=True)
class Holed(Numbered):
    """Some examples cannot be read."""

    bad: tuple[int, ...] = ()

    def __getitem__(self, index):
        if index in self.bad:
            raise InputError(f"example {index} of the holed is broken")
        return super().__getitem__(index)


def starved():
    """A run that waits for its workers, as one that reads more slowly than it computes."""
    told = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *what: told.append(what[0]))
    batches = train_batches(Numbered(1000), Slow(), **RUN, threads=1)
    print("starting", flush=True)
    pids = {batch["image"].tobytes()[i * 3 :][:3] for batch in [next(batches)] for i in range(64)}
    print(*(int.from_bytes(pid, "little") for pid in pids), flush=True)
    for count in range(8):
        next(batches)
        if count == 2:
            print("waiting", flush=True)
    print("told", *sorted(told), flush=True)
    next(batches)
    os._exit(7)  # as a run of several processes ends when it fails


def alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pids, seconds=10):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def children(pid):
    listed = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in listed for child in file.read_text().split()]


def start():
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_workers_leave_signals_to_the_run_and_end_with_it():
    run = start()
    assert run.stdout.readline() == "starting\n"
    while not children(run.pid):
        time.sleep(0.01)
    time.sleep(0.2)  # workers are being born: the interpreter has no handlers yet
    os.killpg(run.pid, signal.SIGTERM)
    workers = [int(pid) for pid in run.stdout.readline().split()]
    assert run.stdout.readline() == "waiting\n"
    os.killpg(run.pid, signal.SIGINT)
    os.killpg(run.pid, signal.SIGTERM)
    out, errors = run.communicate(timeout=60)
    assert (out, run.returncode) == ("told 2 15 15\n", 7), errors
    assert not errors  # no worker's traceback
    assert len(workers) == 2 and gone(workers)


def test_workers_do_not_outlive_a_killed_run():
    run = start()
    run.stdout.readline()
    workers = [int(pid) for pid in run.stdout.readline().split()]
    assert len(workers) == 2 and all(map(alive, workers))
    run.kill()
    run.communicate()
    assert gone(workers)


def test_passes_share_their_workers_and_one_left_early_does_no_harm():
    passes = Passes(Numbered(100), Slow(), global_batch=40, workers=2, threads=2)
    pids = []
    for _ in range(3):
        batches = list(passes())
        assert np.concatenate([b["label"] for b in batches]).tolist()[:100] == list(range(100))
        assert sum(b["mask"].sum() for b in batches) == 100
        pids.append({pixel.tobytes() for b in batches for pixel in b["image"][b["mask"] > 0]})
    assert len(pids[0]) == 2 and pids[0] == pids[1] == pids[2]
    begun = passes()
    next(begun)
    begun.close()
    assert next(passes())["label"].tolist() == list(range(40))
    passes.close()


def test_the_next_pass_is_ready_when_it_is_wanted():
    passes = Passes(Numbered(100), Slow(), global_batch=40, workers=1, threads=1)
    list(passes())
    time.sleep(2)  # the run trains
    began = time.monotonic()
    batches = passes()
    next(batches)
    # Its 40 images take 0.4 s and a worker's start more than that.
    assert time.monotonic() - began < 0.1
    batches.close()
    passes.close()


def test_the_check_finds_what_cannot_be_read_before_any_pass():
    for workers in (0, 1):
        passes = Passes(
            Holed(100, (77,)),
            Labelled(EvalTransform(8)),
            global_batch=40,
            check=True,
            workers=workers,
        )
        batches = train_batches(
            Numbered(1000), Slow(), **RUN | {"workers": 0}, beside=passes.start, threads=1
        )
        deadline = time.monotonic() + 60
        message = ""
        while not message and time.monotonic() < deadline:
            try:
                next(batches)
            except InputError as error:
                message = str(error)
        assert message == (
            "example 77 of the holed is broken; `data.on_error=skip` goes on without such images"
        )
        passes.close()


def test_a_check_of_whole_data_changes_no_pass():
    passes = Passes(Numbered(100), Labelled(EvalTransform(8)), global_batch=40, check=True)
    for _ in range(2):
        labels = np.concatenate([batch["label"] for batch in passes()])
        assert labels.tolist()[:100] == list(range(100))
    passes.close()


if __name__ == "__main__":
    starved()


def test_a_worker_that_is_killed_ends_the_run_in_a_sentence():
    with train_batches(Numbered(1000), Slow(), **RUN | {"workers": 1}, threads=1) as batches:
        worker = next(batches)["image"].tobytes()[:3]
        os.kill(int.from_bytes(worker, "little"), signal.SIGKILL)
        with pytest.raises(Lost, match=r"a decoding worker was killed \(exit status -9\)"):
            for _ in range(100):
                next(batches)
