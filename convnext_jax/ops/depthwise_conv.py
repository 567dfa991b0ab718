"""Depthwise convolution: one function, an implementation per platform.

On CPU XLA's grouped convolution takes many times as long as a sum of shifted slices
(docs/performance.md). On TPU it reaches half or all of what the vector units allow, by the
compiler's schedules; no clock has seen it. So which one runs is decided when the program is lowered
for a platform, not by a global setting: the same traced program is right for both. On GPU it is
XLA's too, until the kernels of `depthwise_gpu.py`, which are proven right but have not been timed,
were measured against it. On TPUs (`depthwise_tpu.py`) large images in bfloat16 go through the
matrix units where a device has many of them; the filter's gradient, where one has one or two, as
detectors do, is a sum of shifted slices.

The environment variable CONVNEXT_JAX_DEPTHWISE, read when this module is imported, chooses
otherwise: `pallas` is those kernels on NVIDIA GPUs since Ampere, `toeplitz` on TPUs the matrix
units for any number of large images in bfloat16, and for the filters' gradients, `xla` is XLA's own
on every platform; `auto`, the default, is as above.
"""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from convnext_jax.errors import InputError, require_one_of
from convnext_jax.ops import depthwise_cpu, depthwise_gpu, depthwise_tpu
from convnext_jax.ops.conv import DIMENSION_NUMBERS, filter_gradient
from convnext_jax.ops.few_images import devices_with_few, has_many

_VARIABLE = "CONVNEXT_JAX_DEPTHWISE"
_CHOICE = os.environ.get(_VARIABLE, "auto")
require_one_of(_VARIABLE, _CHOICE, ("auto", "xla", "pallas", "toeplitz"))


def depthwise_conv(x: Array, kernel: Array) -> Array:
    """Convolves each channel of `x` with its own square filter, stride 1, zeros beyond the border.

    Like every convolution in deep learning this is a cross-correlation: the filter is not flipped.
    On CPU, bfloat16 and float16 are accumulated in float32 and rounded once; elsewhere accumulation
    is XLA's choice.

    Args:
      x: [N, H, W, C] floating point. H and W may be smaller than the filter.
      kernel: [k, k, 1, C] with k odd, the layout (HWIO) of a grouped convolution's kernel in Flax;
        same dtype as `x`, or float32, which is rounded to it. Its gradient is not, but by XLA's
        convolution on GPUs; sums over devices, which follow, are in the kernel's dtype.

    Returns:
      [N, H, W, C], same dtype as `x`.

    Raises:
      InputError: if the shapes or dtypes do not fit the above.
    """
    if x.ndim != 4:
        raise InputError(f"`x` (shape {x.shape}) must have four axes, [N, H, W, C]")
    k, channels = kernel.shape[:1], x.shape[-1]
    if kernel.shape != (*k, *k, 1, channels) or k[0] % 2 == 0:
        raise InputError(
            f"`kernel` (shape {kernel.shape}) must be [k, k, 1, {channels}] with k odd "
            f"for `x` of shape {x.shape}"
        )
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    if not floating or kernel.dtype not in (x.dtype, jnp.promote_types(x.dtype, jnp.float32)):
        raise InputError(
            f"`kernel` (dtype {kernel.dtype}) must have the floating point dtype of `x` ({x.dtype})"
            f" or be wider, float32"
        )
    return _depthwise_conv(x, kernel)


@jax.custom_vjp
def _depthwise_conv(x: Array, kernel: Array) -> Array:
    return _choose(
        (x, kernel.astype(x.dtype)),
        cpu=depthwise_cpu.shifted_forward,
        cuda=depthwise_gpu.pallas_forward,
        tpu=depthwise_tpu.toeplitz_forward if _toeplitz(x, kernel) else None,
        default=xla_forward,
    )


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise_conv(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    dx = _choose(
        (x, kernel.astype(x.dtype), dy),
        cpu=depthwise_cpu.shifted_input_gradient,
        cuda=depthwise_gpu.pallas_input_gradient,
        tpu=depthwise_tpu.toeplitz_input_gradient if _toeplitz(x, kernel) else None,
        default=xla_input_gradient,
    )
    tpu = depthwise_tpu.toeplitz_filter_gradient if _toeplitz(x, kernel, of_filter=True) else None
    if (devices := devices_with_few(x)) is not None:
        tpu = functools.partial(depthwise_tpu.shifted_filter_gradient, devices=devices)
    dkernel = _choose(
        (x, kernel, dy),
        cpu=depthwise_cpu.scanned_filter_gradient,
        cuda=depthwise_gpu.pallas_filter_gradient,
        tpu=tpu,
        default=xla_filter_gradient,
    )
    return dx, dkernel


_depthwise_conv.defvjp(_forward, _backward)


def _choose(
    arguments: tuple[Array, ...],
    cpu: Callable,
    cuda: Callable,
    tpu: Callable | None,
    default: Callable,
) -> Array:
    """Calls the implementation for the platform that the program will be lowered for."""
    x, kernel, *_ = arguments
    if _CHOICE == "xla":
        return default(*arguments)
    branches = {"cpu": cpu}
    # All branches are traced, whatever the platform will be.
    if _CHOICE == "pallas" and depthwise_gpu.supported(x, kernel):
        branches["cuda"] = cuda
    if tpu is not None:
        branches["tpu"] = tpu
    return lax.platform_dependent(*arguments, **branches, default=default)


def _toeplitz(x: Array, kernel: Array, of_filter: bool = False) -> bool:
    by_default = _CHOICE == "auto" and not of_filter and has_many(x, depthwise_tpu.MANY)
    chosen = by_default or _CHOICE == "toeplitz"
    return chosen and depthwise_tpu.supported(x, kernel, of_filter)


# The implementations are jitted so that blocks of equal shape share one trace.


@jax.jit
def xla_forward(x: Array, kernel: Array) -> Array:
    """The convolution as XLA's grouped convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=DIMENSION_NUMBERS,
        feature_group_count=x.shape[-1],
    )


@jax.jit
def xla_input_gradient(x: Array, kernel: Array, dy: Array) -> Array:
    """Gradient with respect to `x` as XLA differentiates the grouped convolution."""
    return jax.linear_transpose(lambda x: xla_forward(x, kernel), x)(dy)[0]


@jax.jit
def xla_filter_gradient(x: Array, kernel: Array, dy: Array) -> Array:
    """Gradient with respect to `kernel`, in its dtype, as XLA's grouped convolution."""
    half = kernel.shape[0] // 2
    return filter_gradient(x, kernel, dy, 1, ((half, half), (half, half)), groups=x.shape[-1])
