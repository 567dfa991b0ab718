import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from data.ilsvrc import encode
from data.synthetic import Imported, Noise, Numbered, eval_batches, write_odd
from PIL import Image

from convnext_jax.classification.transforms import EvalTransform, Labelled, TrainTransform
from convnext_jax.data.pipeline import train_batches
from convnext_jax.data.sources import open_source
from convnext_jax.errors import InputError

TRAIN = {"global_batch": 80, "seed": 3, "start_step": 0, "num_steps": 24}


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert type(a[key]) is np.ndarray
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture(scope="module")
def digits(data_dir):
    return open_source("digits", "train", data_dir)


@pytest.fixture(scope="module")
def transform():
    return Labelled(TrainTransform(12, "padded"))


@pytest.fixture(scope="module")
def expected(digits, transform):
    """24 steps, which reach into the second epoch (17 steps of 80 in 1437 examples)."""
    return list(train_batches(digits, transform, **TRAIN, threads=1))


def test_shapes_types_and_number(expected):
    assert len(expected) == 24
    for batch in expected:
        assert batch["image"].shape == (80, 12, 12, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].shape == (80,)
        assert batch["label"].dtype == np.int32


@pytest.mark.parametrize(("workers", "threads"), [(0, 4), (1, 1), (2, 1)])
def test_the_same_batches_from_any_workers_and_threads(
    digits, transform, expected, workers, threads
):
    batches = train_batches(digits, transform, **TRAIN, workers=workers, threads=threads)
    assert_same(list(batches), expected)


@pytest.mark.parametrize("start", [1, 16, 17, 24])
def test_starting_later_gives_the_tail(digits, transform, expected, start):
    batches = train_batches(digits, transform, **{**TRAIN, "start_step": start})
    assert_same(list(batches), expected[start:])


def test_starting_late_in_a_long_run_takes_no_time():
    start = 10**9
    began = time.monotonic()
    batches = train_batches(
        Numbered(1000), Noise(), global_batch=10, seed=0, start_step=start, num_steps=start + 2
    )
    assert len(list(batches)) == 2
    assert time.monotonic() - began < 5  # counting up to there would take minutes


def test_hosts_take_rows_of_one_global_batch(digits, transform, expected):
    # Stretches, as on most machines, and rows that alternate, as on a TPU slice.
    for parts in ([range(30), range(30, 80)], [range(0, 80, 2), range(1, 80, 2)]):
        hosts = [train_batches(digits, transform, **TRAIN, rows=rows) for rows in parts]
        order = np.argsort(np.concatenate(parts))
        joined = [
            {key: np.concatenate([piece[key] for piece in pieces])[order] for key in pieces[0]}
            for pieces in zip(*hosts, strict=True)
        ]
        assert_same(joined, expected)


@pytest.mark.parametrize(("length", "global_batch"), [(103, 20), (64, 64), (7, 1), (200, 99)])
def test_each_epoch_is_the_beginning_of_a_permutation(length, global_batch):
    epochs, steps = 4, length // global_batch
    batches = train_batches(
        Numbered(length),
        Noise(),
        global_batch=global_batch,
        seed=0,
        start_step=0,
        num_steps=epochs * steps,
    )
    orders = np.concatenate([batch["label"] for batch in batches]).reshape(epochs, -1)
    assert orders.shape[1] == steps * global_batch
    for order in orders:
        assert len(set(order)) == len(order)
    for one, other in itertools.combinations(orders, 2):
        assert not np.array_equal(one, other)


def first_order(seed, epoch=0, length=1000):
    run = {"global_batch": length, "seed": seed, "start_step": epoch, "num_steps": epoch + 1}
    (batch,) = train_batches(Numbered(length), Noise(), **run)
    return batch["label"]


def test_orders_look_random_and_neighbouring_seeds_share_none():
    orders = [first_order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    for one, other in itertools.combinations(orders, 2):
        # The correlation of random orders has standard deviation 1/sqrt(1000) = 0.03.
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.15
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.15


def test_augmentation_depends_on_seed_epoch_and_example():
    def noise(**run):
        batches = list(train_batches(Numbered(50), Noise(), global_batch=50, start_step=0, **run))
        return [{tuple(i.ravel()) for i in batch["image"]} for batch in batches]

    first, second = noise(seed=0, num_steps=2)
    assert len(first) == 50  # no two examples share a generator
    assert not first & second
    assert not first & noise(seed=1, num_steps=1)[0]
    assert noise(seed=0, num_steps=1) == [first]


@pytest.mark.parametrize(
    ("length", "global_batch", "count", "workers"),
    [
        (103, 20, 1, 0),
        (100, 20, 1, 0),
        (5, 64, 1, 0),
        (103, 60, 3, 0),
        (61, 60, 3, 0),
        (103, 80, 1, 2),
    ],
)
def test_evaluation_has_every_example_once(length, global_batch, count, workers):
    seen = []
    numbers = []
    for i in range(count):
        batches = list(
            eval_batches(
                Numbered(length),
                Labelled(EvalTransform(8, 1.0)),
                global_batch=global_batch,
                rows=range(i * global_batch // count, (i + 1) * global_batch // count),
                workers=workers,
            )
        )
        numbers.append(len(batches))
        for batch in batches:
            rows = global_batch // count
            assert batch["image"].shape == (rows, 8, 8, 3)
            assert batch["mask"].dtype == np.float32
            assert batch["label"].dtype == np.int32
            real = batch["mask"] == 1
            assert not batch["mask"][~real].any()
            assert not batch["label"][~real].any()
            assert not batch["image"][~real].any()
            seen.extend(batch["label"][real])
            np.testing.assert_array_equal(batch["image"][real, 0, 0, 0], batch["label"][real])
    assert set(numbers) == {-(-length // global_batch)}
    assert sorted(seen) == list(range(length))
    if count == 1:
        assert seen == list(range(length))


@pytest.mark.parametrize("workers", [0, 2])
def test_closing_early_leaves_nothing_behind(workers):
    def threads():
        return {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}

    before = threads()
    with train_batches(
        Numbered(1000),
        Noise(),
        global_batch=50,
        seed=0,
        start_step=0,
        num_steps=10**6,
        workers=workers,
    ) as batches:
        next(batches)
    batches.close()  # a second time does nothing
    with pytest.raises(StopIteration):
        next(batches)
    deadline = time.monotonic() + 10  # a thread ends with the piece it has in hand
    while threads() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not threads() - before
    assert not multiprocessing.active_children()


def test_a_finished_iterator_stays_finished():
    batches = eval_batches(Numbered(4), Labelled(EvalTransform(8)), global_batch=4)
    assert len(list(batches)) == 1
    assert list(batches) == []


def test_workers_use_neither_tensorflow_nor_jax_nor_torch(digits):
    (batch,) = eval_batches(digits, Imported(), global_batch=len(digits), workers=1)
    assert not batch["image"].any()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_broken_image_is_one_sentence_for_the_consumer(tmp_path, workers):
    good = encode(Image.new("RGB", (8, 8)), "rgb")
    examples = [
        {"image": image, "label": 1, "file_name": f"{i}.jpg"}
        for i, image in enumerate([good, good, good[:50], good])
    ]
    write_odd(tmp_path, examples)
    source = open_source("odd", "train", tmp_path)
    broken = next(i for i in range(4) if source._records[i]["file_name"] == b"2.jpg")
    batches = eval_batches(source, Labelled(EvalTransform(8)), global_batch=2, workers=workers)
    with pytest.raises(InputError) as caught:
        list(batches)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(
        f"the image in record {broken} of dataset `odd`, split `train` (2.jpg) cannot be decoded: "
    )
    assert message.endswith("; `data.on_error=skip` goes on without such images")
    assert not multiprocessing.active_children()


def test_sources_and_transforms_can_be_pickled(digits, transform):
    for thing in (digits, transform, Labelled(EvalTransform(224))):
        pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"global_batch": 11}, "`global_batch` \\(=11\\) must be at most .* \\(=10\\)"),
        ({"global_batch": 0}, "`global_batch` \\(=0\\) must be positive"),
        ({"rows": [3, 4]}, "`rows` .* must be some of 0..`global_batch` - 1 \\(=3\\)"),
        ({"rows": []}, "`rows`"),
        ({"seed": -1}, "`seed` \\(=-1\\)"),
        ({"start_step": 3}, "`start_step` \\(=3\\) must be in 0..`num_steps` \\(=2\\)"),
        ({"workers": -1}, "`workers` \\(=-1\\)"),
        ({"threads": 0}, "`threads` \\(=0\\)"),
        ({"prefetch": 0}, "`prefetch` \\(=0\\)"),
    ],
)
def test_a_number_out_of_range_is_an_error(changed, message):
    numbers = {"global_batch": 4, "seed": 0, "start_step": 0, "num_steps": 2, **changed}
    with pytest.raises(InputError, match=message):
        train_batches(Numbered(10), Noise(), **numbers)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_reading_ahead_is_lowered_for_who_may_not_raise_it():
    """As under `nice` or a batch system, for another user than root: none in its own namespace."""
    wanted = max(15, os.getpriority(os.PRIO_PROCESS, 0))
    program = "import os; from convnext_jax.data.pieces import _beside;"
    program += f"os.setpriority(os.PRIO_PROCESS, 0, {wanted}); print(_beside(os.getpriority, 0, 0))"
    command = ["unshare", "--map-root-user", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (f"{wanted}\n", 0), done.stderr
