"""Ctrl-C: a program with work to save saves it first; a second Ctrl-C leaves at once.

Nothing here raises KeyboardInterrupt, which would come up in the middle of any library, in each
thread and worker with a traceback of its own. Little but the standard library is imported, so that
a command can listen before it imports anything that takes seconds.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from convnext_jax.errors import INTERRUPTED_STATUS

# What the first Ctrl-C does; None: leave at once, as nothing would be lost.
_save_first: Callable[[], None] | None = None


def listen() -> None:
    """From now on Ctrl-C is answered as this module says; call it once, from the main thread.

    Where SIGINT is ignored, as by what a shell script starts in the background, it stays so.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return
    # Python runs signal handlers between two instructions of the main thread, which compiling and
    # waiting for devices do not reach for minutes. The numbers of signals come here at once.
    arrived, arriving = socket.socketpair()
    arriving.setblocking(False)
    signal.set_wakeup_fd(arriving.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda *_: None)
    arriving.detach()  # stays open as long as the process
    threading.Thread(target=_answer, args=(arrived,), name="interrupts", daemon=True).start()


def save_first(action: Callable[[], None] | None) -> None:
    """Says what the first Ctrl-C does: `action`, from another thread; None: leave at once."""
    global _save_first
    _save_first = action


def leave_at_once(status: int) -> NoReturn:
    """Ends this process and its worker processes without waiting for anything."""
    for worker in multiprocessing.active_children():
        worker.kill()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # who read it is gone, or it is closed
            pass
    os._exit(status)


def _answer(arrived: socket.socket) -> None:
    told = False
    while True:
        if signal.SIGINT not in arrived.recv(64):
            continue
        action = _save_first
        if action is None or told:
            _say("interrupted" + (" again; what was not saved is lost" if told else ""))
            leave_at_once(INTERRUPTED_STATUS)
        told = True
        _say("interrupted; saving first (Ctrl-C again leaves at once)")
        action()


def _say(text: str) -> None:
    # Below what the terminal shows for Ctrl-C, and the progress bar.
    start = "\n" if sys.stderr.isatty() else ""
    print(f"{start}{text}", file=sys.stderr, flush=True)
