"""Batches of one orientation: each example of training at least, of evaluation exactly once."""

import pickle
import threading
import time

import numpy as np
import pytest
from detection.made_examples import SMALL, an_example

from convnext_jax.detection.ordering import EvalOrder, TrainOrder
from convnext_jax.detection.transforms import EvalCanvas
from convnext_jax.errors import InputError

EVAL = EvalCanvas()


def some_sizes(count, seed=0):
    """Sizes of which a third is portrait, and some are near to square."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(40, 130, (count, 2))
    sizes[::7, 1] = sizes[::7, 0] + rng.integers(-1, 2, len(sizes[::7]))
    return sizes


def epoch_of(order, epoch, global_batch):
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    found = [[order(step, row) for row in range(global_batch)] for step in steps]
    assert {which for batch in found for which, _ in batch} == {epoch}
    return np.array([[index for _, index in batch] for batch in found])


def test_rows_of_a_batch_have_one_orientation():
    """What the transform makes of each example, with the generator that the pipeline gives it."""
    count, batch, seed = 23, 4, 5
    sizes = some_sizes(count)
    rng = np.random.default_rng(0)
    examples = [an_example(rng, *size, 1)[:2] for size in sizes.tolist()]
    order = TrainOrder(sizes, SMALL, batch, seed)
    assert order.steps_per_epoch == 7
    turned = set()
    for epoch in (0, 1, 40):
        batches = epoch_of(order, epoch, batch)
        assert batches.shape == (7, 4) and set(batches.ravel().tolist()) == set(range(count))
        for place, indices in enumerate(batches):
            expected = order.portrait(epoch * 7 + place)
            for index in indices.tolist():
                row = SMALL(examples[index], np.random.default_rng((seed, epoch, index)))
                assert row["portrait"] == expected
                height, width = row["size"]
                assert (height > width) == expected
                turned.add((bool(sizes[index, 0] > sizes[index, 1]), expected))
    # Crops change the orientation of some.
    assert len(turned) == 4


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 16, 50, 100])
@pytest.mark.parametrize("kind", ["both", "landscape", "portrait", "one portrait"])
def test_each_epoch_has_as_many_steps_and_every_example(batch, kind):
    """Of one orientation alone too, and where a group, or all, are smaller than a batch."""
    count = 50
    sizes = {
        "both": some_sizes(count),
        "landscape": np.tile([40, 400], (count, 1)),
        "portrait": np.tile([400, 40], (count, 1)),
        "one portrait": np.concatenate([np.tile([40, 400], (count - 1, 1)), [[400, 40]]]),
    }[kind]
    order = TrainOrder(sizes, SMALL, batch, 1)
    assert order.steps_per_epoch == -(-count // batch) + 1
    for epoch in range(4):
        batches = epoch_of(order, epoch, batch)
        first = epoch * order.steps_per_epoch
        portrait = np.array([order.portrait(first + i) for i in range(len(batches))])
        for group in (batches[portrait], batches[~portrait]):
            # Examples of a group come equally often, but for the end of its last repetition.
            repeated = np.bincount(group.ravel(), minlength=count)
            assert not len(group) or np.ptp(repeated[repeated > 0]) <= 1
        assert not set(batches[portrait].ravel()) & set(batches[~portrait].ravel())
        assert set(batches.ravel().tolist()) == set(range(count))
        if kind in ("landscape", "portrait"):
            assert (portrait == (kind == "portrait")).all()


def test_only_what_fills_up_is_repeated():
    order = TrainOrder(some_sizes(500), SMALL, 16, 0)
    for epoch in range(5):
        batches = epoch_of(order, epoch, 16)
        assert batches.shape == (33, 16)
        repeated = np.bincount(batches.ravel(), minlength=500)
        assert repeated.min() == 1 and repeated.sum() - 500 == 28


def test_orders_are_random_by_seed_and_epoch():
    sizes = np.tile([40, 400], (1000, 1))
    orders = {}
    for seed in (0, 1, 2**40):
        order = TrainOrder(sizes, SMALL, 10, seed)
        for epoch in (0, 1):
            orders[seed, epoch] = epoch_of(order, epoch, 10).ravel()
    keys = list(orders)
    for i, one in enumerate(keys):
        for other in keys[:i]:
            # Two random orders have one place in common on average.
            assert (orders[one] == orders[other]).sum() < 10
        # No trace of the order of indices: a correlation of 1,000 pairs is within 5 / sqrt(1000).
        assert abs(np.corrcoef(np.arange(1000), orders[one][:1000])[0, 1]) < 0.16
    # Orientations are mixed, too, and not one after the other.
    order = TrainOrder(some_sizes(1600), SMALL, 16, 0)
    portrait = [order.portrait(step) for step in range(101)]
    assert 20 < sum(a != b for a, b in zip(portrait, portrait[1:], strict=False)) < 80


def test_it_is_the_same_in_other_processes_and_threads(monkeypatch):
    made = []
    make = TrainOrder._made

    def counted(self, epoch):
        made.append(epoch)
        time.sleep(0.05)  # so that threads meet
        return make(self, epoch)

    monkeypatch.setattr(TrainOrder, "_made", counted)
    order = TrainOrder(some_sizes(60), SMALL, 8, 3)
    expected = [order(step, row) for step in range(27) for row in range(8)]
    assert made == [0, 1, 2]
    again = pickle.loads(pickle.dumps(order))
    assert not again._epochs
    found = {}

    def read(number):
        found[number] = [again(step, row) for step in range(27) for row in range(8)]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(each == expected for each in found.values()) and len(found) == 4
    assert len(again._epochs) == 2
    # Within two epochs nothing is computed again, however one goes back and forth.
    order = TrainOrder(some_sizes(60), SMALL, 8, 3)
    made.clear()
    for step in (8, 9, 8, 17, 10, 0, 9):
        order(step, 0)
    assert made == [0, 1]


def test_what_stands_in_for_an_example_has_its_orientation():
    sizes = some_sizes(40)
    order = TrainOrder(sizes, SMALL, 4, 0)
    drawn = [np.random.default_rng((0, 2, i)).random(8) for i in range(40)]
    portrait = SMALL.geometry(np.array(drawn), sizes).portrait
    for index in range(40):
        found = order.others(2, index, np.random.default_rng(index), 20).tolist()
        assert index not in found and len(set(found)) > 3
        assert (portrait[found] == portrait[index]).all()
    alone = TrainOrder(np.array([[40, 400], [400, 40]]), SMALL, 4, 0)
    assert alone.others(0, 1, np.random.default_rng(0), 3).tolist() == [1, 1, 1]


def test_an_epoch_of_coco_takes_no_time():
    sizes = some_sizes(117_266)
    order = TrainOrder(sizes, SMALL, 16, 0)
    start = time.process_time()
    order(0, 0)
    # 0.3 s here; with a generator for each example it were 5 s.
    assert time.process_time() - start < 2
    assert order.steps_per_epoch == 7331


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
@pytest.mark.parametrize("kind", ["both", "landscape", "portrait", "none"])
def test_evaluation_has_every_example_once(batch, kind):
    sizes = {
        "both": some_sizes(50) * 5,
        "landscape": np.tile([300, 400], (50, 1)),
        "portrait": np.tile([400, 300], (50, 1)),
        "none": np.zeros((0, 2), int),
    }[kind]
    order = pickle.loads(pickle.dumps(EvalOrder(sizes, EVAL, batch)))
    assert len(order) == order.num_batches * batch
    indices = np.array([order[place] for place in range(len(order))], int)
    assert sorted(indices[indices >= 0].tolist()) == list(range(len(sizes)))
    # Each orientation may leave one batch unfilled.
    assert (indices == -1).sum() < 2 * batch
    final = EVAL.sizes(sizes)
    for place, index in enumerate(indices.tolist()):
        if index >= 0:
            assert order.portrait(place) == (final[index, 0] > final[index, 1])
        assert order.portrait(place) == order.portrait(place - place % batch)


def test_orientation_is_that_after_resizing():
    """A large image that is nearly square may end as a square."""
    order = EvalOrder(np.array([[10_000, 9_999], [10, 9]]), EVAL, 1)
    assert [order.portrait(place) for place in (0, 1)] == [False, True]


def test_numbers_out_of_range():
    sizes = some_sizes(4)
    for arguments, message in (
        ((sizes[:0], SMALL, 4, 0), "there must be examples to train on"),
        ((sizes, SMALL, 0, 0), r"`global_batch` \(=0\) must be positive"),
        ((sizes, SMALL, 4, -1), r"`seed` \(=-1\) must be 0 or more"),
    ):
        with pytest.raises(InputError, match=message):
            TrainOrder(*arguments)
    with pytest.raises(InputError, match=r"`global_batch` \(=0\) must be positive"):
        EvalOrder(sizes, EVAL, 0)
