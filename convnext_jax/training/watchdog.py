"""Reports a step that hangs."""

import faulthandler
import sys
import threading
import time
from typing import Self


class Watchdog:
    """A thread that says on stderr what takes too long, with the stacks of all threads."""

    def __init__(self, seconds: float) -> None:
        """Starts at the first beat.

        Args:
          seconds: longest time between two beats; 0 for any.
        """
        self._seconds = seconds
        self._doing = ""
        self._since = time.monotonic()
        self._stop = threading.Event()
        self._reported = True
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        """Starts the thread."""
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, doing: str) -> None:
        """Says what begins now."""
        self._doing, self._since, self._reported = doing, time.monotonic(), False

    def _watch(self) -> None:
        # Looks a few times in the period; one report for each beat that stays the last.
        while not self._stop.wait(self._seconds / 4):
            waited = time.monotonic() - self._since
            if self._reported or waited < self._seconds:
                continue
            self._reported = True
            print(
                f"{self._doing} has taken {waited:.0f} s, longer than `hang_seconds`"
                f" (={self._seconds:g}); the stacks of this process:",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(sys.stderr)
