"""How far a command is, for who watches it: silent where nobody does, and where it is soon over."""

import contextlib
import os
import sys
from typing import Any

from tqdm import tqdm

# What is over sooner needs no bar.
_PATIENCE_SECONDS = 3.0


def progress_bar(
    what: str, total: int, unit: str, *, shown: bool = True, beside_output: bool = False
) -> tqdm:
    """A bar on stderr with rate and ETA, which goes away at its end; close it, or use `with`.

    Args:
      what: is being done, a word.
      total: number of units.
      unit: what is counted, such as `images`.
      shown: False: on a process that says nothing.
      beside_output: the command prints as it goes: where stdout is a terminal too, that shows how
        far it is, and there is no bar.

    Returns:
      The bar, whose `update(n)` moves it.
    """
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


def terminal_size() -> dict[str, Any]:
    """What tqdm is told of the terminal's size: to ask it; one that does not know has 80 x 24.

    Of a size of 0, as containers and consoles have it, tqdm makes no bar at all.
    """
    with contextlib.suppress(OSError):
        if os.get_terminal_size(sys.stderr.fileno()).columns:
            return {"dynamic_ncols": True}
    return {"ncols": 80, "nrows": 24}
