"""Batches for training and evaluation: Grain reads ahead, in threads or in worker processes.

The batch of a step is a function of (seed, step) alone. Grain gets a map from a number to a piece
of a host's batch and evaluates it ahead of time; nothing in it depends on who evaluates what.
"""

import contextlib
import dataclasses
import functools
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags
from PIL import Image

from convnext_jax.errors import InputError, RunError
from convnext_jax.retry import retrying

# A thread or worker produces this many examples at a time: small enough that a batch is spread over
# all of them, large enough that passing it between processes costs little beside decoding it.
_PIECE = 32
# Examples that are tried in place of one that cannot be read.
_CANDIDATES = 10

Batch = dict[str, np.ndarray]


class Examples(Protocol):
    """What the pipeline needs of a source: examples by index. Workers receive it pickled."""

    def __len__(self) -> int: ...  # noqa: D105

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]: ...  # noqa: D105


class TrainTransform(Protocol):
    """A random transform to uint8 [image_size, image_size, 3]."""

    @property
    def image_size(self) -> int: ...  # noqa: D102

    def __call__(self, image: Image.Image, rng: np.random.Generator, /) -> np.ndarray: ...  # noqa: D102


class EvalTransform(Protocol):
    """A deterministic transform to uint8 [image_size, image_size, 3]."""

    @property
    def image_size(self) -> int: ...  # noqa: D102

    def __call__(self, image: Image.Image, /) -> np.ndarray: ...  # noqa: D102


class Batches:
    """Iterator over batches that reads ahead. Close it, or use it as a context manager.

    It closes itself when it is finished and when reading fails; it can be closed twice.

    Attributes:
      skipped: what happened to each example that was replaced, in the order of their discovery.
    """

    def __init__(
        self, pieces: Any, pieces_per_batch: int, explain: Callable[[int], str], max_skipped: int
    ):
        """Joins each `pieces_per_batch` successive elements of `pieces`, a Grain iterator.

        Args:
          pieces: may have an entry `skipped`: examples that were replaced, -1 for the others.
          pieces_per_batch: how many make a batch.
          explain: says what is wrong with an example.
          max_skipped: most examples that may be replaced.
        """
        self.skipped: dict[int, str] = {}
        self._pieces = pieces
        self._pieces_per_batch = pieces_per_batch
        self._explain = explain
        self._max_skipped = max_skipped

    def __iter__(self) -> "Batches":
        """Returns itself."""
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          InputError: an example cannot be used; raised here wherever it was read.
          RunError: more examples had to be replaced than may be.
        """
        if self._pieces is None:
            raise StopIteration
        try:
            pieces = [next(self._pieces) for _ in range(self._pieces_per_batch)]
            for piece in pieces:
                self._note_skipped(piece.pop("skipped", ()))
        except BaseException:
            self.close()
            raise
        # Also where there is one piece: arrays from workers lie in shared memory, which is freed
        # when Grain's array is, and are of a class of Grain's own.
        return {
            key: np.concatenate([np.asarray(piece[key]) for piece in pieces]) for key in pieces[0]
        }

    def _note_skipped(self, examples: Iterable[int]) -> None:
        for example in map(int, examples):
            if example < 0 or example in self.skipped:
                continue
            self.skipped[example] = self._explain(example)
            if len(self.skipped) > self._max_skipped:
                raise RunError(
                    f"{len(self.skipped)} examples cannot be used, and `data.max_skipped`"
                    f" (={self._max_skipped}) may be skipped; the last: {self.skipped[example]}"
                )

    def close(self) -> None:
        """Stops the threads and worker processes."""
        if self._pieces is not None:
            pieces, self._pieces = self._pieces, None
            pieces.close()

    def __enter__(self) -> "Batches":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes."""
        self.close()


def train_batches(
    source: Examples,
    transform: TrainTransform,
    *,
    global_batch: int,
    seed: int,
    start_step: int,
    num_steps: int,
    rows: Sequence[int] | None = None,
    skip_bad: bool = False,
    max_skipped: int = 100,
    workers: int = 0,
    threads: int = 4,
    prefetch: int = 2,
) -> Batches:
    """Yields this host's part of the batch of each step from `start_step` to `num_steps - 1`.

    An epoch is floor(N / global_batch) steps over a random order of the N examples; the examples
    that are left over are not seen in that epoch. The order depends on (seed, epoch), the random
    transform of an example on (seed, epoch, example), so the same batches come out on any number
    of hosts, workers and threads, and from any `start_step`, which costs no time.

    Args:
      source: the training examples.
      transform: called with each image and a generator.
      global_batch: examples a step, over all hosts.
      seed: 0 or more.
      start_step: first step to yield; a run that resumes gives the number of steps it has done.
      num_steps: steps of the whole run.
      rows: those of the global batch that this host holds; None for all.
      skip_bad: replace an example that cannot be read by another, drawn from (seed, epoch,
        example), instead of raising.
      max_skipped: most examples that this host may replace.
      workers: worker processes that read and transform; 0 reads in this process.
      threads: reading threads in this process, or in each worker.
      prefetch: batches that are held ready.

    Returns:
      Batches {"image": uint8 [n, image_size, image_size, 3] in 0..255, "label": int32 [n]}, n the
      number of `rows`.

    Raises:
      InputError: a number is out of range, or `global_batch` exceeds the number of examples.
    """
    held = _check_rows(rows, global_batch)
    if global_batch > len(source):
        raise InputError(
            f"`global_batch` (={global_batch}) must be at most the number of training examples"
            f" (={len(source)})"
        )
    if seed < 0:
        raise InputError(f"`seed` (={seed}) must be 0 or more")
    if not 0 <= start_step <= num_steps:
        raise InputError(f"`start_step` (={start_step}) must be in 0..`num_steps` (={num_steps})")
    piece = _TrainPiece(source, transform, global_batch, held, seed, skip_bad)
    return _read(piece, start_step, num_steps, workers, threads, prefetch, max_skipped)


def eval_batches(
    source: Examples,
    transform: EvalTransform,
    *,
    global_batch: int,
    rows: Sequence[int] | None = None,
    workers: int = 0,
    threads: int = 4,
    prefetch: int = 2,
) -> Batches:
    """Yields this host's part of each batch of the source in its own order, once.

    Over all hosts every example comes exactly once with mask 1. The last global batch is filled
    with black images of label 0 and mask 0, so every host has as many batches, all of one shape.

    Args:
      source: the examples to evaluate.
      transform: called with each image.
      global_batch: examples a batch, over all hosts.
      rows: those of the global batch that this host holds; None for all.
      workers: worker processes that read and transform; 0 reads in this process.
      threads: reading threads in this process, or in each worker.
      prefetch: batches that are held ready.

    Returns:
      Batches {"image": uint8 [n, image_size, image_size, 3] in 0..255, "label": int32 [n],
      "mask": float32 [n], 1 for an example and 0 for filling}, n the number of `rows`.

    Raises:
      InputError: a number is out of range.
    """
    piece = _EvalPiece(source, transform, global_batch, _check_rows(rows, global_batch))
    num_batches = math.ceil(len(source) / global_batch)
    return _read(piece, 0, num_batches, workers, threads, prefetch)


@dataclasses.dataclass(frozen=True)
class _TrainPiece:
    """Maps the number of a piece, counted over all steps, to its examples."""

    source: Examples
    transform: TrainTransform
    global_batch: int
    rows: np.ndarray  # of this host, in the global batch
    seed: int
    skip_bad: bool

    @functools.cached_property
    def _order(self) -> Any:
        # Grain shuffles epoch e with its seed plus e, so two runs with neighbouring seeds would
        # share their orders, one epoch apart; a hash of our seed keeps them apart.
        seed = np.random.SeedSequence(self.seed).generate_state(1)[0]
        return grain.MapDataset.range(len(self.source)).shuffle(seed=int(seed))

    def __call__(self, number: int) -> Batch:
        step, rows = _step_and_rows(number, self.rows)
        epoch, step_in_epoch = divmod(step, len(self.source) // self.global_batch)
        first = epoch * len(self.source) + step_in_epoch * self.global_batch
        size = self.transform.image_size
        images = np.empty((len(rows), size, size, 3), np.uint8)
        labels = np.empty(len(rows), np.int32)
        skipped = np.full(len(rows), -1, np.int64)
        for i, row in enumerate(rows):
            example = int(self._order[first + int(row)])
            try:
                image, labels[i] = read_example(self.source, example)
            except InputError:
                if not self.skip_bad:
                    raise
                image, labels[i] = self._another(epoch, example)
                skipped[i] = example
            rng = np.random.default_rng((self.seed, epoch, example))
            images[i] = self.transform(image, rng)
        batch = {"image": images, "label": labels}
        return batch | {"skipped": skipped} if self.skip_bad else batch

    def _another(self, epoch: int, example: int) -> tuple[Image.Image, int]:
        """An example in place of one that cannot be read; the same one wherever this runs."""
        candidates = np.random.default_rng((self.seed, epoch, example, len(self.source)))
        for candidate in candidates.integers(len(self.source), size=_CANDIDATES - 1):
            with contextlib.suppress(InputError):
                return read_example(self.source, int(candidate))
        return read_example(self.source, int(candidates.integers(len(self.source))))


@dataclasses.dataclass(frozen=True)
class _EvalPiece:
    """Maps the number of a piece, counted over all batches, to its examples and their mask."""

    source: Examples
    transform: EvalTransform
    global_batch: int
    rows: np.ndarray

    def __call__(self, number: int) -> Batch:
        step, rows = _step_and_rows(number, self.rows)
        first = step * self.global_batch
        size = self.transform.image_size
        images = np.zeros((len(rows), size, size, 3), np.uint8)
        labels = np.zeros(len(rows), np.int32)
        mask = np.zeros(len(rows), np.float32)
        for i, example in enumerate((first + rows).tolist()):
            if example < len(self.source):
                image, labels[i] = read_example(self.source, example)
                images[i] = self.transform(image)
                mask[i] = 1
        return {"image": images, "label": labels, "mask": mask}


def _step_and_rows(number: int, rows: np.ndarray) -> tuple[int, np.ndarray]:
    """The step that piece `number` belongs to, and which of the host's `rows` it holds."""
    step, piece = divmod(number, math.ceil(len(rows) / _PIECE))
    return step, rows[piece * _PIECE : (piece + 1) * _PIECE]


def _check_rows(rows: Sequence[int] | None, global_batch: int) -> np.ndarray:
    if global_batch < 1:
        raise InputError(f"`global_batch` (={global_batch}) must be positive")
    held = np.arange(global_batch) if rows is None else np.asarray(rows, np.int64)
    if not len(held) or held.min() < 0 or held.max() >= global_batch:
        raise InputError(
            f"`rows` (={rows}) must be some of 0..`global_batch` - 1 (={global_batch - 1})"
        )
    return held


def read_example(source: Examples, index: int) -> tuple[Image.Image, int]:
    """`source[index]`, tried again after a while where the file system has a passing problem."""
    return retrying(lambda: source[index])


def _explain(source: Examples, index: int) -> str:
    """What is wrong with an example, by reading it once more."""
    try:
        source[index]
    except InputError as error:
        return str(error)
    return f"record {index} could not be read at first"


def _read(
    piece: _TrainPiece | _EvalPiece,
    start: int,
    stop: int,
    workers: int,
    threads: int,
    prefetch: int,
    max_skipped: int = 0,
) -> Batches:
    """Evaluates the pieces of the steps start..stop-1 ahead of time and joins them to batches."""
    for name, value, least in (("workers", workers, 0), ("threads", threads, 1)):
        if value < least:
            raise InputError(f"`{name}` (={value}) must be {least} or more")
    if prefetch < 1:
        raise InputError(f"`prefetch` (={prefetch}) must be 1 batch or more")
    per_batch = math.ceil(len(piece.rows) / _PIECE)
    ahead = prefetch * per_batch
    pieces = grain.MapDataset.range(start * per_batch, stop * per_batch).map(piece)
    # A worker holds its share in the buffer between it and this process.
    reading = threads if workers else max(threads, ahead)
    dataset = pieces.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=reading)
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, also where no absl main ran.
        # At an early end Python frees the shared memory that workers had filled, and would say so.
        os.environ["PYTHONWARNINGS"] = ",".join(
            filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"])
        )
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=math.ceil(ahead / workers)
            )
        )
    pieces = iter(dataset)
    with _without_sigterm():
        pieces.start_prefetch()
    return Batches(pieces, per_batch, functools.partial(_explain, piece.source), max_skipped)


@contextlib.contextmanager
def _without_sigterm() -> Iterator[None]:
    """Worker processes that start here never see SIGTERM; this process sees it afterwards.

    A cluster sends it to all processes of a job. Training then still needs its workers: it takes
    a step or two more before it saves, and ends them itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
