"""Losses that both detectors put together: by element, float32, without means."""

import jax
import jax.numpy as jnp
from jax import Array


def binary_cross_entropy(logits: Array, targets: Array) -> Array:
    """Of the sigmoid of `logits`, for targets 0 or 1 (or bool) of the same shape."""
    targets = targets.astype(logits.dtype)
    # log(1 + exp(x)) without overflow, and with the right gradient at 0.
    return jax.nn.softplus(logits) - logits * targets


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Of the softmax of `logits` [..., C], for whole numbers [...]."""
    right = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - right


def smooth_l1(difference: Array, beta: float) -> Array:
    """Absolute values, less beta / 2, and parabolas where they are below `beta`; 0: plain ones."""
    size = jnp.abs(difference)
    if beta == 0:
        return size
    return jnp.where(size < beta, 0.5 / beta * jnp.square(difference), size - 0.5 * beta)


def share(values: Array, counts: Array, count: Array) -> Array:
    """The sum of the values that count (bool, same shape) over `count`, or over 1 if that is 0."""
    return jnp.where(counts, values, 0.0).sum() / jnp.maximum(count, 1)
