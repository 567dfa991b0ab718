"""Passing problems of a file system: the same thing is tried again after a while."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

# What network file systems answer while a server restarts or a connection is lost.
_PASSING = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
# How long to wait before each further attempt.
WAITS_SECONDS = (0.5, 2.0, 8.0)


def is_passing(error: BaseException) -> bool:
    """Whether an error, or what caused it, is one that may be gone a little later."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _PASSING:
            return True
        cause = cause.__cause__
    return False


def retrying(action: Callable[[], Result]) -> Result:
    """Calls `action`, and again after each of `WAITS_SECONDS` while its error is passing.

    Raises:
      Exception: what `action` raised, at once if it will not pass, else the last time.
    """
    for wait in WAITS_SECONDS:
        try:
            return action()
        except Exception as error:
            if not is_passing(error):
                raise
        time.sleep(wait)
    return action()
