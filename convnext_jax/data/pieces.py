"""What one piece of a batch is: a function of its number, evaluated by whoever has time."""

import contextlib
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable
from concurrent import futures
from typing import Any, Protocol

import grain
import numpy as np
from PIL import Image

from convnext_jax.data.reading import Batch
from convnext_jax.errors import InputError, Lost, RunError
from convnext_jax.retry import WAITS_SECONDS, is_gone, is_passing, retrying

# A thread or worker produces this many examples at a time: small enough that a batch is spread over
# all of them, large enough that passing it between processes costs little beside decoding it.
PIECE = 32
# Examples that are tried in place of one that cannot be read.
_CANDIDATES = 10


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


@dataclasses.dataclass(frozen=True)
class TrainPiece:
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
        """A part of a batch; with `skipped` where examples may be replaced."""
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
            except InputError as error:
                if not self.skip_bad:
                    raise _with_remedy(error, "data.on_error") from error
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
class EvalPiece:
    """Maps the number of a piece, counted over all batches, to its examples and their mask."""

    source: Examples
    transform: EvalTransform
    global_batch: int
    rows: np.ndarray
    check: bool
    skip_bad: bool
    option: str

    def __call__(self, number: int) -> Batch:
        """A part of a batch; the first pass only checks, where it is read at all."""
        batch, rows = _step_and_rows(number, self.rows)
        turn, batch = divmod(batch, math.ceil(len(self.source) / self.global_batch))
        examples = (batch * self.global_batch + rows).tolist()
        if turn == 0:
            return _beside(self._read_only, examples)
        size = self.transform.image_size
        images = np.zeros((len(rows), size, size, 3), np.uint8)
        labels = np.zeros(len(rows), np.int32)
        mask = np.zeros(len(rows), np.float32)
        skipped = np.full(len(rows), -1, np.int64)
        for i, example in enumerate(examples):
            if example >= len(self.source):
                continue
            try:
                image, labels[i] = read_example(self.source, example)
                images[i] = self.transform(image)
                mask[i] = 1
            except InputError as error:
                if not self.skip_bad:
                    raise _with_remedy(error, self.option) from error
                skipped[i] = example
        return {"image": images, "label": labels, "mask": mask, "skipped": skipped}

    def _read_only(self, examples: list[int]) -> Batch:
        for example in examples:
            if example < len(self.source):
                try:
                    read_example(self.source, example)
                except InputError as error:
                    raise _with_remedy(error, self.option) from error
        return {}


def _with_remedy(error: InputError, option: str) -> InputError:
    return InputError(f"{error}; `{option}=skip` goes on without such images")


def _beside(function: Callable[..., Batch], *arguments: Any) -> Batch:
    """Calls a function that takes only what time is left over, a tenth of a core at the least."""
    if sys.platform != "linux":
        return function(*arguments)

    def work() -> Batch:
        os.setpriority(os.PRIO_PROCESS, 0, 10)  # on Linux that of this thread, and for good
        return function(*arguments)

    with futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _step_and_rows(number: int, rows: np.ndarray) -> tuple[int, np.ndarray]:
    """The step that piece `number` belongs to, and which of the host's `rows` it holds."""
    step, piece = divmod(number, math.ceil(len(rows) / PIECE))
    return step, rows[piece * PIECE : (piece + 1) * PIECE]


def read_example(source: Examples, index: int) -> tuple[Image.Image, int]:
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


def explain(source: Examples, index: int) -> str:
    """What is wrong with an example, by reading it once more."""
    try:
        source[index]
    except InputError as error:
        return str(error)
    return f"record {index} could not be read at first"
