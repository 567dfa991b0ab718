"""Passing problems of a file system: the same thing is tried again after a while."""

import errno
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

# What network file systems answer while a server restarts or a connection is lost, and machines
# that are short of something for a moment.
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
    errno.EMFILE,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
# Libraries in C++ have no errno. Some name the call that failed, as in "open() failed: Input/output
# error"; others begin with the code of a status, and may end with what the system said. A file of a
# dataset that is not there (ENOENT) was there at the start.
_FAILED_CALL = re.compile(
    r"\w+\(\) failed: "
    f"({'|'.join(re.escape(os.strerror(number)) for number in sorted(_PASSING | {errno.ENOENT}))})",
    re.IGNORECASE,
)
_STATUS = re.compile(r"([A-Z_]{2,}): ")
_PASSING_STATUSES = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"}
_PASSING_TEXTS = tuple(os.strerror(number) for number in _PASSING)
_LASTING_TEXTS = tuple(
    os.strerror(number)
    for number in (errno.EACCES, errno.EDQUOT, errno.ENOENT, errno.ENOSPC, errno.EPERM, errno.EROFS)
)
# How long to wait before each further attempt.
WAITS_SECONDS = (0.5, 2.0, 8.0, 30.0)


def is_passing(error: BaseException) -> bool:
    """Whether an error, or what caused it, is one that may be gone a little later."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _PASSING:
            return True
        if isinstance(cause, RuntimeError | ValueError) and _says_passing(str(cause)):
            return True
        cause = cause.__cause__
    return False


def _says_passing(message: str) -> bool:
    if _FAILED_CALL.search(message):
        return True
    status = _STATUS.match(message)
    if status is None or any(text in message for text in _LASTING_TEXTS):
        return False
    return status[1] in _PASSING_STATUSES or any(text in message for text in _PASSING_TEXTS)


def is_gone(error: BaseException) -> bool:
    """Whether an error says that a file is not there: trying again later may well be in vain."""
    return isinstance(error, FileNotFoundError) or os.strerror(errno.ENOENT) in str(error)


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
