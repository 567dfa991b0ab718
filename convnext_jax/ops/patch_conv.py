"""Convolution of non-overlapping patches, as a matrix product where that is faster."""

import jax
from jax import Array, lax

from convnext_jax.ops.conv import conv
from convnext_jax.ops.dense import dense


@jax.jit
def patch_conv(x: Array, kernel: Array) -> Array:
    """Convolves `x` with a stride that is the filter's side; what does not fill a patch is cut off.

    XLA:CPU computes such a convolution about as fast as the matrix product over patches, but its
    gradients take up to twice as long. Elsewhere it is XLA's convolution.

    Args:
      x: [N, H, W, C], H and W at least k.
      kernel: [k, k, C, D], its dtype as in `dense`.

    Returns:
      [N, H // k, W // k, D], same dtype as `x`.
    """
    return lax.platform_dependent(x, kernel, cpu=matrix_product, default=convolution)


def matrix_product(x: Array, kernel: Array) -> Array:
    """The convolution as a product of patches [N * H // k * W // k, k * k * C] and filters."""
    k, features = kernel.shape[0], kernel.shape[-1]
    n, height, width, channels = x.shape
    rows, columns = height // k, width // k
    patches = x[:, : rows * k, : columns * k].reshape(n, rows, k, columns, k * channels)
    patches = patches.transpose(0, 1, 3, 2, 4).reshape(n, rows, columns, k * k * channels)
    return dense(patches, kernel.reshape(k * k * channels, features))


def convolution(x: Array, kernel: Array) -> Array:
    """The convolution as XLA's."""
    return conv(x, kernel, kernel.shape[0], ((0, 0), (0, 0)))
