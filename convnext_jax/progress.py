"""How far a command is, for who watches it: silent where nobody does, and where it is soon over."""

import contextlib
import contextvars
import os
import sys
from collections.abc import Iterator
from typing import Any

# The bar of the command that is going on; None: nobody watches, as from Python.
_bar: contextvars.ContextVar[Any] = contextvars.ContextVar("bar", default=None)
# What is over sooner needs no bar.
_PATIENCE_SECONDS = 3.0


def progress_bar(
    what: str, total: int, unit: str, *, shown: bool = True, beside_output: bool = False
) -> Any:
    """A bar on stderr with rate and ETA, which goes away at its end; close it, or use `with`.

    Args:
      what: is being done, a word.
      total: number of units.
      unit: what is counted, such as `images`.
      shown: False: on a process that says nothing.
      beside_output: the command prints as it goes: where stdout is a terminal too, that shows how
        far it is, and there is no bar.

    Returns:
      The bar, a `tqdm`, whose `update(n)` moves it.
    """
    # Here, so that what only moves the bar of others needs no tqdm.
    from tqdm import tqdm

    watched = shown and sys.stderr.isatty() and not (beside_output and sys.stdout.isatty())
    return tqdm(
        desc=what,
        total=total,
        unit=f" {unit}",
        unit_scale=unit == "bytes",
        delay=_PATIENCE_SECONDS,
        disable=not watched,
        leave=False,
        file=sys.stderr,
        **terminal_size(),
    )


@contextlib.contextmanager
def watched_bytes(what: str) -> Iterator[None]:
    """Shows a bar of the bytes that functions below `expect` and have `moved`.

    For what is far below the command, which from Python is called by others and says nothing.

    Args:
      what: is being done, a word.
    """
    with progress_bar(what, 0, "bytes") as bar:
        token = _bar.set(bar)
        try:
            yield
        finally:
            _bar.reset(token)


def expect(size: int) -> None:
    """Tells the bar of the command, if there is one, that so many more bytes will be moved."""
    if (bar := _bar.get()) is not None:
        bar.total += size
        bar.refresh()


def moved(size: int) -> None:
    """Tells it that so many bytes were moved."""
    if (bar := _bar.get()) is not None:
        bar.update(size)


def terminal_size() -> dict[str, Any]:
    """What tqdm is told of the terminal's size: to ask it; one that does not know has 80 x 24.

    Of a size of 0, as containers and consoles have it, tqdm makes no bar at all.
    """
    with contextlib.suppress(OSError):
        if os.get_terminal_size(sys.stderr.fileno()).columns:
            return {"dynamic_ncols": True}
    return {"ncols": 80, "nrows": 24}
