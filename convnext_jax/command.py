"""How every command begins. Little is imported, so that it can come before what takes seconds."""

import atexit
import gc
import time

from convnext_jax import errors, interrupts

# When the program did, by `time.perf_counter`.
BEGAN = time.perf_counter()


def begin(extra: str = "train") -> None:
    """Answers Ctrl-C, explains packages that are not installed, and looks for garbage less often.

    Args:
      extra: of this package, which the command needs.
    """
    interrupts.listen()
    errors.explain_missing_packages(extra)
    # Importing and tracing make millions of objects that stay. Python would look through the young
    # ones after each 700 and through all of them at the end: a seventh of a short run's time.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
