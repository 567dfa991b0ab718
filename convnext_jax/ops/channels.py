"""A bias, and a scale, for each channel, whose gradients are summed in float32."""

import jax
import jax.numpy as jnp
from jax import Array


def add_bias(x: Array, bias: Array) -> Array:
    """Adds a number to each channel.

    Left to itself the gradient of `bias` is a sum over all pixels in the dtype of `x`: in bfloat16
    that has no more than 8 binary places for a sum of a million terms.

    Args:
      x: [..., C] floating point.
      bias: [C] floating point, used as rounded to the dtype of `x`.

    Returns:
      [..., C], same dtype as `x`.
    """
    if jnp.finfo(x.dtype).bits >= 32:
        return x + _along_last(bias, x)
    return _add_bias(x, bias)


def scale(x: Array, factor: Array) -> Array:
    """Multiplies each channel by a number; as `add_bias` otherwise."""
    if jnp.finfo(x.dtype).bits >= 32:
        return x * _along_last(factor, x)
    return _scale(x, factor)


@jax.custom_vjp
def _add_bias(x: Array, bias: Array) -> Array:
    return x + _along_last(bias, x)


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return _add_bias(x, bias), bias


def _add_bias_backward(bias: Array, dy: Array) -> tuple[Array, Array]:
    return dy, _sum(dy.astype(jnp.float32)).astype(bias.dtype)


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@jax.custom_vjp
def _scale(x: Array, factor: Array) -> Array:
    return x * _along_last(factor, x)


def _scale_forward(x: Array, factor: Array) -> tuple[Array, tuple[Array, Array]]:
    return _scale(x, factor), (x, factor)


def _scale_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, factor = residuals
    products = dy.astype(jnp.float32) * x.astype(jnp.float32)
    return dy * _along_last(factor, x), _sum(products).astype(factor.dtype)


_scale.defvjp(_scale_forward, _scale_backward)


def _along_last(parameter: Array, x: Array) -> Array:
    return parameter.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def _sum(x: Array) -> Array:
    return x.sum(tuple(range(x.ndim - 1)))
