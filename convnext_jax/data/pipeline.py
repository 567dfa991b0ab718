"""Batches for training and evaluation: Grain reads ahead, in threads or in worker processes.

The batch of a step is a function of (seed, step) alone. Grain gets a map from a number to a piece
of a host's batch and evaluates it ahead of time; nothing in it depends on who evaluates what.
"""

import functools
import math
from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np

from convnext_jax.data.pieces import (
    EvalExamples,
    EvalPiece,
    Order,
    Shuffled,
    Source,
    TrainExamples,
    TrainPiece,
    explain,
)
from convnext_jax.data.reading import Batch, Reader
from convnext_jax.errors import InputError, RunError

# Batches of all passes; nobody comes so far.
_ENDLESS = 2**40


class Batches:
    """Iterator over batches that reads ahead. Close it, or use it as a context manager.

    It closes itself when it is finished and when reading fails; it can be closed twice.

    Attributes:
      skipped: what happened to each example that was replaced, in the order of their discovery.
    """

    def __init__(
        self,
        reader: Reader,
        explain: Callable[[int], str],
        max_skipped: int,
        beside: Callable[[], None] = lambda: None,
    ):
        """Takes over a reader.

        Args:
          reader: its batches may have an entry `skipped`: examples that were replaced, -1 for the
            others.
          explain: says what is wrong with an example.
          max_skipped: most examples that may be replaced.
          beside: called with each batch; what it raises ends the batches.
        """
        self.skipped: dict[int, str] = {}
        self._reader = reader
        self._explain = explain
        self._max_skipped = max_skipped
        self._beside = beside

    def __iter__(self) -> "Batches":
        """Returns itself."""
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          InputError: an example cannot be used; raised here wherever it was read.
          RunError: more examples had to be replaced than may be, or a file is gone.
          Lost: reading fails for reasons that are not the data's.
        """
        try:
            batch = next(self._reader)
            self._note_skipped(batch.pop("skipped", ()))
            self._beside()
        except BaseException:
            self.close()
            raise
        return batch

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
        self._reader.close()

    def __enter__(self) -> "Batches":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes."""
        self.close()


def train_batches(
    source: Source,
    examples: TrainExamples,
    *,
    global_batch: int,
    seed: int,
    start_step: int,
    num_steps: int,
    rows: Sequence[int] | None = None,
    order: Order | None = None,
    skip_bad: bool = False,
    max_skipped: int = 100,
    workers: int = 0,
    threads: int = 4,
    prefetch: int = 2,
    beside: Callable[[], None] = lambda: None,
) -> Batches:
    """Yields this host's part of the batch of each step from `start_step` to `num_steps - 1`.

    An epoch is floor(N / global_batch) steps over a random order of the N examples; the examples
    that are left over are not seen in that epoch. The order depends on (seed, epoch), the random
    transform of an example on (seed, epoch, example), so the same batches come out on any number
    of hosts, workers and threads, and from any `start_step`, which costs no time.

    Args:
      source: the training examples.
      examples: makes a row of the batch of each, with a generator.
      global_batch: examples a step, over all hosts.
      seed: 0 or more.
      start_step: first step to yield; a run that resumes gives the number of steps it has done.
      num_steps: steps of the whole run.
      rows: those of the global batch that this host holds; None for all.
      order: another order than the above, of the same batches and seed.
      skip_bad: replace an example that cannot be read by another, drawn from (seed, epoch,
        example), instead of raising.
      max_skipped: most examples that this host may replace.
      workers: worker processes that read and transform; 0 reads in this process.
      threads: reading threads in this process, or in each worker.
      prefetch: batches that are held ready.
      beside: called with each batch; what it raises ends the batches.

    Returns:
      Batches of rows as `examples` makes them, arrays [n, ...] by name, n the number of `rows`.

    Raises:
      InputError: a number is out of range, or `global_batch` exceeds the number of examples.
    """
    held = _check_rows(rows, global_batch)
    if order is None and global_batch > len(source):
        raise InputError(
            f"`global_batch` (={global_batch}) must be at most the number of training examples"
            f" (={len(source)})"
        )
    if seed < 0:
        raise InputError(f"`seed` (={seed}) must be 0 or more")
    if not 0 <= start_step <= num_steps:
        raise InputError(f"`start_step` (={start_step}) must be in 0..`num_steps` (={num_steps})")
    order = order or Shuffled(len(source), global_batch, seed)
    piece = TrainPiece(source, examples, order, held, seed, skip_bad)
    reader = _read(piece, start_step, num_steps, workers, threads, prefetch)
    return Batches(reader, functools.partial(explain, source.__getitem__), max_skipped, beside)


class Passes:
    """Passes over a split, one after another, by threads or worker processes that are started once.

    Where one pass ends they read the first batches of the next, and wait. Close it.

    Attributes:
      num_examples: of a pass, on all hosts.
      num_batches: of a pass.
      global_batch: examples a batch, over all hosts.
      may_skip: whether a pass may leave out examples that cannot be read.
      skipped: what is wrong with each example that was left out so far.
    """

    def __init__(
        self,
        source: Source,
        examples: EvalExamples,
        *,
        global_batch: int,
        rows: Sequence[int] | None = None,
        order: Sequence[int] | None = None,
        check: bool = False,
        skip_bad: bool = False,
        max_skipped: int = 100,
        option: str = "data.on_error",
        workers: int = 0,
        threads: int = 4,
        prefetch: int = 2,
    ):
        """Starts nothing yet.

        Args:
          source: the examples to evaluate.
          examples: makes a row of a batch of each.
          global_batch: examples a batch, over all hosts.
          rows: those of the global batch that this host holds; None for all.
          order: which example is in each row of the batches, one after another, each exactly once,
            and -1 for filling up; None: the source's own order.
          check: read every example once before the first pass, beside whatever else happens, to
            find those that cannot be read.
          skip_bad: leave out an example that cannot be read, instead of raising.
          max_skipped: most examples that this host may leave out.
          option: what a message calls the choice of `skip_bad`.
          workers: worker processes that read and transform; 0 reads in this process.
          threads: reading threads in this process, or in each worker.
          prefetch: batches that are held ready.

        Raises:
          InputError: `global_batch` or `rows` are out of range, or there are no examples.
        """
        held = _check_rows(rows, global_batch)
        if not len(source):
            raise InputError(f"{source} must have examples to evaluate")
        self.num_examples = len(source)
        placed = np.arange(len(source)) if order is None else np.asarray(order, np.int64)
        filling = np.full(-len(placed) % global_batch, -1)
        placed = np.concatenate([placed, filling]).reshape(-1, global_batch)
        self.num_batches = len(placed)
        self.global_batch = global_batch
        self.may_skip = skip_bad
        self.skipped: dict[int, str] = {}
        self._piece = EvalPiece(source, examples, placed, held, check, skip_bad, option)
        self._explain = functools.partial(explain, self._piece.row)
        self._max_skipped = max_skipped
        self._reading = (workers, threads, prefetch)
        self._reader: Reader | None = None
        self._inside = False

    def start(self) -> None:
        """Begins to read, unless that was done before.

        Raises:
          InputError: an example cannot be used, as far as is known by now.
        """
        if self._reader is None:
            first = 0 if self._piece.check else self.num_batches
            self._reader = _read(self._piece, first, _ENDLESS, *self._reading)
        if self._reader.failure is not None:
            raise self._reader.failure

    def __call__(self) -> Generator[Batch, None, None]:
        """Yields this host's part of each batch of a pass, once.

        Over all hosts every example comes exactly once with mask 1, but for those left out. Global
        batches are filled up with blank rows of mask 0, so every host has as many batches,
        all of one shape.

        Yields:
          Rows as `examples` makes them, arrays [n, ...] by name, and `mask`, float32 [n], 1 for an
          example and 0 for filling; n the number of `rows`.

        Raises:
          InputError: an example cannot be used; raised here wherever it was read.
          RunError: more examples had to be left out than may be, or a file is gone.
          Lost: reading fails for reasons that are not the data's.
        """
        if self._inside:
            self.close()  # the last pass was left early: what is ready now belongs to it
        if self._reader is None:
            self.start()
        assert self._reader is not None
        batches = Batches(self._reader, self._explain, self._max_skipped)
        batches.skipped = self.skipped
        self._inside = True
        for _ in range(self.num_batches):
            yield next(batches)
        self._inside = False

    def close(self) -> None:
        """Stops the threads and worker processes; the next pass starts others."""
        if self._reader is not None:
            self._reader.close()
        self._reader, self._inside = None, False


def _check_rows(rows: Sequence[int] | None, global_batch: int) -> np.ndarray:
    if global_batch < 1:
        raise InputError(f"`global_batch` (={global_batch}) must be positive")
    held = np.arange(global_batch) if rows is None else np.asarray(rows, np.int64)
    if not len(held) or held.min() < 0 or held.max() >= global_batch:
        raise InputError(
            f"`rows` (={rows}) must be some of 0..`global_batch` - 1 (={global_batch - 1})"
        )
    return held


def _read(
    piece: TrainPiece | EvalPiece,
    start: int,
    stop: int,
    workers: int,
    threads: int,
    prefetch: int,
) -> Reader:
    return Reader(
        piece,
        per_batch=math.ceil(len(piece.rows) / piece.size),
        start=start,
        stop=stop,
        workers=workers,
        threads=threads,
        prefetch=prefetch,
    )
