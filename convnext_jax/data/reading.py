"""Evaluates a function of 0, 1, 2, ... ahead of time and in order: Grain, behind one thread."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from convnext_jax.data import workers as worker_processes
from convnext_jax.errors import InputError, Lost

Batch = dict[str, np.ndarray]

# Elements that a worker holds for this process, beside the one in its hands.
_BUFFER = 1
# Smaller arrays are passed through a pipe: each in shared memory costs an open file.
_SMALLEST_SHARED = 4096
# How often a thread that waits looks whether it is to stop.
_LOOK_SECONDS = 0.1


class Reader:
    """Iterator over batches that are joined from pieces. Close it.

    It starts at once, in threads or worker processes. All of Grain happens in one thread of this
    process: what starts there, later too, is deaf to the signals of the job.
    """

    def __init__(
        self,
        piece: Callable[[int], Batch],
        *,
        per_batch: int,
        start: int,
        stop: int,
        workers: int,
        threads: int,
        prefetch: int,
    ):
        """Starts reading.

        Args:
          piece: gives a part of a batch by its number, counted over all batches. A batch whose
            pieces have no arrays is not passed on.
          per_batch: pieces in a batch.
          start: the first batch.
          stop: the batch after the last.
          workers: worker processes; 0 reads in this process.
          threads: in this process, or in each worker.
          prefetch: batches that are held ready.

        Raises:
          InputError: a number is out of range.
        """
        for name, value, least in (("workers", workers, 0), ("threads", threads, 1)):
            if value < least:
                raise InputError(f"`{name}` (={value}) must be {least} or more")
        if prefetch < 1:
            raise InputError(f"`prefetch` (={prefetch}) must be 1 batch or more")
        self._per_batch = per_batch
        self._workers = workers
        numbers = grain.MapDataset.range(start * per_batch, stop * per_batch)
        dataset = numbers.map(piece).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        )
        if workers:
            dataset = _in_workers(dataset, workers)
        self._dataset = dataset
        # One more waits in the thread's hands.
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(max(prefetch - 1, 1))
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        """Returns itself."""
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          Exception: what `piece` raised, wherever that was. Nothing follows it.
        """
        if self._stopped.is_set():
            raise StopIteration
        found = self._ready.get()
        if isinstance(found, BaseException):
            self.close()
            raise found
        return found

    @property
    def failure(self) -> BaseException | None:
        """What `next` will raise once it has given what was read before; None: not known yet."""
        return self._failure

    def close(self) -> None:
        """Stops the threads and worker processes; may be called twice."""
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        worker_processes.keep_signals_out()
        try:
            with contextlib.closing(iter(self._dataset)) as pieces:
                for batch in self._batches(pieces):
                    if batch:
                        self._pass_on(batch)
                    if self._stopped.is_set():
                        return
            self._pass_on(StopIteration())
        except BaseException as error:
            self._failure = _in_words(error)
            self._pass_on(self._failure)

    def _batches(self, pieces: Any) -> Iterator[Batch]:
        """Joins pieces, whose shared memory is free as soon as they are copied."""
        taken = 0
        with contextlib.ExitStack() as starting:
            if self._workers:
                starting.enter_context(worker_processes.without_main_module())
            for first in pieces:
                arrays = {key: [value] for key, value in first.items()}
                for _ in range(self._per_batch - 1):
                    for key, value in next(pieces).items():
                        arrays[key].append(value)
                taken += self._per_batch
                if taken >= self._workers:
                    starting.close()  # each has given one
                # Also where there is one piece: what comes from workers is of a class of Grain's.
                yield {
                    key: np.concatenate([np.asarray(value) for value in values])
                    for key, values in arrays.items()
                }

    def _pass_on(self, item: Batch | BaseException) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=_LOOK_SECONDS)
                return


def _in_words(error: BaseException) -> BaseException:
    """Grain's error about a worker that is gone, as a sentence; any other as it is."""
    status = str(error).partition("terminated unexpectedly with exit code ")[2]
    if not isinstance(error, RuntimeError) or not status:
        return error
    found = Lost(
        f"a decoding worker was killed (exit status {status.split()[0].rstrip('.')}), perhaps for"
        f" want of memory, which fewer `data.workers` need less of"
    )
    found.__cause__ = error
    return found


def _in_workers(dataset: Any, workers: int) -> Any:
    """The same in worker processes."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, also where no absl main ran.
    # At an early end Python frees the shared memory that workers had filled, and would say so.
    os.environ["PYTHONWARNINGS"] = ",".join(
        filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"])
    )
    options = grain.experimental.DatasetOptions(min_shm_size=_SMALLEST_SHARED)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
    return dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_BUFFER),
        worker_init_fn=worker_processes.settle,
    )
