"""Matrix product of activations and weights, in low precision fast on CPU too."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike


def dense(x: Array, kernel: Array) -> Array:
    """Multiplies the last axis of `x` by a matrix.

    On CPU, XLA converts bfloat16 factors to float32 and multiplies those, unless the result is
    float32 too: then the processor's own bfloat16 instructions are used, at twice the speed of
    float32. So there the three products of forward and backward pass have float32 results, which
    are rounded once. Elsewhere, and in float32 or wider, they are XLA's as they come.

    Args:
      x: [..., C] floating point.
      kernel: [C, D] floating point, used as rounded to the dtype of `x`. Its gradient is not
        rounded to that, so sums over devices, which follow, are in the kernel's dtype.

    Returns:
      [..., D], same dtype as `x`.
    """
    if jnp.finfo(x.dtype).bits >= 32:
        return jnp.matmul(x, kernel.astype(x.dtype))
    return _low_precision(x, kernel)


@jax.custom_vjp
def _low_precision(x: Array, kernel: Array) -> Array:
    return _product(x, kernel.astype(x.dtype), ((x.ndim - 1,), (0,)), x.dtype)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _low_precision(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    leading = tuple(range(x.ndim - 1))
    dx = _product(dy, kernel.astype(x.dtype), ((x.ndim - 1,), (1,)), x.dtype)
    return dx, _product(x, dy, (leading, leading), kernel.dtype)


_low_precision.defvjp(_forward, _backward)


def _product(
    a: Array, b: Array, contracted: tuple[tuple[int, ...], tuple[int, ...]], dtype: DTypeLike
) -> Array:
    def product(a: Array, b: Array, result: DTypeLike) -> Array:
        dimensions = (contracted, ((), ()))
        return lax.dot_general(a, b, dimensions, preferred_element_type=result).astype(dtype)

    return lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: product(a, b, jnp.float32),
        default=lambda a, b: product(a, b, dtype),
    )
