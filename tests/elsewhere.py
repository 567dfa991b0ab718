"""Runs here what a program for another platform computes."""

from collections.abc import Callable
from typing import Any

import jax
from jax.export import DisabledSafetyCheck, export


def as_on(platform: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls what JAX lowers `function` to for a platform, with the forms it has there, on the CPU.

    Nothing in it may need the platform itself: no custom call of its libraries. What its compiler
    makes of the program is not tested so.
    """
    program = export(
        jax.jit(function),
        platforms=[platform],
        disabled_checks=[DisabledSafetyCheck.platform()],
    )(*arguments)
    return program.call(*arguments)
