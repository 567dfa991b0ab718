"""Layer normalisation whose backward pass needs its input and two numbers per pixel."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from convnext_jax.ops.fence import fence, written
from convnext_jax.ops.few_images import summed_over_devices


def layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """Normalises over the last axis to mean 0 and variance 1, as PyTorch does.

    The variance is the mean of squared deviations: the difference of two means would lose digits.
    (Left to itself, XLA:CPU keeps three arrays of the size of `x` for the backward pass.)

    Args:
      x: [..., C] floating point.
      scale: [C] float32, multiplies the result.
      bias: [C] float32, is added then.
      eps: added to the variance.

    Returns:
      [..., C], float32, or float64 if `x` is.
    """
    return _layer_norm(x, scale, bias, eps)


def _value(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    return _forward(x, scale, bias, eps)[0]


def _forward(
    x: Array, scale: Array, bias: Array, eps: float
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    x = fence(x)
    wide = _widen(x)
    mean = wide.mean(axis=-1, keepdims=True)
    centred = wide - mean
    factor = lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + eps)
    y = centred * (factor * _last(scale, x.ndim)) + _last(bias, x.ndim)
    return y, (x, mean, factor, scale)


def _backward(
    eps: float, residuals: tuple[Array, Array, Array, Array], dy: Array
) -> tuple[Array, Array, Array]:
    del eps
    # Fenced, or the compiler would find what the forward pass made of them, and keep that.
    x, mean, factor, dy = (fence(a) for a in (*residuals[:3], dy))
    # Else GPUs compute them again with each sum over the pixels, and write its terms in float32.
    mean, factor = written(mean), written(factor)
    scale = residuals[3]
    normal = (_widen(x) - mean) * factor
    dscale, dbias = _sums(dy * normal, dy)
    scaled = dy * _last(scale, x.ndim)
    along = (scaled * normal).mean(axis=-1, keepdims=True)
    dx = factor * (scaled - scaled.mean(axis=-1, keepdims=True) - normal * along)
    return written(fence(dx.astype(x.dtype))), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


_layer_norm = jax.custom_vjp(_value, nondiff_argnums=(3,))
_layer_norm.defvjp(_forward, _backward)


def _sums(a: Array, b: Array) -> tuple[Array, Array]:
    """Of each channel; on GPUs in one pass over both, which XLA would make two."""
    leading = tuple(range(a.ndim - 1))

    def apart(a: Array, b: Array) -> tuple[Array, Array]:
        return a.sum(leading), b.sum(leading)

    def together(a: Array, b: Array) -> tuple[Array, Array]:
        zero = jnp.zeros((), a.dtype)
        return lax.reduce((a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), leading)

    at_once = summed_over_devices(together)
    return lax.platform_dependent(a, b, cuda=at_once, rocm=at_once, default=apart)


def _widen(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _last(parameter: Array, ndim: int) -> Array:
    return parameter.reshape((1,) * (ndim - 1) + (-1,))
