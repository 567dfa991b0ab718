"""The parts that blocks and heads are made of: initialisers, layers, drop path."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.errors import InputError
from convnext_jax.models import initial
from convnext_jax.ops.channels import add_bias
from convnext_jax.ops.dense import dense
from convnext_jax.ops.depthwise_conv import depthwise_conv
from convnext_jax.ops.fence import fence
from convnext_jax.ops.gelu import gelu
from convnext_jax.ops.layer_norm import layer_norm
from convnext_jax.ops.patch_conv import patch_conv

# The reference truncates a normal distribution of standard deviation 0.02 at the absolute values
# -2 and 2, a hundred standard deviations away: it is a plain normal distribution. (Do not truncate
# with `jax.random.truncated_normal` at +-100: it turns a uniform draw of exactly -1, about one in
# 16 million, into a weight of -100 standard deviations.)
kernel_init = initial.normal(stddev=0.02)

# `gelu` is the exact one of the paper, with erf. The others occur in timm's smallest test models.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}


class PatchConv(nnx.Conv):
    """A convolution whose stride is its kernel size; what does not fill a patch is cut off.

    Maps [N, H, W, features_in] to [N, H // size, W // size, features_out].

    Args:
      features_in: number of input channels.
      features_out: number of output channels.
      size: side of a patch.
      dtype: dtype of computation and result; parameters are float32.
      rngs: its `params` stream draws the kernel.
    """

    def __init__(
        self, features_in: int, features_out: int, size: int, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        """Draws the initial parameters."""
        super().__init__(
            features_in,
            features_out,
            (size, size),
            strides=size,
            padding="VALID",
            dtype=dtype,
            kernel_init=kernel_init,
            bias_init=initial.zeros,
            rngs=rngs,
        )

    def __call__(self, inputs: Array, out_sharding=None) -> Array:
        """Convolves `inputs` [N, H, W, features_in]."""
        assert out_sharding is None, "shardings are left to the compiler"
        y = patch_conv(inputs.astype(self.dtype), self.kernel[...])
        return y if self.bias is None else add_bias(y, self.bias[...])


class Linear(nnx.Linear):
    """A dense layer over the last axis, [..., features_in] to [..., features_out].

    Args:
      features_in: number of input features.
      features_out: number of output features.
      dtype: dtype of computation and result; parameters are float32.
      rngs: its `params` stream draws the kernel.
      kernel_init: how.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        kernel_init: initial.Initializer = kernel_init,
    ):
        """Draws the initial parameters."""
        super().__init__(
            features_in,
            features_out,
            dtype=dtype,
            kernel_init=kernel_init,
            bias_init=initial.zeros,
            rngs=rngs,
        )

    def __call__(self, inputs: Array, out_sharding=None) -> Array:
        """Multiplies `inputs` [..., features_in] by the kernel and adds the bias."""
        assert out_sharding is None, "shardings are left to the compiler"
        y = dense(inputs.astype(self.dtype), self.kernel[...])
        return y if self.bias is None else add_bias(y, self.bias[...])


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation over the last axis as PyTorch computes it.

    Statistics, scale and bias are float32 whatever `dtype`, the result's dtype, is.

    Args:
      features: number of channels C.
      eps: added to the variance.
      dtype: dtype of the result.
      rngs: not used by the initial values, which are 1 and 0.
    """

    def __init__(self, features: int, eps: float, dtype: DTypeLike, rngs: nnx.Rngs):
        """Sets the scale to 1 and the bias to 0."""
        super().__init__(
            features,
            epsilon=eps,
            dtype=dtype,
            scale_init=initial.ones,
            bias_init=initial.zeros,
            rngs=rngs,
        )

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        """Normalises `x` [..., C]; no position can be masked."""
        assert mask is None and self.scale is not None and self.bias is not None
        y = layer_norm(x, self.scale[...], self.bias[...], self.epsilon)
        return y.astype(self.dtype)


class SimpleNorm(nnx.Module):
    """Division by the standard deviation over the channels, which are not centred; no bias.

    timm trained its `_rms` models with this in place of a root mean square: the variance is about
    the mean and unbiased (divided by C - 1), but the mean stays in the result. Statistics and scale
    are float32 whatever `dtype`, the result's dtype, is. (timm `SimpleNorm`.)

    Args:
      features: number of channels C, at least 2.
      eps: added to the variance.
      dtype: dtype of the result.
      rngs: not used; here for the signature of `LayerNorm`.
    """

    def __init__(self, features: int, eps: float, dtype: DTypeLike, rngs: nnx.Rngs):
        """Sets the scale to 1."""
        self.scale = nnx.Param(initial.full((features,), 1.0))
        self.epsilon = eps
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """Normalises `x` [..., C]."""
        x = fence(x).astype(jnp.float32)
        variance = x.var(axis=-1, keepdims=True, ddof=1)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return (x * jax.lax.rsqrt(variance + self.epsilon) * scale).astype(self.dtype)


Norm = nnx.LayerNorm | SimpleNorm

NORMS: Mapping[str, Callable[[int, float, DTypeLike, nnx.Rngs], Norm]] = {
    "layer_norm": LayerNorm,
    "simple_norm": SimpleNorm,
}


class GlobalResponseNorm(nnx.Module):
    """Global response normalisation (GRN): channels compete by their norm over the whole map.

    With n_c the L2 norm of channel c over height and width, channel c becomes
    `gamma_c * x_c * n_c / (mean of n over the channels + 1e-6) + beta_c + x_c`. Both parameters
    start at 0, where the layer is the identity. Everything is float32 whatever `dtype`, the
    result's dtype, is. (ConvNeXt V2, arXiv 2301.00808, section 3.2 and algorithm 1.)

    Args:
      features: number of channels C.
      dtype: dtype of the result.
    """

    def __init__(self, features: int, dtype: DTypeLike):
        """Sets both parameters to 0."""
        self.gamma = nnx.Param(initial.full((features,), 0.0))
        self.beta = nnx.Param(initial.full((features,), 0.0))
        self.dtype = dtype

    def __call__(self, x: Array, inside: Array | None = None) -> Array:
        """Maps `x` [N, H, W, C] to the same shape; only what is `inside` [N, H, W, 1] counts."""
        x = fence(x).astype(jnp.float32)
        counted = x if inside is None else jnp.where(inside, x, 0.0)
        squares = jnp.sum(counted * counted, axis=(1, 2), keepdims=True)
        # A channel that is 0 all over has the norm 0 and, as in PyTorch, the gradient 0: a plain
        # square root would give it an infinite slope, and the model a NaN.
        positive = squares > 0
        norms = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
        relative = norms / (norms.mean(axis=-1, keepdims=True) + 1e-6)
        gamma, beta = (p[...].reshape(1, 1, 1, -1) for p in (self.gamma, self.beta))
        return (gamma * (x * relative) + beta + x).astype(self.dtype)


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
        self.bias = nnx.Param(initial.full((features,), 0.0))
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """Convolves `x` [N, H, W, C]."""
        return add_bias(depthwise_conv(x.astype(self.dtype), self.kernel[...]), self.bias[...])


class Keyed(nnx.Module):
    """A model that is told to train by a key, call by call."""

    def train(self, **attributes: Any) -> None:
        """Raises InputError: a switch of Flax's, which would change nothing here."""
        raise InputError(
            "`train()` changes nothing: a call trains when it is given a key, `model(images,"
            " key=key)`, and is inference without"
        )


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
    # The bias is 0, and so is its multiple.
    return Linear(features, num_classes, jnp.float32, rngs, initial.normal(stddev=0.02 * scale))


def pool_and_classify(
    x: Array,
    norm: Norm | None,
    classifier: nnx.Linear | None,
    *,
    norm_pre: Norm | None = None,
    pre_logits: nnx.Linear | None = None,
) -> Array:
    """Averages a feature map over its area, normalises it and applies the classifier, if any.

    Args:
      x: [N, H, W, C], converted to float32.
      norm: applied to the average.
      classifier: applied last; None: the result is the embedding.
      norm_pre: applied to the map, before the average.
      pre_logits: applied with a GELU before the classifier.

    Returns:
      float32 [N, num_classes]; without a classifier [N, C], or the width of `pre_logits`.
    """
    x = fence(x).astype(jnp.float32)
    x = x if norm_pre is None else norm_pre(x)
    x = x.mean(axis=(1, 2))
    x = x if norm is None else norm(x)
    x = x if pre_logits is None else ACTIVATIONS["gelu"](pre_logits(x))
    return x if classifier is None else classifier(x)
