"""ConvNeXt V1 written with the layers of Flax NNX as they come: a peer for benchmarks.

This is how a port is usually begun: the depthwise convolution is `nnx.Conv` with as many groups as
channels. It computes the same function as `convnext_jax` and names its parameters alike, so that
weights can be copied over.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.variants import Variant


class Block(nnx.Module):
    """Maps [N, H, W, dim] to the same shape."""

    def __init__(self, dim: int, layer_scale_init: float, dtype: DTypeLike, rngs: nnx.Rngs):
        """Draws the initial parameters."""
        self.dwconv = nnx.Conv(dim, dim, (7, 7), feature_group_count=dim, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(dim, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.pwconv1 = nnx.Linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.pwconv2 = nnx.Linear(4 * dim, dim, dtype=dtype, rngs=rngs)
        self.gamma = nnx.Param(jnp.full((dim,), layer_scale_init))
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """Applies the block."""
        y = self.norm(self.dwconv(x))
        y = self.pwconv2(nnx.gelu(self.pwconv1(y), approximate=False))
        return x + y * self.gamma[...].astype(self.dtype).reshape(1, 1, 1, -1)


class NaiveConvNeXt(nnx.Module):
    """Maps normalised images [N, H, W, 3], H and W multiples of 32, to logits [N, num_classes].

    Args:
      depths: number of blocks of each stage.
      dims: number of channels of each stage.
      num_classes: length of the logits.
      layer_scale_init: initial value of the blocks' `gamma`.
      dtype: dtype of the computation; parameters are float32.
      rngs: its `params` stream draws the initial values.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        num_classes: int,
        *,
        layer_scale_init: float = 1e-6,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        """Draws the initial parameters."""

        def conv(dim_in: int, dim_out: int, size: int) -> nnx.Conv:
            return nnx.Conv(dim_in, dim_out, (size, size), strides=size, dtype=dtype, rngs=rngs)

        def norm(dim: int) -> nnx.LayerNorm:
            return nnx.LayerNorm(dim, epsilon=1e-6, dtype=dtype, rngs=rngs)

        downsample = [nnx.List([conv(3, dims[0], 4), norm(dims[0])])]
        for dim_in, dim_out in zip(dims[:-1], dims[1:], strict=True):
            downsample.append(nnx.List([norm(dim_in), conv(dim_in, dim_out, 2)]))
        self.downsample_layers = nnx.List(downsample)
        self.stages = nnx.List(
            nnx.List([Block(dim, layer_scale_init, dtype, rngs) for _ in range(depth)])
            for depth, dim in zip(depths, dims, strict=True)
        )
        self.norm = norm(dims[-1])
        self.head = nnx.Linear(dims[-1], num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, key: jax.Array | None = None) -> Array:
        """Classifies images; `key` is not used, as there is no stochastic depth.

        The logits are float32.
        """
        x = images
        for downsample, blocks in zip(self.downsample_layers, self.stages, strict=True):
            for layer in [*downsample, *blocks]:
                x = layer(x)
        return self.head(self.norm(x.mean((1, 2)))).astype(jnp.float32)


def create_naive(
    name: str, num_classes: int, dtype: DTypeLike = "float32", rngs: nnx.Rngs | None = None
) -> NaiveConvNeXt:
    """Builds the naive counterpart of a model of `convnext_jax`.

    Args:
      name: a model of the V1 architecture as the paper has it.
      num_classes: length of the logits.
      dtype: dtype of the computation.
      rngs: its `params` stream draws the initial values; None is `nnx.Rngs(0)`.

    Raises:
      InputError: the model does not exist, or differs from V1 in more than depths and dims.
    """
    variant = get_variant(name)
    plain = Variant(architecture="convnext", depths=variant.depths, dims=variant.dims)
    differing = [
        field
        for field in (
            *("architecture", "layer_scale_init", "norm_eps", "kernel_size", "grn", "stem"),
            *("activation", "norm", "head_norm_first", "head_hidden_size"),
        )
        if getattr(variant, field) != getattr(plain, field)
    ]
    if differing:
        raise InputError(
            f"`model` (={name}) must be a plain ConvNeXt V1 for the peer nnx-naive;"
            f" it differs in {', '.join(differing)}"
        )
    rngs = nnx.Rngs(0) if rngs is None else rngs
    return NaiveConvNeXt(variant.depths, variant.dims, num_classes, dtype=dtype, rngs=rngs)
