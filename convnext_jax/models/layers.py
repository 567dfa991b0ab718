"""The parts that blocks and heads are made of: initialisers, layers, drop path."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.ops.depthwise_conv import depthwise_conv

# The reference truncates a normal distribution of standard deviation 0.02 at the absolute values
# -2 and 2, a hundred standard deviations away: it is a plain normal distribution. (Do not truncate
# with `jax.random.truncated_normal` at +-100: it turns a uniform draw of exactly -1, about one in
# 16 million, into a weight of -100 standard deviations.)
kernel_init = nnx.initializers.normal(stddev=0.02)


def patchify(
    features_in: int, features_out: int, size: int, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Conv:
    """A convolution whose stride is its kernel size; what does not fill a patch is cut off.

    Maps [N, H, W, features_in] to [N, H // size, W // size, features_out].
    """
    return nnx.Conv(
        features_in,
        features_out,
        (size, size),
        strides=size,
        padding="VALID",
        dtype=dtype,
        kernel_init=kernel_init,
        rngs=rngs,
    )


def linear(features_in: int, features_out: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer over the last axis, with the reference's initialisation."""
    return nnx.Linear(features_in, features_out, dtype=dtype, kernel_init=kernel_init, rngs=rngs)


# One function for all layers, not a lambda for each: modules built alike must compare equal, or
# each would be traced and compiled anew.
def _as_they_are(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    return arrays


def layer_norm(features: int, eps: float, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation over the last axis as PyTorch computes it.

    The variance is the mean of squared deviations (Flax's default, the difference of two means,
    loses digits). Statistics, scale and bias are float32 whatever `dtype`, the result's dtype, is.
    """
    return nnx.LayerNorm(
        features,
        epsilon=eps,
        dtype=dtype,
        use_fast_variance=False,
        # By default the scale and bias are rounded to `dtype` before they are used.
        promote_dtype=_as_they_are,
        rngs=rngs,
    )


class DepthwiseConv(nnx.Module):
    """Depthwise convolution with bias, stride 1, [N, H, W, C] to [N, H, W, C].

    Args:
      features: number of channels C.
      kernel_size: side of the filter, odd.
      dtype: dtype of computation and result; parameters are float32.
      rngs: its `params` stream draws the kernel.
    """

    def __init__(self, features: int, kernel_size: int, dtype: DTypeLike, rngs: nnx.Rngs):
        """Draws the initial parameters."""
        shape = (kernel_size, kernel_size, 1, features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """Convolves `x` [N, H, W, C]."""
        y = depthwise_conv(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y + per_channel(self.bias[...], self.dtype)


def per_channel(parameter: Array, dtype: DTypeLike) -> Array:
    """Casts a parameter [C] and reshapes it to [1, 1, 1, C], so that it meets images explicitly."""
    return parameter.astype(dtype).reshape(1, 1, 1, -1)


def drop_path(x: Array, key: Array, rate: float) -> Array:
    """Zeroes each example of a residual path with probability `rate` (stochastic depth).

    Kept examples are divided by the probability of keeping them, so the expectation is `x`.

    Args:
      x: [N, H, W, C].
      key: decides which examples are dropped.
      rate: probability of dropping, in [0, 1).

    Returns:
      [N, H, W, C], same dtype as `x`.
    """
    keep = 1.0 - rate
    kept = jax.random.bernoulli(key, keep, (x.shape[0], 1, 1, 1))
    return jnp.where(kept, x / keep, jnp.zeros((), x.dtype))


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Probabilities of dropping that grow linearly from 0 at the first block to `last`.

    A single block gets 0, as in the reference.
    """
    return [last * i / (blocks - 1) if blocks > 1 else 0.0 for i in range(blocks)]


def head(features: int, num_classes: int, scale: float, rngs: nnx.Rngs) -> nnx.Linear | None:
    """The classifier, its initial kernel and bias multiplied by `scale`; None for 0 classes.

    It computes in float32 whatever the rest does: it costs next to nothing, and logits are not
    rounded.
    """
    if num_classes == 0:
        return None
    layer = linear(features, num_classes, jnp.float32, rngs)
    layer.kernel[...] *= scale
    return layer  # The bias is 0, and so is its multiple.


def pool_and_classify(x: Array, norm: nnx.LayerNorm, classifier: nnx.Linear | None) -> Array:
    """Averages a feature map over its area, normalises it and applies the classifier, if any.

    Maps [N, H, W, C] to float32 [N, num_classes], or [N, C] without a classifier.
    """
    x = norm(x.astype(jnp.float32).mean(axis=(1, 2)))
    return x if classifier is None else classifier(x)
