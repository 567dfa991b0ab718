"""Training images that cannot be read: replaced where the run says so, and counted."""

import dataclasses
import errno
import types

import numpy as np
import pytest
from data.synthetic import Noise, Numbered

from convnext_jax import retry
from convnext_jax.data.pipeline import train_batches
from convnext_jax.errors import InputError, Lost, RunError

RUN = {"global_batch": 20, "seed": 1, "start_step": 0, "num_steps": 10, "threads": 1}


@dataclasses.dataclass(frozen=True)
class Broken(Numbered):
    """Some of its examples cannot be read. The label of each is its index."""

    bad: tuple[int, ...] = ()

    def __getitem__(self, index):
        if index in self.bad:
            raise InputError(f"record {index} is broken")
        return super().__getitem__(index)


def labels(batches):
    return np.stack([batch["label"] for batch in batches])


def test_the_default_is_to_stop_at_the_first():
    with pytest.raises(InputError, match="record 7 is broken"):
        list(train_batches(Broken(100, (7,)), Noise(), **RUN))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_examples_are_replaced_in_place_and_reported(workers):
    good = labels(train_batches(Numbered(100), Noise(), **RUN))
    batches = train_batches(
        Broken(100, (7, 50)), Noise(), **RUN, skip_bad=True, max_skipped=2, workers=workers
    )
    found = labels(batches)
    replaced = np.isin(good, (7, 50))
    assert replaced.sum() == 4  # two epochs
    np.testing.assert_array_equal(found[~replaced], good[~replaced])
    assert not np.isin(found, (7, 50)).any()
    # Others take the place in each epoch, the same ones for whoever reads.
    again = labels(train_batches(Broken(100, (7, 50)), Noise(), **RUN, skip_bad=True))
    np.testing.assert_array_equal(found, again)
    assert batches.skipped == {i: f"record {i} is broken" for i in (7, 50)}
    # Entries of a batch are those of any run.
    batch = next(train_batches(Broken(100, (7,)), Noise(), **RUN, skip_bad=True))
    assert batch.keys() == {"image", "label"}


def test_a_resumed_run_skips_alike():
    whole = labels(train_batches(Broken(100, (7, 50)), Noise(), **RUN, skip_bad=True))
    later = {**RUN, "start_step": 6}
    tail = labels(train_batches(Broken(100, (7, 50)), Noise(), **later, skip_bad=True))
    np.testing.assert_array_equal(tail, whole[6:])


def test_more_than_the_maximum_ends_the_run():
    batches = train_batches(
        Broken(100, tuple(range(40))), Noise(), **RUN, skip_bad=True, max_skipped=3
    )
    with pytest.raises(RunError, match=r"4 examples .* `data.max_skipped` \(=3\) .* is broken"):
        list(batches)


def test_a_dataset_of_nothing_good_ends_the_run():
    batches = train_batches(Broken(100, tuple(range(100))), Noise(), **RUN, skip_bad=True)
    with pytest.raises(InputError, match="is broken"):
        list(batches)


class Flaky:
    """Fails the first `failures` times it is read."""

    def __init__(self, failures, number=errno.EIO):
        self.failures, self.number = failures, number

    def __len__(self):
        return 100

    def __getitem__(self, index):
        if self.failures:
            self.failures -= 1
            try:
                raise OSError(self.number, "the server is away")
            except OSError as error:
                raise InputError(f"record {index} cannot be read: {error}") from error
        return Numbered(100)[index]


@pytest.fixture
def short_waits(monkeypatch):
    waits = []
    # Not `time.sleep` itself: other tests' threads may be asleep in this process.
    monkeypatch.setattr(retry, "time", types.SimpleNamespace(sleep=waits.append))
    return waits


def test_passing_errors_are_tried_again_with_longer_waits(short_waits):
    source = Flaky(failures=len(retry.WAITS_SECONDS))
    assert len(list(train_batches(source, Noise(), **RUN))) == 10
    assert short_waits == list(retry.WAITS_SECONDS)


def test_what_does_not_pass_is_not_the_inputs_fault(short_waits):
    # Nor is it a bad image that another may stand for.
    # One example's failures, no more: a thread that reads ahead as the run ends waits for none.
    source = Flaky(failures=len(retry.WAITS_SECONDS) + 1)
    batches = train_batches(source, Noise(), **RUN, skip_bad=True)
    with pytest.raises(Lost, match="again and again, 4[0-9] seconds .* the server is away"):
        list(batches)


def test_lasting_errors_are_not_tried_again(short_waits):
    with pytest.raises(InputError, match="the server is away"):
        list(train_batches(Flaky(1, errno.EACCES), Noise(), **RUN))
    assert not short_waits


@dataclasses.dataclass(frozen=True)
class Backwards:
    """An order of one's own, with one step more than there are whole batches."""

    steps_per_epoch = 4

    def __call__(self, step, row):
        epoch, step = divmod(step, 4)
        return epoch, (29 - 8 * step - row) % 30

    def others(self, epoch, index, rng, count):
        return np.full(count, 17 + epoch)


def test_a_tasks_own_order_and_what_takes_the_place_of_an_example():
    run = {"global_batch": 8, "seed": 1, "start_step": 0, "num_steps": 8, "threads": 2}
    with train_batches(Numbered(30), Noise(), **run, order=Backwards()) as batches:
        found = [batch["label"].tolist() for batch in batches]
    assert found[0] == list(range(29, 21, -1))
    assert found[3] == [5, 4, 3, 2, 1, 0, 29, 28]
    assert found[4:] == found[:4]
    broken = Broken(30, (25,))
    options = {"order": Backwards(), "skip_bad": True}
    with train_batches(broken, Noise(), **run, **options) as batches:
        replaced = [batch["label"].tolist() for batch in batches]
    assert replaced[0] == [17 if label == 25 else label for label in found[0]]
    assert replaced[4] == [18 if label == 25 else label for label in found[0]]
