"""Counting the multiply-accumulate operations of a function from its traced program."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_macs(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts the multiply-accumulates (MACs) of the matrix products and convolutions in a function.

    The published "FLOPs" of vision models are this number. Nothing is computed; elementwise work
    is not counted, multiplications with padding are. A `scan` counts as often as it runs; of a
    condition's branches the most expensive one counts, of implementations for platforms the one for
    all others, so a depthwise convolution counts as a convolution on every platform. Loops of
    unknown length count once.

    Args:
      function: what to count.
      *arguments: its arguments: arrays, `jax.ShapeDtypeStruct`s, or trees of them.

    Returns:
      The number of MACs of one call, over the whole batch.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = _shape(equation.invars[0])
        return math.prod(_shape(equation.outvars[0])) * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        outputs_axis = params["dimension_numbers"].rhs_spec[0]
        per_output = math.prod(kernel) // kernel[outputs_axis]
        return math.prod(_shape(equation.outvars[0])) * per_output
    inner = [_count(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if name == "cond":
        platforms = params.get("branches_platforms") or ()
        return inner[platforms.index(None)] if None in platforms else max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner_jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else [value]:
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
