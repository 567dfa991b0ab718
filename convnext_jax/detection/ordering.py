"""Which examples a batch has, so that all of its images have one orientation.

mmdetection groups by the orientation of the stored images, for each GPU's pair; here it is that of
the augmented images, and a whole batch has one: it lies on one canvas (`detection.transforms`).
"""

import dataclasses
import math
import threading
from typing import Any

import numpy as np

from convnext_jax.data.generators import first_uniforms
from convnext_jax.detection.transforms import DRAWS, EvalCanvas, TrainCanvas
from convnext_jax.errors import InputError

# Epochs that are kept: reading ahead, threads are in two at once.
_KEPT = 2


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """The batches of an epoch.

    Attributes:
      batches: int32 [steps, global_batch], indices of examples.
      portrait: bool [steps], whether the images of a batch are taller than wide.
      of_example: bool [N], the same of each example, as it is augmented in this epoch.
    """

    batches: np.ndarray
    portrait: np.ndarray
    of_example: np.ndarray


def steps_per_epoch(count: int, global_batch: int) -> int:
    """Batches of an epoch of so many examples, whatever their orientations."""
    return math.ceil(count / global_batch) + 1


class TrainOrder:
    """The examples of each step of training: a function of (seed, step), the same everywhere.

    An epoch is `steps_per_epoch` steps, always as many. In each, examples are shuffled and divided
    into those that their augmentation makes portrait images and the others; each group is filled
    up, by repeating examples of its own from its beginning on, to whole batches; and batches are
    shuffled. So every example comes at least once an epoch, and most come exactly once. Two groups
    need one batch more than one group at most, which is why there are ceil(N / B) + 1 steps; where
    fewer are needed, the larger group has one more batch of repetitions.

    An example that is repeated is augmented the same way.

    It can be pickled; a process computes an epoch when it is first asked for it, in a fraction of a
    second, and keeps two.

    Attributes:
      steps_per_epoch: batches of an epoch.
    """

    def __init__(self, sizes: np.ndarray, transform: TrainCanvas, global_batch: int, seed: int):
        """Computes nothing yet.

        Args:
          sizes: int [N, 2], height and width of each image as it is stored.
          transform: is given `np.random.default_rng((seed, epoch, index))` for an example.
          global_batch: examples of a step, over all hosts.
          seed: 0 or more.

        Raises:
          InputError: a number is out of range, or there are no examples.
        """
        if not len(sizes):
            raise InputError("there must be examples to train on, and there are none")
        if global_batch < 1:
            raise InputError(f"`global_batch` (={global_batch}) must be positive")
        if seed < 0:
            raise InputError(f"`seed` (={seed}) must be 0 or more")
        self._given = np.asarray(sizes, np.int32), transform, global_batch, seed
        self.steps_per_epoch = steps_per_epoch(len(sizes), global_batch)
        self._epochs: dict[int, _Epoch] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles what it was made of."""
        return TrainOrder, self._given

    def __call__(self, step: int, row: int) -> tuple[int, int]:
        """The epoch, and the index of the example, of a row of a step's batch.

        Args:
          step: counted from the run's beginning.
          row: 0..global_batch-1.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        return epoch, int(self._epoch(epoch).batches[place, row])

    def portrait(self, step: int) -> bool:
        """Whether the images of a step's batch are taller than wide, as they are augmented."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return bool(self._epoch(epoch).portrait[place])

    def others(self, epoch: int, index: int, rng: np.random.Generator, count: int) -> np.ndarray:
        """Examples to take in place of one that cannot be read, at random, of its orientation.

        Each is augmented with its own generator, that of (seed, epoch, itself), as that is what
        its orientation follows from.

        Args:
          epoch: in which it cannot be read.
          index: of the example.
          rng: generator to draw with.
          count: how many to draw.

        Returns:
          Indices [count], `index` itself only where there is no other.
        """
        of_example = self._epoch(epoch).of_example
        same = np.flatnonzero(of_example == of_example[index])
        same = same[same != index] if len(same) > 1 else same
        return same[rng.integers(len(same), size=count)]

    def _epoch(self, epoch: int) -> _Epoch:
        found = self._epochs.get(epoch)
        if found is None:
            with self._lock:
                if epoch not in self._epochs:
                    kept = dict(list(self._epochs.items())[-(_KEPT - 1) :])
                    self._epochs = kept | {epoch: self._made(epoch)}
                found = self._epochs[epoch]
        return found

    def _made(self, epoch: int) -> _Epoch:
        sizes, transform, global_batch, seed = self._given
        drawn = first_uniforms((seed, epoch), np.arange(len(sizes)), DRAWS)
        portrait = transform.geometry(drawn, sizes).portrait
        # One that shares nothing with those of examples, which have no such key.
        rng = np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(0,)))
        order = rng.permutation(len(sizes)).astype(np.int32)
        groups = [order[portrait[order] == which] for which in (False, True)]
        batches = [math.ceil(len(group) / global_batch) for group in groups]
        larger = int(len(groups[1]) > len(groups[0]))
        batches[larger] += self.steps_per_epoch - sum(batches)
        filled = [
            np.resize(group, (count, global_batch))
            for group, count in zip(groups, batches, strict=True)
        ]
        shuffled = rng.permutation(self.steps_per_epoch)
        return _Epoch(
            batches=np.concatenate(filled)[shuffled],
            portrait=np.repeat([False, True], batches)[shuffled],
            of_example=portrait,
        )


class EvalOrder:
    """The examples of an evaluation's batches, each exactly once, of one orientation a batch.

    First come the landscape images, and square ones, then the portrait ones, each in the order of
    the source and filled up to whole batches.

    Attributes:
      num_batches: batches of an evaluation.
    """

    def __init__(self, sizes: np.ndarray, transform: EvalCanvas, global_batch: int):
        """Computes the order.

        Args:
          sizes: int [N, 2], height and width of each image as it is stored.
          transform: makes the rows; orientation is that of what it makes.
          global_batch: examples of a batch, over all hosts.

        Raises:
          InputError: `global_batch` is out of range.
        """
        if global_batch < 1:
            raise InputError(f"`global_batch` (={global_batch}) must be positive")
        final = transform.sizes(np.asarray(sizes).reshape(-1, 2))
        of_example = final[:, 0] > final[:, 1]
        groups = [np.flatnonzero(of_example == which) for which in (False, True)]
        counts = [math.ceil(len(group) / global_batch) for group in groups]
        rows = [
            np.pad(group, (0, count * global_batch - len(group)), constant_values=-1)
            for group, count in zip(groups, counts, strict=True)
        ]
        self._indices = np.concatenate(rows).astype(np.int32)
        self._portrait = np.repeat([False, True], counts)
        self.num_batches = sum(counts)
        self._global_batch = global_batch

    def __len__(self) -> int:
        """Rows of all batches, with those that fill up."""
        return len(self._indices)

    def __getitem__(self, place: int) -> int:
        """Index of the example in a row, counted over all batches; -1: filling."""
        return int(self._indices[place])

    def portrait(self, place: int) -> bool:
        """Whether the images of the batch that a row is in are taller than wide."""
        return bool(self._portrait[place // self._global_batch])
