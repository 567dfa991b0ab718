"""Worker processes that outlive signals to their job, and not their parent."""

import contextlib
import importlib.machinery
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

# A terminal and a cluster send these to all processes of a job. Who is in charge is this process:
# training takes a step or two more before it saves, and ends its workers itself.
_OF_THE_PARENT = {signal.SIGINT, signal.SIGTERM}
_lock = threading.Lock()
_starting = 0  # threads that start workers now
_spec: importlib.machinery.ModuleSpec | None = None  # of the main module, meanwhile


def keep_signals_out() -> None:
    """Blocks the job's signals in this thread, and so in all threads and processes it starts.

    A worker is born with that and cannot be told to go before `settle` runs in it.
    """
    resource_tracker.ensure_running()  # which, at its start, would let them in again
    signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_PARENT)


def settle(index: int, count: int) -> None:
    """What each worker does first: it ignores the job's signals, and ends when its parent has.

    The kernel's own notice (PR_SET_PDEATHSIG) would come when the thread ends that started the
    worker, which here is before the worker has done its work. The parent's end of a pipe closes
    however the parent ends.

    Args:
      index: of the worker.
      count: of all workers.
    """
    del index, count
    for number in _OF_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()


def end_workers() -> None:
    """Kills this process's workers, all at once: closing what they read for ends one by one."""
    for worker in multiprocessing.active_children():
        worker.kill()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Spares processes that start within the import of this program's main module.

    `multiprocessing` would import it in each, for things that were pickled from it, and with it
    JAX and all else that a program needs; what Grain passes on is pickled with its code. Main
    modules of this name are what `multiprocessing` leaves out.
    """
    global _starting, _spec
    main = sys.modules["__main__"]
    with _lock:
        _starting += 1
        if _starting == 1:
            _spec = main.__spec__
            main.__spec__ = importlib.machinery.ModuleSpec("convnext_jax.__main__", None)
    try:
        yield
    finally:
        with _lock:
            _starting -= 1
            if not _starting:
                main.__spec__ = _spec
