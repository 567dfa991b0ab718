"""The layers that make the first feature map of an image, a quarter as high and wide."""

from collections.abc import Callable, Mapping

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.models import initial, layers
from convnext_jax.ops.channels import add_bias
from convnext_jax.ops.conv import conv


class OverlapConv(nnx.Conv):
    """A 3x3 convolution of stride 2 with one pixel of padding, and an activation behind it, if any.

    Maps [N, H, W, features_in] to [N, H / 2 and W / 2 rounded up, features_out]. Convolution and
    activation are one layer so that every layer of a stem has parameters, and its number in them.

    Args:
      features_in: number of input channels.
      features_out: number of output channels.
      activation: a key of `layers.ACTIVATIONS`, or None.
      dtype: dtype of computation and result; parameters are float32.
      rngs: its `params` stream draws the kernel.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        activation: str | None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Draws the initial parameters."""
        super().__init__(
            features_in,
            features_out,
            (3, 3),
            strides=2,
            padding=1,
            dtype=dtype,
            kernel_init=layers.kernel_init,
            bias_init=initial.zeros,
            rngs=rngs,
        )
        self.activation = activation

    def __call__(self, inputs: Array, out_sharding=None) -> Array:
        """Convolves `inputs` [N, H, W, features_in]."""
        assert out_sharding is None and self.bias is not None
        y = conv(inputs.astype(self.dtype), self.kernel[...], 2, ((1, 1), (1, 1)))
        y = add_bias(y, self.bias[...])
        return y if self.activation is None else layers.ACTIVATIONS[self.activation](y)


def _patch(
    channels: int, dim: int, activation: str, dtype: DTypeLike, rngs: nnx.Rngs
) -> list[nnx.Conv]:
    """The paper's stem: non-overlapping 4x4 patches."""
    return [layers.PatchConv(channels, dim, 4, dtype, rngs)]


def _overlap(
    channels: int, dim: int, activation: str, dtype: DTypeLike, rngs: nnx.Rngs
) -> list[nnx.Conv]:
    """Two convolutions of full width, with nothing between them."""
    return [OverlapConv(channels, dim, None, dtype, rngs), OverlapConv(dim, dim, None, dtype, rngs)]


def _overlap_tiered(
    channels: int, dim: int, activation: str, dtype: DTypeLike, rngs: nnx.Rngs
) -> list[nnx.Conv]:
    """The first of the two convolutions has half the width."""
    middle = round_to_eight(dim // 2)
    return [
        OverlapConv(channels, middle, None, dtype, rngs),
        OverlapConv(middle, dim, None, dtype, rngs),
    ]


def _overlap_act(
    channels: int, dim: int, activation: str, dtype: DTypeLike, rngs: nnx.Rngs
) -> list[nnx.Conv]:
    """An activation stands between the two convolutions."""
    return [
        OverlapConv(channels, dim, activation, dtype, rngs),
        OverlapConv(dim, dim, None, dtype, rngs),
    ]


# Each makes the convolutions of a stem from the channels of images, its width, the activation's
# name, dtype and rngs; a norm follows them. The overlapping ones are timm's.
STEMS: Mapping[str, Callable[[int, int, str, DTypeLike, nnx.Rngs], list[nnx.Conv]]] = {
    "patch": _patch,
    "overlap": _overlap,
    "overlap_tiered": _overlap_tiered,
    "overlap_act": _overlap_act,
}


def round_to_eight(width: int) -> int:
    """Rounds a width to a multiple of 8, at least 8 and not below 90 % of `width`.

    It rounds to the nearest multiple, a half up, unless that is too low (timm `make_divisible`).
    """
    rounded = max(8, (width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8
