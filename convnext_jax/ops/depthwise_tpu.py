"""Depthwise convolution on TPU: forms that are not XLA's own.

As products of matrices, for the matrix units: a depthwise convolution has too few products for one
and is left to the vector units, which reach half of their peak with it where images are large. Here
a row of blocks, each of a few rows of the image, is convolved with matrices: between the pixels of
a block and those of a neighbour the filter is a Toeplitz matrix [pixels, pixels], whose entries are
the filter's taps and zeros. That is 8 to 15 times as many products, on units with 50 times the
speed. Sums are the same up to their order: a product of two bfloat16 is exact in float32, and the
zeros add nothing. It is the default for 128 images and more on a chip, where both the schedules and
the compiler's own estimate of a whole step are shorter with it. With 16 images or fewer the
compiler takes minutes for it, and the filters' matrices, made in each step, take longer than XLA's
convolution.

The filter's gradient is that of its matrices, whose entries of each tap are added. Each device does
so by itself: the matrices are hundreds of times as large as the filters, and XLA would add them
over all devices first. By schedules a step is shorter still with it, but the compiler takes three
times as long: so it is for those who ask for it.

The filter's gradient as a sum of shifted slices, for one or two images on a device: XLA's leaves
most of a register empty then, takes up to five times as long, and minutes to compile.

What is known of both is what the compiler's schedules say (docs/performance.md); no clock has seen
them.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from convnext_jax.ops.conv import Padding, conv, filter_gradient
from convnext_jax.ops.few_images import summed_over_devices

MANY = 128  # images on a device with which it was compiled as a part of a whole step
_LANES = 128  # of a matrix unit; pixels of a block are no more
_LEAST = 96  # with fewer, too much of it multiplies zeros
# Of images for which it is faster by schedules. At 14 pixels only the filter's gradient is.
_LEAST_SIDE, _LEAST_SIDE_OF_GRADIENT = 28, 14


def supported(x: Array, kernel: Array, of_filter: bool = False) -> bool:
    """Whether the convolution of `x` [N, H, W, C] is expected to be faster so.

    Or the gradient `of_filter`.
    """
    _, height, width, _ = x.shape
    return (
        x.dtype == jnp.bfloat16
        and kernel.shape[0] == 7
        and min(height, width) >= (_LEAST_SIDE_OF_GRADIENT if of_filter else _LEAST_SIDE)
        and rows_of_block(height, width) * width >= _LEAST
    )


def rows_of_block(height: int, width: int) -> int:
    """Rows of the image in a block: as many as fill the lanes; 0 if none do."""
    fitting = [r for r in range(1, height + 1) if height % r == 0 and r * width <= _LANES]
    return max(fitting, default=0)


@jax.jit
def toeplitz_forward(x: Array, kernel: Array) -> Array:
    """The convolution; arguments and result are those of `depthwise_conv`."""
    rows = rows_of_block(*x.shape[1:3])
    matrices = _matrices(kernel, rows, x.shape[2])
    found = conv(_to_blocks(x, rows), matrices, 1, _padding(len(matrices)), x.shape[3])
    return _from_blocks(found, x.shape, rows)


@jax.jit
def toeplitz_input_gradient(x: Array, kernel: Array, dy: Array) -> Array:
    """Gradient with respect to `x`: the convolution of `dy` with the filter turned around."""
    del x
    return toeplitz_forward(dy, kernel[::-1, ::-1])


@jax.jit
def toeplitz_filter_gradient(x: Array, kernel: Array, dy: Array) -> Array:
    """Gradient with respect to the kernel, in its dtype; the arguments are `depthwise_conv`'s."""
    k, channels = kernel.shape[0], x.shape[3]
    rows, width = rows_of_block(*x.shape[1:3]), x.shape[2]
    # Not rounded before a filter's are added.
    places = _places(k, rows, width, jnp.promote_types(kernel.dtype, jnp.float32))
    _, blocks, pixels, _ = places.shape
    matrices = jax.ShapeDtypeStruct((blocks, 1, pixels, channels * pixels), places.dtype)

    def of_device(x: Array, dy: Array) -> Array:
        found = filter_gradient(
            _to_blocks(x, rows), matrices, _to_blocks(dy, rows), 1, _padding(blocks), channels
        )
        found = found.reshape(blocks, pixels, channels, pixels)
        return jnp.einsum("tbio,bico->tc", places, found, precision=lax.Precision.HIGHEST)

    return summed_over_devices(of_device)(x, dy).reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(jax.jit, static_argnames="devices")
def shifted_filter_gradient(x: Array, kernel: Array, dy: Array, *, devices: int) -> Array:
    """Gradient with respect to the kernel, in its dtype: for each tap a sum over all pixels.

    The images of a device lie one below the other, so that there is no axis of them to lay out.

    Args:
      x: [N, H, W, C] floating point.
      kernel: [k, k, 1, C]; only its shape and dtype matter.
      dy: like `x`.
      devices: over how many the images lie; divides N.
    """
    k, (n, height, width, channels) = kernel.shape[0], x.shape
    wide, half = jnp.promote_types(x.dtype, jnp.float32), k // 2
    below = n // devices * (height + k - 1)
    x = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    # Rows of zeros where the taps see two images at once.
    dy = jnp.pad(dy, ((0, 0), (0, k - 1), (0, 0), (0, 0)))
    x = x.reshape(devices, below, width + k - 1, channels).astype(wide)
    rows = below - (k - 1)
    dy = dy.reshape(devices, below, width, channels)[:, :rows].astype(wide)
    taps = [
        [(x[:, i : i + rows, j : j + width] * dy).sum((0, 1, 2)) for j in range(k)]
        for i in range(k)
    ]
    return jnp.stack([jnp.stack(row) for row in taps])[:, :, None].astype(kernel.dtype)


def _padding(blocks: int) -> Padding:
    """Blocks of zeros above and below an image, whose result has as many blocks as it."""
    return ((blocks // 2, blocks // 2), (0, 0))


def _to_blocks(x: Array, rows: int) -> Array:
    """[N, H, W, C] as [N, H / rows, 1, C * rows * W]."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // rows, rows * width, channels)
    return x.swapaxes(2, 3).reshape(n, height // rows, 1, -1)


def _from_blocks(blocks: Array, shape: tuple[int, ...], rows: int) -> Array:
    """The opposite of `_to_blocks`, for images of a shape."""
    n, height, width, channels = shape
    return blocks.reshape(n, height // rows, channels, rows * width).swapaxes(2, 3).reshape(shape)


def _matrices(kernel: Array, rows: int, width: int) -> Array:
    """The filters as matrices [blocks, 1, pixels, C * pixels], same dtype."""
    k, channels = kernel.shape[0], kernel.shape[3]
    places = _places(k, rows, width, kernel.dtype)
    taps = kernel.reshape(k * k, channels)
    # A sum has one term that is not zero: exact in any precision that the operands have.
    found = jnp.einsum("tc,tbio->bico", taps, places, precision=lax.Precision.HIGHEST)
    blocks, pixels = found.shape[:2]
    return found.reshape(blocks, 1, pixels, channels * pixels)


def _places(k: int, rows: int, width: int, dtype: DTypeLike) -> Array:
    """Where the taps are in those matrices: ones and zeros [k * k, blocks, pixels, pixels]."""
    pixels, half = rows * width, k // 2
    reach = -(-half // rows)  # blocks to each side that a filter sees
    shape = (k * k, 2 * reach + 1, pixels, pixels)
    tap, block, pixel, to = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(4))
    down = (block - reach) * rows + pixel // width - to // width + half
    right = pixel % width - to % width + half
    # Which tap leads from a pixel to one of the result; what is beyond the filter has none.
    return ((right >= 0) & (right < k) & (down * k + right == tap)).astype(dtype)
