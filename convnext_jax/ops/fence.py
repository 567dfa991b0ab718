"""Borders that XLA does not fuse operations across: on CPUs, and on GPUs."""

import jax
import jax.numpy as jnp
from jax import Array, lax


@jax.custom_vjp
def fence(x: Array) -> Array:
    """Returns `x`, and on CPU has it computed once and written to memory.

    XLA:CPU hands sums over an axis to a library, together with all the arithmetic in front of them
    that the library knows. A LayerNorm behind a depthwise convolution, which is a sum of 49
    products there, so takes 49 arrays of slices with it: eight times slower than the two apart.
    `lax.optimization_barrier` does not prevent it, since it is gone when fusions are made. A choice
    between numbers does, since that library has none; it costs nothing, being fused into what is in
    front of it. Gradients are fenced too. On other platforms nothing happens.

    Args:
      x: any shape, floating point.
    """
    return lax.platform_dependent(x, cpu=_choose, default=_keep)


def written(x: Array) -> Array:
    """Returns `x`, and on GPUs has it written to memory as it is.

    XLA:GPU makes what is used in several ways anew for each of them, and leaves out a rounding
    that is taken back, so that maps are written in float32: two thirds more bytes for LayerNorm's
    backward pass in bfloat16. On other platforms nothing happens.

    Args:
      x: any shape.
    """
    barrier = lax.optimization_barrier
    return lax.platform_dependent(x, cuda=barrier, rocm=barrier, default=_keep)


def _choose(x: Array) -> Array:
    # Both sides are `x`, NaN included, but no compiler may know it: it is not told that NaN has one
    # form only.
    return jnp.where(jnp.isnan(x), x + 1, x)


def _keep(x: Array) -> Array:
    return x


def _forward(x: Array) -> tuple[Array, None]:
    return fence(x), None


def _backward(residuals: None, dy: Array) -> tuple[Array]:
    del residuals
    return (fence(dy),)


fence.defvjp(_forward, _backward)
