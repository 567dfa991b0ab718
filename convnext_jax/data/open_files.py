"""The limit on open files: array_record keeps every file of a split open that it has read from."""

import resource
from collections.abc import Sequence
from typing import Protocol

from convnext_jax.errors import InputError

# What a process opens beside its data: libraries, sockets, logs, a checkpoint being written.
_RESERVE = 256
# Pipes and semaphores that a process holds for each of its workers, measured at 8.
_PER_WORKER = 10


class Files(Protocol):
    """What is asked of a source here."""

    num_files: int


def allow_open_files(sources: Sequence[Files], workers: int) -> None:
    """Raises this process's limit on open files as far as it may go; its workers inherit that.

    Args:
      sources: all that the process reads, each with workers of its own.
      workers: how many each has; 0: this process reads.

    Raises:
      InputError: the limit stays too low for them.
    """
    files = [source.num_files for source in sources]
    here = 0 if workers else sum(files)
    needed = _RESERVE + max(here + len(files) * workers * _PER_WORKER, *files)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Where nothing limits it, not to infinity: macOS refuses that.
        highest = max(needed, soft, 2**16) if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    if needed > hard != resource.RLIM_INFINITY:
        raise InputError(
            f"the hard limit on open files (`ulimit -Hn`, ={hard}) must be at least {needed}, for"
            f" {sum(files)} files of data and {workers} decoding workers"
        )
