"""What one piece of a batch is: a function of its number, evaluated by whoever has time."""

import contextlib
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol

import grain
import numpy as np

from convnext_jax.data.reading import Batch
from convnext_jax.errors import InputError, Lost, RunError
from convnext_jax.retry import WAITS_SECONDS, is_gone, is_passing, retrying

# A thread or worker produces this many examples at a time: small enough that a batch is spread over
# all of them, large enough that passing it between processes costs little beside decoding it.
PIECE = 32
# Unless rows are so large that they would have more bytes: those of detection are 17 MB.
_PIECE_BYTES = 2**25
# Examples that are tried in place of one that cannot be read.
_CANDIDATES = 10


# An example of a source: an image, and what a task wants to know of it.
Example = Any
# A row of a batch: arrays and numbers by name, of the same shapes and types in every row.
Row = Mapping[str, Any]


class Source(Protocol):
    """What the pipeline needs of a source: examples by index. Workers receive it pickled."""

    def __len__(self) -> int: ...  # noqa: D105

    def __getitem__(self, index: int, /) -> Example: ...  # noqa: D105


class TrainExamples(Protocol):
    """Makes a row of an example, at random. Workers receive it pickled."""

    @property
    def blank(self) -> Row:
        """A row of zeros."""
        ...

    def __call__(self, example: Example, rng: np.random.Generator, /) -> Row: ...  # noqa: D102


class EvalExamples(Protocol):
    """Makes a row of an example, always the same. Workers receive it pickled."""

    @property
    def blank(self) -> Row:
        """A row of zeros, for filling up."""
        ...

    def __call__(self, example: Example, /) -> Row: ...  # noqa: D102


class Order(Protocol):
    """Which example is where in the batches of training. Workers receive it pickled."""

    @property
    def steps_per_epoch(self) -> int:
        """The same in every epoch."""
        ...

    def __call__(self, step: int, row: int, /) -> tuple[int, int]:
        """The epoch of a step, and the example in a row of its global batch."""
        ...

    def others(self, epoch: int, index: int, rng: np.random.Generator, count: int, /) -> np.ndarray:
        """Draws examples, whole numbers [count], that may take the place of one in that epoch."""
        ...


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """A random order of all examples in each epoch; what does not fill a batch is left out.

    Attributes:
      count: number of examples.
      global_batch: examples of a step, over all hosts.
      seed: the order is a function of it and the epoch.
    """

    count: int
    global_batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """As `Order`."""
        return self.count // self.global_batch

    @functools.cached_property
    def _order(self) -> Any:
        # Grain shuffles epoch e with its seed plus e, so two runs with neighbouring seeds would
        # share their orders, one epoch apart; a hash of our seed keeps them apart.
        seed = np.random.SeedSequence(self.seed).generate_state(1)[0]
        return grain.MapDataset.range(self.count).shuffle(seed=int(seed))

    def __call__(self, step: int, row: int) -> tuple[int, int]:
        """As `Order`."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch, int(self._order[epoch * self.count + step_in_epoch * self.global_batch + row])

    def others(self, epoch: int, index: int, rng: np.random.Generator, count: int) -> np.ndarray:
        """As `Order`: any examples."""
        del epoch, index
        return rng.integers(self.count, size=count)


@dataclasses.dataclass(frozen=True)
class TrainPiece:
    """Maps the number of a piece, counted over all steps, to its examples."""

    source: Source
    examples: TrainExamples
    order: Order
    rows: np.ndarray  # of this host, in the global batch
    seed: int
    skip_bad: bool

    @functools.cached_property
    def size(self) -> int:
        """Rows of a piece, at most."""
        return rows_of_piece(self.examples)

    def __call__(self, number: int) -> Batch:
        """A part of a batch; with `skipped` where examples may be replaced."""
        step, rows = _step_and_rows(number, self.rows, self.size)
        found = []
        skipped = np.full(len(rows), -1, np.int64)
        for i, row in enumerate(rows):
            epoch, index = self.order(step, int(row))
            try:
                example = read_example(self.source, index)
            except InputError as error:
                if not self.skip_bad:
                    raise _with_remedy(error, "data.on_error") from error
                skipped[i] = index
                index, example = self._another(epoch, index)
            rng = np.random.default_rng((self.seed, epoch, index))
            found.append(self.examples(example, rng))
        batch = _stacked(found)
        return batch | {"skipped": skipped} if self.skip_bad else batch

    def _another(self, epoch: int, index: int) -> tuple[int, Example]:
        """An example in place of one that cannot be read; the same one wherever this runs."""
        rng = np.random.default_rng((self.seed, epoch, index, len(self.source)))
        *candidates, last = self.order.others(epoch, index, rng, _CANDIDATES).tolist()
        for candidate in candidates:
            with contextlib.suppress(InputError):
                return candidate, read_example(self.source, candidate)
        return last, read_example(self.source, last)


@dataclasses.dataclass(frozen=True)
class EvalPiece:
    """Maps the number of a piece, counted over all batches, to its examples and their mask."""

    source: Source
    examples: EvalExamples
    order: np.ndarray  # of a pass, [batches, global batch]: examples, -1 for filling
    rows: np.ndarray
    check: bool
    skip_bad: bool
    option: str

    @functools.cached_property
    def size(self) -> int:
        """Rows of a piece, at most."""
        return rows_of_piece(self.examples)

    def __call__(self, number: int) -> Batch:
        """A part of a batch; the first pass only checks, where it is read at all."""
        batch, rows = _step_and_rows(number, self.rows, self.size)
        turn, batch = divmod(batch, len(self.order))
        indices = self.order[batch, rows].tolist()
        if turn == 0:
            return _beside(self._read_only, indices)
        blank = self.examples.blank
        found = [blank] * len(rows)
        mask = np.zeros(len(rows), np.float32)
        skipped = np.full(len(rows), -1, np.int64)
        for i, index in enumerate(indices):
            if index < 0:
                continue
            try:
                found[i] = self.row(index)
                mask[i] = 1
            except InputError as error:
                if not self.skip_bad:
                    raise _with_remedy(error, self.option) from error
                skipped[i] = index
        return _stacked(found) | {"mask": mask, "skipped": skipped}

    def row(self, index: int) -> Row:
        """The row of an example; raises InputError where it cannot be used, and says which."""
        example = read_example(self.source, index)
        with naming_example(self.source, index):
            return self.examples(example)

    def _read_only(self, indices: list[int]) -> Batch:
        for index in indices:
            if index >= 0:
                try:
                    read_example(self.source, index)
                except InputError as error:
                    raise _with_remedy(error, self.option) from error
        return {}


def rows_of_piece(examples: TrainExamples | EvalExamples) -> int:
    """How many rows a piece has at most."""
    size = sum(np.asarray(value).nbytes for value in examples.blank.values())
    return max(1, min(PIECE, _PIECE_BYTES // max(size, 1)))


def _stacked(rows: Sequence[Row]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _with_remedy(error: InputError, option: str) -> InputError:
    return InputError(f"{error}; `{option}=skip` goes on without such images")


def _beside(function: Callable[..., Batch], *arguments: Any) -> Batch:
    """Calls a function that takes only what time is left over, a tenth of a core at the least."""
    if sys.platform != "linux":
        return function(*arguments)

    def work() -> Batch:
        # On Linux that of this thread, and for good; who is nicer already may not take it back.
        os.setpriority(os.PRIO_PROCESS, 0, max(10, os.getpriority(os.PRIO_PROCESS, 0)))
        return function(*arguments)

    with futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _step_and_rows(number: int, rows: np.ndarray, size: int) -> tuple[int, np.ndarray]:
    """The step that piece `number`, of `size` rows, belongs to, and which of `rows` it holds."""
    step, piece = divmod(number, math.ceil(len(rows) / size))
    return step, rows[piece * size : (piece + 1) * size]


def read_example(source: Source, index: int) -> Example:
    """`source[index]`, tried again after a while where the file system has a passing problem.

    Raises:
      InputError: the example cannot be used.
      Lost: the problem did not pass; it is not the example's.
      RunError: a file is not there any more.
    """
    try:
        return retrying(lambda: source[index])
    except Exception as error:
        if not is_passing(error):
            raise
        kind = RunError if is_gone(error) else Lost
        raise kind(
            f"reading failed again and again, {sum(WAITS_SECONDS):.0f} seconds long: {error}"
        ) from None


@contextlib.contextmanager
def naming_example(source: Source, index: int) -> Iterator[None]:
    """Puts which example it is before the message of an InputError: sources do, others cannot."""
    try:
        yield
    except InputError as error:
        raise InputError(f"example {index} of {source}: {error}") from error


def explain(use: Callable[[int], object], index: int) -> str:
    """What is wrong with an example, by reading it once more."""
    try:
        use(index)
    except InputError as error:
        return str(error)
    return f"record {index} could not be read at first"
