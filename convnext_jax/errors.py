"""The two ways in which a command ends with one sentence instead of a traceback."""

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence with the name, the value and the rule. Command-line programs print
    it without a traceback and exit with status 2.
    """


class RunError(RuntimeError):
    """A run that began well cannot go on: the loss is not finite, the disk is full.

    The message says at which step, why, and what is kept. Command-line programs print it without a
    traceback and exit with status 1.
    """


@contextlib.contextmanager
def exit_in_one_sentence() -> Iterator[None]:
    """Turns the errors of this module into a message on stderr and an exit status."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
