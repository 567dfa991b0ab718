"""The ways in which a command ends with one sentence instead of a traceback, and their statuses."""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any


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


class Preempted(Exception):
    """The machine is about to be taken away, and the run is saved.

    Command-line programs exit with status `PREEMPTED_STATUS`: whoever sees it starts the same
    command again. The message says at which step.
    """


class Interrupted(Exception):
    """The user pressed Ctrl-C, and the run is saved. Commands exit with `INTERRUPTED_STATUS`."""


class Lost(Exception):
    """A run lost what it needs and may get back: other processes, a file server, a worker.

    Command-line programs exit with status `LOST_STATUS`: whoever sees it starts all processes
    again, which go on from the last checkpoint.
    """


# The exit statuses, beside 0. docs/reliability.md has what they mean; what starts runs again reads
# them in launch/.
RUN_STATUS = 1
INPUT_STATUS = 2
PREEMPTED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again later
LOST_STATUS = 76
INTERRUPTED_STATUS = 130  # as shells give it for SIGINT: 128 + 2


def explain_missing_packages(extra: str = "train") -> None:
    """From now on a package that is not installed ends this program with a sentence.

    Args:
      extra: of this package, which the command needs.
    """
    otherwise = sys.excepthook

    def explain(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if not isinstance(error, ModuleNotFoundError) or package in ("", "convnext_jax"):
            otherwise(kind, error, trace)
            return
        print(f"error: {_needs('this command', package, extra)}", file=sys.stderr, flush=True)
        os._exit(INPUT_STATUS)  # Python itself would end with 1

    sys.excepthook = explain


@contextlib.contextmanager
def needed_for(purpose: str, extra: str) -> Iterator[None]:
    """Where a package is imported that not everybody has: raises InputError if that fails.

    Args:
      purpose: what needs it, such as "writing ONNX".
      extra: of this package, which installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(_needs(purpose, error.name, extra)) from error
    except ImportError as error:  # it is there, and damaged
        raise InputError(f"{purpose} needs what cannot be imported: {error}") from error


def _needs(purpose: str, package: str | None, extra: str) -> str:
    return (
        f"{purpose} needs the package `{package}`, which is not installed"
        f" (`pip install 'convnext_jax[{extra}]'`, or '.[{extra}]' in a checkout)"
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message: "; did you mean x or y?" with the closest of `known`, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def require_one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Raises an InputError, with the closest, unless `value` is one of the names in `known`."""
    known = list(known)
    if value not in known:
        hint = did_you_mean(str(value), known)
        raise InputError(f"`{name}` (={value}) must be one of {', '.join(known)}{hint}")


@contextlib.contextmanager
def exit_in_one_sentence() -> Iterator[None]:
    """Turns the errors of this module into a message on stderr and an exit status."""
    try:
        yield
    except tuple(_STATUSES) as error:
        said = str(error) if isinstance(error, Preempted | Interrupted) else f"error: {error}"
        print(said, file=sys.stderr)
        sys.exit(status_of(error))


def status_of(error: BaseException) -> int:
    """The exit status for one of this module's errors."""
    return next(status for kind, status in _STATUSES.items() if isinstance(error, kind))


_STATUSES: dict[type[BaseException], int] = {
    InputError: INPUT_STATUS,
    RunError: RUN_STATUS,
    Preempted: PREEMPTED_STATUS,
    Lost: LOST_STATUS,
    Interrupted: INTERRUPTED_STATUS,
}
