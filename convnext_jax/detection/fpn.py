"""The feature pyramid (FPN, arXiv 1612.03144) as mmdetection 2.11 builds it."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.detection.layers import ConvModule, xavier_uniform
from convnext_jax.models.backbone import inside


def only(x: Array, sizes: Array) -> Array:
    """Maps [N, H, W, C] with zeros beyond sizes [N, 2], as the next filter sees images alone."""
    return jnp.where(inside(x, sizes), x, jnp.zeros((), x.dtype))


def double(x: Array) -> Array:
    """Maps [N, H, W, C] with each place four times, [N, 2 H, 2 W, C]."""
    n, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return x.reshape(n, 2 * height, 2 * width, channels)


class FPN(nnx.Module):
    """Four maps of a backbone to five of equal width, P2 to P6.

    Its convolutions have biases, and neither norm nor activation: of `ConvModule` only `conv` is
    used, for the names of checkpoints.

    Args:
      dims: number of channels of the backbone's maps.
      channels: of the results.
      dtype: dtype of computation and results.
      rngs: its `params` stream draws the kernels, as `xavier_uniform`.
    """

    def __init__(
        self, dims: Sequence[int], channels: int, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """Draws the initial parameters."""

        def module(features_in: int, size: int) -> ConvModule:
            taps = size * size
            init = xavier_uniform(features_in * taps, channels * taps)
            return ConvModule(features_in, channels, size, dtype, rngs, init)

        self.lateral_convs = nnx.List([module(dim, 1) for dim in dims])
        self.fpn_convs = nnx.List([module(channels, 3) for _ in dims])

    def __call__(
        self, maps: Sequence[Array], sizes: Sequence[Array]
    ) -> tuple[list[Array], list[Array]]:
        """Computes the pyramid.

        Args:
          maps: [N, H / s, W / s, C] of the strides s = 4, 8, 16, 32.
          sizes: whole numbers [N, 2] for each map: the rows and columns of it that are an
            example's own, each twice those of the next map. Beyond is nothing of use.

        Returns:
          The maps P2 to P6, [N, H / s, W / s, channels] of the strides 4 to 64, the last rounded
          up; and their sizes. Beyond is nothing of use.
        """
        laterals = [lay.conv(x) for x, lay in zip(maps, self.lateral_convs, strict=True)]
        for level in range(len(laterals) - 1, 0, -1):
            laterals[level - 1] += double(laterals[level])
        levels = [
            lay.conv(only(x, size))
            for x, size, lay in zip(laterals, sizes, self.fpn_convs, strict=True)
        ]
        return [*levels, levels[-1][:, ::2, ::2]], [*sizes, -(-sizes[-1] // 2)]
