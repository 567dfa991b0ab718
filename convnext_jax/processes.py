"""The processes of a run: they join, are told to leave, and end together.

One process or many, the calls are the same; with one, most of them have nothing to do.
"""

import contextlib
import itertools
import json
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from convnext_jax import interrupts
from convnext_jax.errors import (
    LOST_STATUS,
    RUN_STATUS,
    InputError,
    Interrupted,
    Lost,
    Preempted,
    RunError,
    status_of,
)

# Environment variables that name the processes where no cluster does.
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Where the first process that fails leaves its sentence for the others.
_FAILURE = "convnext_jax/failure"
# How long a process whose collective broke waits for the sentence of the one that broke it, and how
# long process 0, which serves them, waits for the others to read it.
_PATIENCE_SECONDS = 5
# How long the first process waits for the last to join: machines that are made for the run, and
# copy its data first, are not ready together.
_MEETING_SECONDS = 30 * 60
# After how long a process says that it waits for others to join.
_WAITING_SECONDS = 30
# How long the slowest process may compile after the fastest.
_COMPILING_MS = 30 * 60 * 1000
# Errors of JAX's that no lost peer brings about.
_OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
# How the text of a collective that broke begins, and what it speaks of.
_BROKEN = re.compile(
    "(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
    ".*(gloo|nccl|collective|coordination service|heartbeat)",
    re.IGNORECASE | re.DOTALL,
)
_barriers = itertools.count()
_texts = itertools.count()
_ending = threading.Lock()


def join() -> None:
    """Joins the other processes of this run, if there are any; call it before anything else.

    They are found by the environment variables JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID; without them, by what JAX knows of TPU pod slices, Slurm,
    Open MPI and Kubernetes. Where nothing is found this process is alone.

    Where another does not come within half an hour, JAX aborts this one (signal 6).

    Raises:
      InputError: the variables are incomplete or no numbers.
      Lost: the processes do not meet for another reason, such as a port that is in use.
    """
    if jax.distributed.is_initialized():
        return
    values = {name: os.environ.get(name) for name in _VARIABLES}
    missing = [name for name, value in values.items() if not value]
    try:
        if not missing:
            address, count, index = values.values()
            _check_numbers(count, index)
            with _saying_who_waits(f"process {index} of {count}, {address}"):
                jax.distributed.initialize(
                    address,
                    int(str(count)),
                    int(str(index)),
                    initialization_timeout=_MEETING_SECONDS,
                )
        elif len(missing) < len(_VARIABLES):
            raise InputError(
                f"the environment must have all of {', '.join(_VARIABLES)} or none;"
                f" missing: {', '.join(missing)}"
            )
        else:
            jax.distributed.initialize(initialization_timeout=_MEETING_SECONDS)
    except ValueError as error:
        # What JAX says where it finds no cluster.
        if isinstance(error, InputError) or "coordinator_address" not in str(error):
            raise
    except RuntimeError as error:
        if len(missing) == len(_VARIABLES) and "must be called before" in str(error):
            return  # called from a program that uses JAX already, alone
        reason = str(error).strip().splitlines()[0]
        raise Lost(f"the processes of this run do not meet: {reason}") from error


@contextlib.contextmanager
def _saying_who_waits(who: str) -> Iterator[None]:
    line = f"{who}: still waiting for the other processes of this run"
    timer = threading.Timer(_WAITING_SECONDS, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_numbers(count: str | None, index: str | None) -> None:
    for name, value in zip(_VARIABLES[1:], (count, index), strict=True):
        if not str(value).isdecimal():
            raise InputError(f"`{name}` (={value}) must be a whole number")
    if int(str(index)) >= int(str(count)):
        raise InputError(
            f"`JAX_PROCESS_ID` (={index}) must be below `JAX_NUM_PROCESSES` (={count})"
        )


def usable_cores(root: Path = Path("/")) -> int:
    """Number of cores that this process may use; a container or a cluster may limit them.

    Args:
      root: of the file system that says what control groups allow.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas of this process's control groups and of those above, in cores."""
    groups = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = groups / "cpu" if controllers else groups  # versions 1 and 2
            # A container sees its own group at the top, whatever the name says.
            for group in (top / place.lstrip("/"), *(top / place.lstrip("/")).parents):
                with contextlib.suppress(OSError, ValueError):  # no such file; "max"
                    quota, period = (
                        (group / "cpu.cfs_quota_us").read_text()
                        + (group / "cpu.cfs_period_us").read_text()
                        if controllers
                        else (group / "cpu.max").read_text()
                    ).split()
                    if int(quota) > 0:  # -1: none
                        yield int(quota) / int(period)
                if group == top:
                    break


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def from_first(value: Any) -> Any:
    """What process 0 gave, on all processes.

    Args:
      value: a tree of numbers or arrays, of equal shapes on all processes.
    """
    return multihost_utils.broadcast_one_to_all(value)


def text_from_first(text: str) -> str:
    """What process 0 gave, on all processes; what the others give is not looked at."""
    return texts_from([0], text)[0]


def texts_from_all(text: str) -> list[str]:
    """What each process gave, in their order, on all processes."""
    return texts_from(range(jax.process_count()), text)


def bytes_from_all(data: bytes) -> list[bytes]:
    """What each process gave, in their order, on all processes: for what is too much for texts.

    It goes from device to device, and nothing of it stays there; texts stay with process 0, and
    took five times as long for 64 MB. Each process calls it at the same places.
    """
    if jax.process_count() == 1:
        return [data]
    lengths = np.asarray(multihost_utils.process_allgather(np.array(len(data), np.int32)))
    filled = np.zeros(max(int(lengths.max()), 1), np.uint8)
    filled[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(filled))
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def lists_from_all(own: list[Any]) -> list[Any]:
    """The elements of the lists of all processes, in their order, on all; JSON must hold them."""
    packed = zlib.compress(json.dumps(own, separators=(",", ":")).encode(), 1)
    parts = (json.loads(zlib.decompress(data)) for data in bytes_from_all(packed))
    return [element for part in parts for element in part]


def texts_from(speakers: Collection[int], text: str) -> list[str]:
    """What some processes gave, on all; each process calls it at the same places."""
    if jax.process_count() == 1:
        return [text]
    place = f"convnext_jax/texts/{next(_texts)}"
    index = jax.process_index()
    if index in speakers:
        _client().key_value_set(f"{place}/{index}", text)
    return [_client().blocking_key_value_get(f"{place}/{s}", _COMPILING_MS) for s in speakers]


def compile_together(function: Any, *arguments: Any) -> Callable[..., Any]:
    """Compiles a jitted function for some arguments and waits until all processes have.

    One that runs ahead into a collective would wait there, where patience is short.

    Args:
      function: from `jax.jit`.
      arguments: those of the first call.

    Returns:
      The compiled function, for arguments of the same shapes and shardings.
    """
    compiled = function.lower(*arguments).compile()
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"convnext_jax/compiled/{next(_barriers)}", _COMPILING_MS)
    return compiled


class Preemption:
    """Notices that the run shall save and leave, on all processes at the same place.

    One process is told by SIGTERM. With several processes the notice is JAX's: SIGTERM or the
    cluster's own, to any of them; its service then picks a place that none has reached yet. Ctrl-C
    counts as SIGTERM.

    Attributes:
      interrupted: whether it was Ctrl-C, at this process.
    """

    def __init__(self) -> None:
        """Listens from now on."""
        self.interrupted = False
        self._place = 0
        self._told = threading.Event()
        if not jax.distributed.is_initialized():
            signal.signal(signal.SIGTERM, lambda *_: self._told.set())

    @contextlib.contextmanager
    def with_work_to_save(self) -> Iterator[None]:
        """Within, Ctrl-C lets the run save and leave; outside, the program ends at once."""
        interrupts.save_first(self._interrupt)
        try:
            yield
        finally:
            interrupts.save_first(None)

    def _interrupt(self) -> None:
        self.interrupted = True
        # Not `signal.raise_signal`, which would tell this thread instead of the process.
        os.kill(os.getpid(), signal.SIGTERM)

    def noticed(self) -> bool:
        """Whether to save and leave here; True on all processes or on none.

        Each process calls it at the same places of the program, as often as the others.
        """
        self._place += 1
        if not jax.distributed.is_initialized():
            return self._told.is_set()
        return multihost_utils.reached_preemption_sync_point(self._place)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends all processes when one fails, with the sentence of the one that failed first.

    Around everything that runs on several processes. A process that waits for one that failed would
    wait for ever, or until something below it breaks with a message about connections.
    """
    if jax.process_count() == 1:
        yield
        return
    listener = threading.Thread(target=_await_failure, daemon=True)
    listener.start()
    try:
        try:
            yield
        except Preempted:
            _leave(listener)
            raise
        _leave(listener)
    except (Preempted, Interrupted, SystemExit, KeyboardInterrupt):
        raise
    except (InputError, RunError, Lost) as error:
        _fail(str(error), status_of(error))
    except Exception as error:
        broken = broken_collective(error)
        reason = next(iter(str(broken or error).strip().splitlines()), "")
        if broken is not None:
            # It breaks because of an error elsewhere: that one has its sentence on the way.
            _await_failure(_PATIENCE_SECONDS)
            _fail(
                f"the processes lost each other, perhaps because one was killed: {reason}",
                LOST_STATUS,
            )
        if isinstance(error, jax.errors.JaxRuntimeError):
            _fail(f"process {jax.process_index()} cannot go on: {reason}", RUN_STATUS)
        traceback.print_exc()  # a mistake of ours
        _fail(f"{type(error).__name__}: {error}", RUN_STATUS)


def own_fault(error: object) -> bool:
    """Whether an error of JAX's is one that no lost peer brings about, such as memory in want."""
    return str(error).strip().startswith(_OWN_FAULTS)


def broken_collective(error: BaseException | None) -> BaseException | None:
    """What a lost peer broke, if an error or what caused it is that; only of several processes.

    JAX raises a `JaxRuntimeError` where it starts a program, and a ValueError where it waits for
    what one computes; file systems raise these, too, and do not speak of collectives.
    """
    while error is not None and jax.process_count() > 1:
        ours = isinstance(error, jax.errors.JaxRuntimeError) and not own_fault(error)
        if ours or isinstance(error, ValueError) and _BROKEN.match(str(error).strip()):
            return error
        error = error.__cause__
    return None


def _leave(listener: threading.Thread) -> None:
    """Waits for the other processes to come here, and parts from them."""
    jax.distributed.shutdown()
    # Its call ends with that. A thread inside it would crash the interpreter's own end.
    listener.join()


def _client() -> Any:
    # JAX has no public name for the key-value store of its coordination service.
    from jax._src import distributed

    return distributed.global_state.client


def _fail(message: str, status: int) -> None:
    """Tells the others why, unless one of them was first; does not return."""
    failure = json.dumps({"process": jax.process_index(), "status": status, "message": message})
    with contextlib.suppress(Exception):
        _client().key_value_set(_FAILURE, failure)
        _end(message, status)
    _await_failure(_PATIENCE_SECONDS)
    _end(message, status)  # the service is gone


def _await_failure(seconds: float = 10**6) -> None:
    """Ends this process if another reports a failure in that time."""
    try:
        found = json.loads(_client().blocking_key_value_get(_FAILURE, int(seconds * 1000)))
    except Exception:  # none came, or the service ended with the run
        return
    if found["process"] != jax.process_index():
        _end(f"process {found['process']}: {found['message']}", found["status"])


def _end(message: str, status: int) -> None:
    _ending.acquire()  # for good: of two threads that come here one speaks
    print(f"error: {message}", file=sys.stderr, flush=True)
    with contextlib.suppress(Exception):
        client, index = _client(), jax.process_index()
        client.key_value_set(f"{_FAILURE}/read/{index}", "")
        if index == 0:
            for other in range(1, jax.process_count()):
                client.blocking_key_value_get(f"{_FAILURE}/read/{other}", _PATIENCE_SECONDS * 1000)
            time.sleep(1)  # for them to be gone before their service is
    # Not sys.exit: what JAX does then waits for processes that will not come.
    interrupts.leave_at_once(status)
