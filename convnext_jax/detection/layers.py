"""What necks and heads are made of, with the names of mmdetection's checkpoints."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.models import initial
from convnext_jax.models.batch_norm import BatchNorm
from convnext_jax.models.layers import Linear
from convnext_jax.ops.channels import add_bias
from convnext_jax.ops.conv import conv
from convnext_jax.ops.dense import dense


def xavier_uniform(fan_in: int, fan_out: int) -> initial.Initializer:
    """Glorot and Bengio's even spread, of variance 2 / (fan_in + fan_out)."""
    return initial.uniform(math.sqrt(6 / (fan_in + fan_out)))


def he_normal(fan_out: int) -> initial.Initializer:
    """He's normal distribution for what a ReLU follows, of variance 2 / fan_out."""
    return initial.normal(math.sqrt(2 / fan_out))


class Conv(nnx.Conv):
    """A convolution of stride 1; the size of the map stays.

    Args:
      features_in: number of input channels.
      features_out: number of output channels.
      size: side of the filter, odd.
      dtype: dtype of computation and result; parameters are float32.
      rngs: its `params` stream draws the kernel.
      kernel_init: how.
      use_bias: there is a bias, which starts at 0.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        kernel_init: initial.Initializer,
        use_bias: bool = True,
    ) -> None:
        """Draws the initial parameters."""
        super().__init__(
            features_in,
            features_out,
            (size, size),
            padding=size // 2,
            use_bias=use_bias,
            dtype=dtype,
            kernel_init=kernel_init,
            bias_init=initial.zeros,
            rngs=rngs,
        )

    def __call__(self, inputs: Array, out_sharding=None) -> Array:
        """Maps [N, H, W, features_in] to [N, H, W, features_out]."""
        assert out_sharding is None, "shardings are left to the compiler"
        x, kernel = inputs.astype(self.dtype), self.kernel[...]
        half = kernel.shape[0] // 2
        around = (half, half)
        y = conv(x, kernel, 1, (around, around)) if half else dense(x, kernel[0, 0])
        return y if self.bias is None else add_bias(y, self.bias[...])


class Deconv(nnx.Conv):
    """A transposed convolution with 2x2 filters and stride 2: each place becomes a 2x2 patch.

    Output [2y + i, 2x + j] is input [y, x] times `kernel[i, j]`, plus the bias.
    (`torch.nn.ConvTranspose2d`, whose weight is [in, out, i, j].)

    Args:
      features: number of channels, of input and output.
      dtype: dtype of computation and result; parameters are float32.
      rngs: its `params` stream draws the kernel.
    """

    def __init__(self, features: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        super().__init__(
            features,
            features,
            (2, 2),
            dtype=dtype,
            # PyTorch takes the first axis of the weight, the inputs', for the outputs'.
            kernel_init=he_normal(features * 4),
            bias_init=initial.zeros,
            rngs=rngs,
        )

    def __call__(self, inputs: Array, out_sharding=None) -> Array:
        """Maps [N, H, W, features] to [N, 2 H, 2 W, features]."""
        assert out_sharding is None and self.bias is not None
        n, height, width, channels = inputs.shape
        kernel = self.kernel[...].transpose(2, 0, 1, 3).reshape(channels, -1)
        y = dense(inputs.astype(self.dtype), kernel).reshape(n, height, width, 2, 2, -1)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * height, 2 * width, -1)
        return add_bias(y, self.bias[...])


class ConvModule(nnx.Module):
    """A convolution `conv`, and for those that have it batch normalisation `bn`; with a ReLU.

    Args:
      features_in: number of input channels.
      features_out: number of output channels.
      size: side of the filter, odd.
      dtype: dtype of computation and result.
      rngs: its `params` stream draws the kernel.
      kernel_init: how; None: as `he_normal`.
      norm: batch normalisation, in place of the convolution's bias.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        kernel_init: initial.Initializer | None = None,
        norm: bool = False,
    ) -> None:
        """Draws the initial parameters."""
        kernel_init = kernel_init or he_normal(features_out * size * size)
        self.conv = Conv(features_in, features_out, size, dtype, rngs, kernel_init, not norm)
        self.bn = BatchNorm(features_out, dtype) if norm else None

    def __call__(self, x: Array, train: bool = False, valid: Array | None = None) -> Array:
        """Maps [N, H, W, features_in] to [N, H, W, features_out].

        Args:
          x: the maps.
          train: normalises by statistics of the batch.
          valid: bool [N], which examples those are of; None: all.
        """
        x = self.conv(x)
        return jax.nn.relu(x if self.bn is None else self.bn(x, train, valid))


def float32_linear(
    features_in: int, features_out: int, stddev: float, rngs: nnx.Rngs
) -> nnx.Linear:
    """A layer whose results are logits or deltas, in float32 whatever the dtype of computation."""
    return Linear(features_in, features_out, jnp.float32, rngs, initial.normal(stddev))
