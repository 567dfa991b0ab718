"""Functions compiled by Numba, which takes a while to import: import this where pixels are made.

They run without the interpreter's lock. What was compiled is kept in `__pycache__`, or in the
user's cache where that cannot be written (NUMBA_CACHE_DIR and XDG_CACHE_HOME say where); where that
cannot be written either, each process compiles, which takes seconds.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a function when it is first called."""
    # Without `error_model`, each division would test for zero and hinder vector instructions.
    function_compiled: Any = numba.njit(nogil=True, error_model="numpy")(function)
    with contextlib.suppress(RuntimeError):  # "no locator available": nowhere to keep it
        function_compiled.enable_caching()
    return function_compiled


# For functions that compiled ones call.
inlined: Any = numba.njit(inline="always", error_model="numpy")
